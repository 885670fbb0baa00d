"""The real daemon and engine, under rules and a clock that a test sets from outside."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import struct
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kernel_net import INSIDE, OUTSIDE, wait_until
from stub_daemon import SilentOutputs

from gfwemu.daemon import Daemon, DaemonOptions, Parts
from gfwemu.engine.commands import Command, Report
from gfwemu.engine.engine import Engine
from gfwemu.engine.events import Event, RulesReplaced
from gfwemu.engine.records import RuleHit
from gfwemu.kernel.table import RuleCounter
from gfwemu.model import Side
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.plan import compile_plan

Hit = tuple[str, str, str]
_SHARED = struct.Struct("d?")


class _Engine:
    """An engine that lives by the shared clock, and is a new one where the shared flag says so."""

    def __init__(self, shared: mmap.mmap, log: int) -> None:
        self._shared = shared
        self._log = log
        self._engine = Engine(RuleSet(()))

    @property
    def flow_count(self) -> int:
        return self._engine.flow_count

    def handle(self, event: Event) -> list[Command]:
        now, anew = _SHARED.unpack_from(self._shared)
        if isinstance(event, RulesReplaced) and anew:
            self._engine = Engine(event.rules, seed=4)
            return []
        return self._engine.handle(replace(event, now=now))


class _Hits(SilentOutputs):
    def commanded(self, command: Command, now: float, data: bytes, came_from: Side | None) -> None:
        if isinstance(command, Report) and isinstance(command.record, RuleHit):
            record = command.record
            os.write(self._log, f"hit {record.rule}|{record.flow.tuple}|{record.direction.value}\n".encode())

    def kernel_rules(self, now: float, counters: Sequence[RuleCounter], rules: RuleSet) -> None:
        pass


class RandomDaemon:
    """Started when made, without any rule. `rules_of` makes rules from what `load` is given."""

    START = 1000.0
    """As the engine beside it begins (KernelModel)."""

    def __init__(self, rules_of: Callable[[tuple[int, ...]], RuleSet], directory: Path) -> None:
        self.now = self.START
        self._shared = mmap.mmap(-1, _SHARED.size)
        self._wanted = directory / "wanted"
        self._log = os.memfd_create("log")
        self._read = self._heard = 0
        self._reloads = 0
        self._told: list[str] = []
        self._write((), anew=True)
        ready, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(ready)
                parts = Parts(
                    load=lambda: rules_of(pickle.loads(self._wanted.read_bytes())),
                    plan=compile_plan,
                    engine=lambda _rules, _worker: _Engine(self._shared, self._log),
                )
                options = DaemonOptions(INSIDE, OUTSIDE, ready_fd=writer)
                Daemon(options, parts, _Hits(self._log)).run()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writer)
        assert os.read(ready, 1) == b"\n", "the daemon did not start"
        os.close(ready)

    def load(self, what: tuple[int, ...], *, anew: bool) -> None:
        """Has the rules of `what` in force; `anew`: in an engine that remembers nothing."""
        self._write(what, anew=anew)
        self._reloads += 1
        os.kill(self.pid, signal.SIGHUP)
        wait_until(lambda: self._lines().count("# reloaded") == self._reloads, "the reload")

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        _SHARED.pack_into(self._shared, 0, self.now, False)

    def hits(self) -> list[Hit]:
        """Of user space, in order, since it was last asked."""
        lines = self._lines()
        found = [line[4:].split("|") for line in lines[self._heard :] if line.startswith("hit ")]
        self._heard = len(lines)
        return [(rule, flow, direction) for rule, flow, direction in found]

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == 0

    def _write(self, what: tuple[int, ...], *, anew: bool) -> None:
        self._wanted.write_bytes(pickle.dumps(what))
        _SHARED.pack_into(self._shared, 0, self.now, anew)

    def _lines(self) -> list[str]:
        size = os.fstat(self._log).st_size
        text = os.pread(self._log, size - self._read, self._read).decode()
        self._read = size
        self._told += text.splitlines()
        return self._told
