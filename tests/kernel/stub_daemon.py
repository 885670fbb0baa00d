"""The real daemon around an engine that a test writes, in a process of its own."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from kernel_net import INSIDE, OUTSIDE

from gfwemu.daemon import Daemon, DaemonOptions, Parts, Post
from gfwemu.engine.commands import Command, SetVerdict
from gfwemu.engine.events import Event, PacketArrived
from gfwemu.kernel.table import RuleCounter
from gfwemu.model import Side, Verdict
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.plan import KernelPlan

Answer = Callable[[PacketArrived], list[Command]]


def accept(event: PacketArrived) -> list[Command]:
    return [SetVerdict(event.packet_id, Verdict.ACCEPT)]


def drop(event: PacketArrived) -> list[Command]:
    return [SetVerdict(event.packet_id, Verdict.DROP)]


def offload_accept(event: PacketArrived) -> list[Command]:
    return [SetVerdict(event.packet_id, Verdict.ACCEPT, offload=True)]


class StubEngine:
    """Answers packets as told, and writes each one to a log that the test reads; other events get no answer."""

    flow_count = 0

    def __init__(self, log: int, answer: Answer, other: Callable[[Event], list[Command]] | None = None) -> None:
        self._log = log
        self._answer = answer
        self._other = other

    def handle(self, event: Event) -> list[Command]:
        if isinstance(event, PacketArrived):
            side = event.came_from.value if event.came_from else "?"
            os.write(self._log, f"{side} {event.data.hex()}\n".encode())
            return self._answer(event)
        return self._other(event) if self._other else []


class SilentOutputs:
    """Writes to the same log what else there is to see."""

    takes_all = False

    def __init__(self, log: int) -> None:
        self._log = log

    def commanded(self, command: Command, now: float, data: bytes, came_from: Side | None) -> None:
        os.write(self._log, f"# {command}\n".replace("\\n", " ").encode())

    def kernel_rules(self, now: float, counters: Sequence[RuleCounter], rules: RuleSet) -> None:
        for counter in counters:
            os.write(self._log, f"# {counter.name} {counter.verdict} {counter.packets}\n".encode())

    def heartbeat(self, *_: Any) -> None:
        pass

    def reloaded(self, now: float) -> None:
        os.write(self._log, b"# reloaded\n")

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def in_worker(self, post: Post) -> SilentOutputs:
        return self

    def absorb(self, worker: int, channel: str, data: bytes) -> None:
        pass


class StubDaemon:
    """Started when made. `plan` may be a function that is asked anew at each reload."""

    def __init__(
        self,
        answer: Answer,
        plan: KernelPlan | Callable[[], KernelPlan] | None = None,
        *,
        rules: RuleSet | None = None,
        other: Callable[[Event], list[Command]] | None = None,
        **options: Any,
    ) -> None:
        made = plan if plan is not None else KernelPlan()
        self._log = os.memfd_create("log")
        ready, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(ready)
            status = 1
            try:
                parts = Parts(
                    load=lambda: rules or RuleSet(()),
                    plan=lambda _: made() if callable(made) else made,
                    engine=lambda _rules, _worker: StubEngine(self._log, answer, other),
                )
                wanted = DaemonOptions(INSIDE, OUTSIDE, ready_fd=writer, **options)
                Daemon(wanted, parts, SilentOutputs(self._log)).run()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writer)
        assert os.read(ready, 1) == b"\n", "the daemon did not start"
        os.close(ready)

    def _lines(self) -> list[str]:
        size = os.fstat(self._log).st_size
        return os.pread(self._log, size, 0).decode().splitlines()

    def packets(self) -> list[tuple[str, bytes]]:
        """Side and bytes of every packet that reached user space."""
        parts = [line.split() for line in self._lines() if not line.startswith("#")]
        return [(side, bytes.fromhex(text)) for side, text in parts]

    def notes(self) -> list[str]:
        return [line[2:] for line in self._lines() if line.startswith("#")]

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def stop(self) -> None:
        self.signal(signal.SIGTERM)
        assert self.wait() == 0

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL
