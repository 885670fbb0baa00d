"""The lab as Python sees it: `with Lab(load_topology("default"), rules=[...]) as lab: lab.exec("client", [...])`."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from gfwemu.errors import CapabilityError, UsageError
from gfwemu.netlab import mounts, rundir, services
from gfwemu.netlab.attach import Attached, end_supervisor
from gfwemu.netlab.blueprint import Blueprint
from gfwemu.netlab.design import design_nodes
from gfwemu.netlab.errors import LabError
from gfwemu.netlab.identity import invoking_user
from gfwemu.netlab.internet.plan import Service, Site
from gfwemu.netlab.links import Link, find_link
from gfwemu.netlab.supervisor import STOP_DEADLINE
from gfwemu.netlab.topology import Topology

_START_DEADLINE = 90.0
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


class Lab:
    """One lab: a client behind a censor, and an internet of its own.

    `rules`: rule files for the censor, tried in this order; none: a plain router. `link`: the subscriber's line, by
    name or figures (`find_link`). `seed`: None for the rule files' own. `eve`, `pcap`: where the daemon writes; the
    log is in the lab's directory by default. `extra_sites`, `extra_services`: added to the topology's. `name`: a lab
    that stays when we end; `labels`: what its status says.

    A context manager; `start` and `close` do the same by hand. Raises UsageError, CapabilityError, and LabError
    where a part does not come up.
    """

    def __init__(
        self,
        topology: Topology,
        rules: Sequence[str | os.PathLike[str]] = (),
        *,
        link: str | Link | None = None,
        eve: str | os.PathLike[str] | None = None,
        pcap: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        time_scale: float = 1.0,
        start_time: float | None = None,
        extra_sites: Sequence[Site] = (),
        extra_services: Sequence[Service] = (),
        daemon_options: Sequence[str] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        if pcap is not None and not rules:
            raise UsageError("The censor takes the capture: give rules, too.")
        internet = topology.internet.model_copy(
            update={
                "sites": (*topology.internet.sites, *extra_sites),
                "services": (*topology.internet.services, *extra_services),
            }
        )
        self.topology = topology.model_copy(update={"internet": internet})
        self.rules = [_absolute(path) for path in rules]
        self.link = find_link(link) if isinstance(link, str) else link
        self.seed = seed
        self.time_scale = time_scale
        self.start_time = start_time
        self.name = name
        self._labels = dict(labels or {})
        self._eve = _absolute(eve) if eve is not None else None
        self._pcap = _absolute(pcap) if pcap is not None else None
        self._daemon_options = tuple(daemon_options)
        self._directory: Path | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._attached: Attached | None = None
        self._eve_start = 0
        self._final_events: list[dict[str, Any]] | None = None

    def __enter__(self) -> Lab:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def directory(self) -> Path:
        """The lab's run directory. Raises LabError before `start`."""
        if self._directory is None:
            raise LabError("The lab is not up.")
        return self._directory

    @property
    def eve_path(self) -> Path:
        """Where the daemon writes its events."""
        return self._eve or self.directory / services.EVE

    @property
    def attached(self) -> Attached:
        """The running lab. Raises LabError where it is not up."""
        if self._attached is None:
            raise LabError("The lab is not up.")
        return self._attached

    def start(self) -> None:
        """Build the lab and wait until all of it is ready."""
        try:
            # A signal that waited meanwhile is raised as this ends: inside the try.
            with _undisturbed():
                self._directory = self._new_directory()
            if self._eve is not None and self._eve.is_file():
                self._eve_start = self._eve.stat().st_size
            self._launch(self._blueprint(self._directory))
            self._attached = Attached(self._directory)
            services.hand_over(self._directory, invoking_user())
        except BaseException:
            self.close()
            raise

    def _new_directory(self) -> Path:
        try:
            return rundir.new_directory(self.name)
        except FileExistsError:
            raise UsageError(
                f"A lab named '{self.name}' is up already; end it with gfwemu lab down --name {self.name}."
            ) from None

    def stop(self) -> None:
        """End the lab; its directory, and so its events, stay until `close`."""
        if self._supervisor is not None:
            process = rundir.Process.of(self._supervisor.pid)
            if process is not None:
                end_supervisor(process, STOP_DEADLINE + 2)
            self._supervisor.wait()
            self._supervisor = None
        self._attached = None

    def close(self) -> None:
        """End the lab and leave nothing. Idempotent; `events` still answers afterwards."""
        self.stop()
        if self._directory is not None:
            self._final_events = self.events()
            with _undisturbed():
                rundir.remove(self._directory)
                self._directory = None

    def popen(self, node: str, argv: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[bytes]:
        """See `Attached.popen`."""
        return self.attached.popen(node, argv, **options)

    def exec(
        self,
        node: str,
        argv: Sequence[str | os.PathLike[str]],
        *,
        timeout: float,
        input: bytes | None = None,
        as_root: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """See `Attached.exec`."""
        return self.attached.exec(node, argv, timeout=timeout, input=input, as_root=as_root, env=env, cwd=cwd)

    def events(self) -> list[dict[str, Any]]:
        """The censor's EVE records so far; after `stop`, all of them."""
        if self._directory is None:
            return self._final_events or []
        # What is no regular file, such as a pipe or a device, may have no end.
        if not self.eve_path.is_file():
            return []
        with self.eve_path.open("rb") as file:
            file.seek(self._eve_start)
            # The last line may be half written.
            return [json.loads(line) for line in file if line.endswith(b"\n")]

    def reload(self, rules: Sequence[str | os.PathLike[str]] | None = None, *, timeout: float = 20.0) -> None:
        """Give the censor other rules, or the changed files again, without a pause.

        Raises LabError with what is wrong; the old rules then stay in force.
        """
        if rules is not None:
            self.rules = [_absolute(path) for path in rules]
            services.write_rules(self.directory, self.rules)
        services.reload(self.attached, timeout)

    def _blueprint(self, directory: Path) -> Blueprint:
        ipv6 = Path("/proc/net/if_inet6").exists()
        plan = services.make_plan(self.topology.internet, directory, ipv6=ipv6)
        nodes = design_nodes(self.topology, plan, self.link, ipv6=ipv6)
        blueprint = Blueprint(
            name=self.name or directory.name,
            directory=str(directory),
            nodes=nodes,
            services=services.list_services(
                directory,
                self.topology,
                nodes,
                plan,
                services.Censor(
                    rules=tuple(self.rules),
                    eve=self.eve_path,
                    pcap=self._pcap,
                    seed=self.seed,
                    time_scale=self.time_scale,
                    start_time=self.start_time,
                    options=self._daemon_options,
                ),
            ),
            owner=0 if self.name else os.getpid(),
            seed=self.seed or 0,
            offloads=self.topology.offloads,
            ipv6=ipv6,
            authority=services.authority(directory) if plan else "",
            labels={"eve": str(self.eve_path), **self._labels} if self.rules else self._labels,
        )
        environment = {**mounts.bundle_environment(blueprint), "GFWEMU_LAB": str(services.plan_directory(directory))}
        return replace(blueprint, environment=environment)

    def _launch(self, blueprint: Blueprint) -> None:
        """Start the supervisor and wait for its report."""
        reader, writer = os.pipe()
        path = os.environ.get("PYTHONPATH")
        environment = {**os.environ, "PYTHONPATH": f"{_PACKAGE_ROOT}:{path}" if path else _PACKAGE_ROOT}
        log_path = Path(blueprint.directory, "supervisor.log")
        with os.fdopen(reader, "rb") as report, log_path.open("wb") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-P", "-m", "gfwemu.netlab.supervisor", str(writer)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=[writer],
                start_new_session=True,
            )
            os.close(writer)
            assert self._supervisor.stdin is not None
            with self._supervisor.stdin as stdin:
                pickle.dump(blueprint, stdin)
            _await_report(report, log_path)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No signal handler of ours may raise in here: a directory would stay that nobody knows of."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _absolute(path: str | os.PathLike[str]) -> Path:
    """Without following links: what they lead to may change."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _await_report(report: Any, log_path: Path) -> None:
    """Raises what the supervisor reports."""
    deadline = time.monotonic() + _START_DEADLINE
    if not select.select([report], [], [], max(0.0, deadline - time.monotonic()))[0]:
        raise LabError(f"The lab was not up within {_START_DEADLINE:g} s.")
    line = report.readline()
    if not line:
        tail = log_path.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-1]
        raise LabError(f"The lab's supervisor ended unexpectedly: {tail or 'it left no message'}")
    said = json.loads(line)
    if said["ready"]:
        return
    if said["exit_code"] == CapabilityError.exit_code and not said["service"]:
        raise CapabilityError(said["message"])
    raise LabError(said["message"], exit_code=said["exit_code"], service=said["service"])
