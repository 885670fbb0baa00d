"""The init of a lab: PID 1 of its PID namespace. It builds the nodes, starts the services, and waits.

When it ends, however it ends, the kernel kills everything that runs in the lab, and the namespaces go with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gfwemu.errors import CapabilityError, RulesError
from gfwemu.netlab import build, mounts, netem, syscalls
from gfwemu.netlab.blueprint import Blueprint, Hook, Node, Service
from gfwemu.netlab.errors import LabError
from gfwemu.netlab.rundir import write_state
from gfwemu.netlab.wakeup import Wakeup

_HOLDER_DEADLINE = 10.0
_EXIT_DEADLINE = 2.0
_LOG_LINES = 5
# Exit codes of services that have said all in one sentence.
_TELLING = (RulesError.exit_code, CapabilityError.exit_code)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that keeps a node's namespaces: its number in here, and the one that the outside knows it by."""

    pid: int
    outer_pid: int
    network: int
    mounts: int


@dataclass(slots=True)
class Running:
    """A service or a node's shaper; `ready` is its readiness pipe, -1 once read."""

    name: str
    pid: int
    ready: int
    deadline: float
    stop_deadline: float = 0.0
    status: int | None = None

    @property
    def state(self) -> str:
        if self.status is None:
            return "running"
        if os.WIFSIGNALED(self.status):
            return f"killed by {signal.Signals(os.WTERMSIG(self.status)).name}"
        return f"exited with {os.waitstatus_to_exitcode(self.status)}"


