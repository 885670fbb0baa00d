"""A lab that runs, seen from outside: its state, and programs on its nodes."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gfwemu.errors import UsageError
from gfwemu.netlab import enter, rundir
from gfwemu.netlab.errors import LabError
from gfwemu.netlab.identity import Identity, invoking_user

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
# They name a proxy of the outside, which nothing inside can reach.
_PROXIES = {"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"}


class Attached:
    """A running lab. Raises LabError where there is none in `directory`."""

    def __init__(self, directory: Path) -> None:
        state = rundir.read_state(directory)
        if state is None or not rundir.lives(directory):
            raise LabError(f"There is no running lab in {directory}.")
        self.directory = directory
        self.state: dict[str, Any] = state

    @property
    def environment(self) -> dict[str, str]:
        """The variables that programs inside get on top of their own."""
        return dict(self.state["environment"])

    @property
    def process(self) -> rundir.Process:
        return rundir.Process(int(self.state["pid"]), int(self.state["started"]))

    def refresh(self) -> None:
        """Read the state again: a service may have ended."""
        self.state = rundir.read_state(self.directory) or self.state

    def node(self, name: str) -> dict[str, Any]:
        """Raises UsageError."""
        nodes: dict[str, dict[str, Any]] = self.state["nodes"]
        if name not in nodes:
            near = difflib.get_close_matches(name, nodes, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"the nodes are {', '.join(nodes)}."
            raise UsageError(f"The lab has no node '{name}'; {hint}")
        return nodes[name]

    def popen(
        self,
        node: str,
        argv: Sequence[str | os.PathLike[str]],
        *,
        as_root: bool = False,
        terminal: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: Identity | None = None,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """Start a program on a node; `options` go to subprocess.Popen.

        It runs as `user`, by default who called us, or as the lab's root. `env` is added to our environment and the
        lab's. `terminal`: the program gets a process group of its own and the terminal on stdin. The process that
        comes back passes signals on, and ends as the program ends.
        """
        if not argv:
            raise UsageError("Say which program to run.")
        order = {
            "pid": self.node(node)["pid"],
            "user": self.state["user_namespace"],
            "terminal": terminal,
            "cwd": os.fspath(cwd) if cwd is not None else _current_directory(),
            "argv": [os.fspath(part) for part in argv],
            **self._identify(user or invoking_user(), as_root),
        }
        command = [sys.executable, "-I", "-S", "-c", enter.BOOT, _PACKAGE_ROOT, json.dumps(order)]
        return subprocess.Popen(command, env=self._environ(user, as_root, env), **options)

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
        """Run a program on a node to its end. Raises subprocess.TimeoutExpired and kills its process group."""
        process = self.popen(
            node,
            argv,
            as_root=as_root,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(input, timeout)
        except subprocess.TimeoutExpired as late:
            _kill_group(process)
            late.stdout, late.stderr = process.communicate()
            raise
        except BaseException:
            _kill_group(process)
            process.wait()
            raise
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def signal_service(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a service. Raises LabError where it does not run."""
        self.refresh()
        service = self.state["services"].get(name)
        if service is None or service["state"] != "running":
            ended = f"The lab's {name} {service['state']}." if service else f"The lab runs no {name}."
            raise LabError(ended)
        done = self.exec("access", ["kill", f"-{int(number)}", str(service["pid"])], timeout=10, as_root=True)
        if done.returncode:
            raise LabError(f"Cannot signal the lab's {name}: {done.stderr.decode(errors='replace').strip()}")

    def _identify(self, user: Identity, as_root: bool) -> dict[str, Any]:
        root = as_root or user.uid == 0
        mapped = bool(self.state["user_namespace"])
        return {
            "maps": mapped and not root,
            "uid": None if root else user.uid,
            "gid": None if root else user.gid,
            "groups": [] if root or mapped else list(user.groups),
        }

    def _environ(self, user: Identity | None, as_root: bool, env: Mapping[str, str] | None) -> dict[str, str]:
        """Ours without proxies, then the lab's, then the caller's."""
        result = {name: value for name, value in os.environ.items() if name.lower() not in _PROXIES}
        who = user or invoking_user()
        if not as_root and who.uid != os.geteuid():
            result |= who.environment
        return {**result, **self.environment, **(env or {})}


def end_supervisor(process: rundir.Process, deadline: float) -> None:
    """Ask a lab's supervisor to end, wait, and kill it after `deadline` seconds."""
    try:
        watched = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if not process.alive:
            return
        for number, patience in ((signal.SIGTERM, deadline), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(watched, number)
            end = time.monotonic() + patience
            while process.alive and time.monotonic() < end:
                # A zombie's pidfd stays readable until its parent reaps it, so this does not spin.
                if _readable(watched, end - time.monotonic()):
                    return
    finally:
        os.close(watched)


def _readable(fd: int, timeout: float) -> bool:
    import select

    return bool(select.select([fd], [], [], max(0.0, timeout))[0])


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _current_directory() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return "/"