class Init:
    """One lab from its first node to its end."""

    def __init__(self, blueprint: Blueprint, outer: Mapping[str, Any], *, in_user_namespace: bool) -> None:
        self._blueprint = blueprint
        self._outer = outer
        self._in_user_namespace = in_user_namespace
        self._holders: dict[str, Holder] = {}
        self._running: list[Running] = []
        self._netem = False
        self._wakeup = Wakeup((signal.SIGTERM, signal.SIGCHLD))

    def start(self) -> None:
        """Build everything and wait until it is ready. Raises GfwemuError."""
        syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
        mounts.write_files(self._blueprint)
        for node in self._blueprint.nodes:
            self._holders[node.name] = self._hold(node)
        _own_proc()
        self._build()
        for node in self._blueprint.nodes:
            self._start_shaper(node)
        for service in self._blueprint.services:
            self._start_service(service)
        for running in self._running:
            self._await_ready(running)
        if self._blueprint.authority:
            _copy(Path(self._blueprint.authority), mounts.bundle_path(self._blueprint))
        self._publish()

    def serve(self) -> None:
        """Reap, note which service died, until somebody asks for the end; then stop the services in their order."""
        while not self._wakeup.wait(None) & {signal.SIGTERM}:
            if self._reap():
                self._publish()
        for running in self._running:
            if running.stop_deadline and running.status is None:
                self._stop(running)

    # Nodes

    def _hold(self, node: Node) -> Holder:
        """Fork a process into new network and mount namespaces; the machine's /proc still tells its outer number."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _in_child(lambda: self._be_holder(node, writer))
        os.close(writer)
        answer = _read_until_end(reader, _HOLDER_DEADLINE)
        kind, _, text = answer.partition(" ")
        if kind != "held":
            raise CapabilityError(text or f"The holder of the lab's {node.name} did not start.")
        network, mount = text.split("\n")[1:3]
        return Holder(pid, int(text.split("\n")[0]), _open(network), _open(mount))

    def _be_holder(self, node: Node, writer: int) -> NoReturn:
        syscalls.set_process_name(f"lab:{node.name}")
        outer = str(Path("/proc/self").readlink())
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
            mounts.cover(self._blueprint, node)
            _own_proc()
            answer = f"held {outer}\n/proc/{outer}/ns/net\n/proc/{outer}/ns/mnt"
        except CapabilityError as error:
            answer = f"failed {error}"
        except OSError as error:
            answer = f"failed The lab's {node.name} cannot have namespaces of its own: {error.strerror}."
        os.write(writer, answer.encode())
        os.close(writer)
        while True:
            signal.pause()

    def _build(self) -> None:
        blueprint = self._blueprint
        environment = {"XTABLES_LOCKFILE": str(Path(blueprint.directory, "xtables.lock"))}
        for node in blueprint.nodes:
            with build.inside(self._holders[node.name].network):
                build.set_sysctls(node, ipv6=blueprint.ipv6, everybody_may_ping=not self._in_user_namespace)
        with build.inside(self._holders[blueprint.nodes[0].name].network):
            self._netem = any(node.hooks for node in blueprint.nodes) and netem.netem_works()
        neighbours = [*blueprint.nodes[1:], None]
        for node, neighbour in zip(blueprint.nodes, neighbours, strict=True):
            with build.inside(self._holders[node.name].network):
                build.connect(node, neighbour, self._holders[neighbour.name].pid if neighbour else 0)
                hooks = self._hooks_in_user_space(node)
                build.mangle(node, hooks, ipv6=blueprint.ipv6, environment=environment)
                for end in (node.left, node.right):
                    if end is not None and not blueprint.offloads:
                        syscalls.offloads_off(end.name)

        if self._netem:
            for node in blueprint.nodes:
                with build.inside(self._holders[node.name].network):
                    netem.lay(node, blueprint)

    def _hooks_in_user_space(self, node: Node) -> list[Hook]:
        return [hook for hook in node.hooks if not (self._netem and netem.suits(hook))]

    # Services

    def _start_shaper(self, node: Node) -> None:
        hooks = self._hooks_in_user_space(node)
        if not hooks:
            return
        from gfwemu.netlab.shaper import shape

        holder = self._holders[node.name]

        def run(writer: int) -> None:
            syscalls.set_process_name(f"shaper:{node.name}")
            syscalls.setns(holder.network)
            numbered = [(number, hook.pipe) for number, hook in enumerate(hooks, 1)]
            shape(numbered, self._blueprint.seed, lambda: _announce(writer))

        self._running.append(self._spawn(f"shaper-{node.name}", run, _HOLDER_DEADLINE))

    def _start_service(self, service: Service) -> None:
        holder = self._holders[service.node]

        def run(writer: int) -> None:
            syscalls.setns(holder.network)
            syscalls.setns(holder.mounts)
            os.set_inheritable(writer, True)
            argv = [*service.argv, str(writer)]
            os.execvpe(argv[0], argv, {**os.environ, **self._blueprint.environment})

        running = self._spawn(service.name, run, service.deadline)
        running.stop_deadline = service.stop_deadline
        self._running.append(running)

    def _spawn(self, name: str, run: Callable[[int], None], deadline: float) -> Running:
        reader, writer = os.pipe()
        log = os.open(self._log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        pid = os.fork()
        if pid == 0:
            os.close(reader)

            def body() -> None:
                os.setsid()
                os.dup2(log, 1)
                os.dup2(log, 2)
                run(writer)

            _in_child(body)
        os.close(log)
        os.close(writer)
        return Running(name, pid, reader, time.monotonic() + deadline)

    def _log(self, name: str) -> Path:
        return Path(self._blueprint.directory, f"{name}.log")

    def _await_ready(self, running: Running) -> None:
        """Raises LabError with what the service said."""
        left = max(0.0, running.deadline - time.monotonic())
        ready, _, _ = select.select([running.ready], [], [], left)
        said_so = bool(ready) and os.read(running.ready, 1) != b""
        os.close(running.ready)
        running.ready = -1
        if said_so:
            return
        what = "was not ready in time"
        ended = bool(ready) and self._ended(running)
        log = self._log(running.name).read_text(encoding="utf-8", errors="replace").strip()
        if ended:
            what = f"{running.state} before it was ready"
            code = os.waitstatus_to_exitcode(running.status or 0)
            if code in _TELLING:
                raise LabError(log.removeprefix("gfwemu: "), exit_code=code, service=running.name)
        tail = "\n".join([line for line in log.split("\n") if line][-_LOG_LINES:])
        raise LabError(
            f"The lab's {running.name} {what}." + (f" It said:\n{tail}" if tail else ""), service=running.name
        )

    def _ended(self, running: Running) -> bool:
        """Wait a moment for a process whose readiness pipe is closed."""
        deadline = time.monotonic() + _EXIT_DEADLINE
        while running.status is None and time.monotonic() < deadline:
            self._wakeup.wait(deadline - time.monotonic())
            self._reap()
        return running.status is not None

    def _stop(self, running: Running) -> None:
        deadline = time.monotonic() + running.stop_deadline
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGTERM)
        while running.status is None and time.monotonic() < deadline:
            self._wakeup.wait(deadline - time.monotonic())
            self._reap()

    def _reap(self) -> bool:
        """Collect every dead child, orphans of the lab's programs included. True where a service was among them."""
        changed = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return changed
            if not pid:
                return changed
            for running in self._running:
                if running.pid == pid:
                    running.status = status
                    changed = True

    def _publish(self) -> None:
        blueprint = self._blueprint
        nodes = {
            node.name: {"pid": self._holders[node.name].outer_pid, "addresses": list(node.addresses)}
            for node in blueprint.nodes
        }
        services = {running.name: {"pid": running.pid, "state": running.state} for running in self._running}
        state = {
            **self._outer,
            "environment": blueprint.environment,
            "labels": blueprint.labels,
            "user_namespace": self._in_user_namespace,
            "nodes": nodes,
            "services": services,
        }
        write_state(Path(blueprint.directory), state)


def _own_proc() -> None:
    """Show the lab's processes only. A container with a masked /proc forbids it; everything else works without."""
    with contextlib.suppress(OSError):
        syscalls.mount("proc", "/proc", "proc", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)


def _in_child(body: Callable[[], None]) -> NoReturn:
    """The whole life of a forked child: it never returns into its parent's code."""
    try:
        syscalls.die_with_parent(signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        body()
    except BaseException as error:
        print(f"gfwemu: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def _announce(writer: int) -> None:
    os.write(writer, b"1")
    os.close(writer)


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _read_until_end(fd: int, deadline: float) -> str:
    """All text of a pipe; what came until `deadline` seconds are over."""
    end = time.monotonic() + deadline
    collected = b""
    try:
        while select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            part = os.read(fd, 65536)
            if not part:
                break
            collected += part
    finally:
        os.close(fd)
    return collected.decode(errors="replace")


def _copy(source: Path, target: Path) -> None:
    """Fill the target's own inode: it is mounted in other places."""
    try:
        target.write_bytes(source.read_bytes())
    except OSError as error:
        raise LabError(f"The lab's authority {source} cannot be read: {error.strerror}.") from None
