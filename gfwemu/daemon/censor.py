"""From the kernel's queue to the engine, and from the engine's commands to the kernel."""

from __future__ import annotations

import gc
import select
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from gfwemu.daemon.clock import now as clock
from gfwemu.daemon.parts import DaemonOptions, Decider, Health, Outputs, Prober
from gfwemu.engine.commands import Command, Hold, Inject, Report, SendProbes, SetTimer, SetVerdict, Watch
from gfwemu.engine.events import Event, PacketArrived, RulesReplaced, Stopping, TimerFired
from gfwemu.engine.records import EngineFault
from gfwemu.kernel.inject import Injector
from gfwemu.kernel.queue import PacketQueue, QueueOptions, bulk_queue, queue_losses
from gfwemu.kernel.table import Table
from gfwemu.model import Side, Verdict
from gfwemu.rules.compiled import RuleSet

_BATCH = 64
"""Packets read before timers and signals get their turn."""

_YOUNG_OBJECTS = 20_000
"""New objects before the garbage collector looks at them: Python's 700 would be a look at every tenth packet."""

_IDLE_PACKETS = 100
"""In one heartbeat. So few mean that there is time for the collector to look at everything."""

_FULL_COLLECTION = 60
"""Heartbeats between two full collections, at least."""


# A member of an enumeration is slow to reach, and there are many packets.
_ACCEPT = Verdict.ACCEPT


class Censor:
    """One queue, one engine, one injector. `loop` decides packets until `stop` is called."""

    def __init__(
        self,
        number: int,
        options: DaemonOptions,
        rules: RuleSet,
        engine: Decider,
        widened: Callable[[Any, RuleSet], Decider],
        table: Table,
        outputs: Outputs,
        *,
        fail_open: bool,
        prober: Callable[[RuleSet], Prober | None] = lambda _: None,
    ) -> None:
        """number: of the queue. table: for watches only. Raises CapabilityError."""
        self._number = number
        self._options = options
        self._rules = rules
        self._engine = engine
        self._widened = widened
        self._table = table
        self._outputs = outputs
        self.output = Outlet()
        self._timer_at: float | None = None
        self._stop = False
        self._waiting: dict[int, tuple[bytes, Side | None]] = {}
        self._packets = self._packets_then = 0
        self._beats = 0
        self._injector = Injector()
        self._new_prober = prober
        self._prober = prober(rules)
        self._queue = PacketQueue(
            number, (options.inside, options.outside), self._receive, self._queue_options(rules, fail_open)
        )

    def _queue_options(self, rules: RuleSet, fail_open: bool) -> QueueOptions:
        options = self._options
        return QueueOptions(rules.hold_packets + options.queue_length, options.queue_buffer, fail_open)

    # -- the loop -----------------------------------------------------------------------------------------------

    def loop(self, fd: int, called: Callable[[], None], beat: Callable[[float], None], interval: float) -> None:
        """Until `stop`. `called` when there is something to read from `fd`, `beat` at every interval (seconds)."""
        queue = self._queue
        queue_fd, bulk_fd = queue.filenos()
        fds = [queue_fd, bulk_fd, fd]
        now = clock()
        next_beat = now + interval
        while not self._stop:
            due = next_beat if self._timer_at is None else min(next_beat, self._timer_at)
            prober_fds = [] if self._prober is None else [self._prober.fileno()]
            # select rather than epoll: its timeout counts microseconds, and forged packets leave on time.
            wait = 0.0 if queue.backlog else max(0.0, due - now)
            ready, _, _ = select.select(fds + prober_fds, [], [], wait)
            if fd in ready:
                called()
            for prober_fd in prober_fds:
                if prober_fd in ready:
                    self._probed()
            bulk = bulk_fd in ready
            count = queue.read(_BATCH, bulk=bulk) if bulk or queue_fd in ready or queue.backlog else 0
            self._packets += count
            if count < _BATCH:
                # Who sees what became of a packet finds it in the log.
                self._let_out()
            queue.flush()
            now = clock()
            if now >= next_beat:
                next_beat = now + interval
                self._timer_at = now
                beat(now)
                self._collect_garbage()
            if self._timer_at is not None and now >= self._timer_at:
                self._timer_at = None
                self._perform(self._decide(TimerFired(now)), now)
                self._let_out()
                queue.flush()

    def stop(self) -> None:
        self._stop = True

    def replace(self, rules: RuleSet, fail_open: bool) -> None:
        """To be called with the table replaced, before any other packet is decided."""
        now = clock()
        self._queue.configure(self._queue_options(rules, fail_open))
        self._rules = rules
        self._engine = self._widened(self._engine, rules)
        self._prober = self._prober or self._new_prober(rules)
        self._perform(self._decide(RulesReplaced(rules, now)), now)
        self._queue.flush()

    def drain(self) -> None:
        """Every packet that waits gets its verdict. The table queues nothing any more by then."""
        while self._queue.read(_BATCH):
            pass
        now = clock()
        self._perform(self._decide(Stopping(now)), now)
        for packet_id in self._queue.open_packets():
            self._apply_on_error(packet_id)
        self._queue.flush()

    def close(self) -> None:
        self._queue.close()
        self._injector.close()
        if self._prober is not None:
            self._prober.close()

    def health(self) -> Health:
        losses = queue_losses()
        own = [losses[number] for number in (self._number, bulk_queue(self._number)) if number in losses]
        return Health(
            self._packets,
            self._engine.flow_count,
            sum(one.full_queue for one in own),
            sum(one.full_socket for one in own),
            self._queue.overruns,
        )

    def losses(self) -> list[str]:
        """What could not be done, in words."""
        return [
            f"{what}: {count}"
            for what, count in (
                ("messages of the full queue socket", self._queue.overruns),
                ("residual blocks that the kernel's full sets did not take", self._table.watches_refused),
                *((f"forged packets not sent: {reason}", count) for reason, count in self._injector.failed.items()),
            )
            if count
        ]

    def _collect_garbage(self) -> None:
        """All of it where there is time; while packets come, a look at a hundred thousand flows would be felt."""
        self._beats += 1
        fresh, self._packets_then = self._packets - self._packets_then, self._packets
        if fresh < _IDLE_PACKETS and self._beats >= _FULL_COLLECTION:
            self._beats = 0
            gc.collect()

    # -- packets ------------------------------------------------------------------------------------------------

    def _receive(self, packet_id: int, data: bytes, came_from: Side | None, length: int) -> None:
        now = clock()
        if self._outputs.takes_all:
            self._waiting[packet_id] = (data, came_from)
        # Here and in `_decide` a bug in deciding is caught. No packet is lost to it: `on_error` is applied.
        try:
            commands = self._engine.handle(PacketArrived(packet_id, data, now, came_from, None, length))
        except Exception:
            self._fault(now, traceback.format_exc())
        else:
            held = self._perform(commands, now)
            if packet_id in held or not self._queue.is_open(packet_id):
                return
            self._fault(now, "the engine gave no verdict")
        self._apply_on_error(packet_id)

    def _decide(self, event: Event) -> list[Command]:
        """What is to be done about anything but a packet."""
        try:
            return self._engine.handle(event)
        except Exception:
            self._fault(event.now, traceback.format_exc())
            # A timer that failed may have been what held packets were waiting for.
            for held in self._queue.open_packets():
                self._apply_on_error(held)
            return []

    def _perform(self, commands: Iterable[Command], now: float) -> tuple[int, ...]:
        """Performs commands in order; returns which packets are to wait."""
        held: tuple[int, ...] = ()
        queue = self._queue
        tells = self._outputs.takes_all
        for command in commands:
            if isinstance(command, SetVerdict):
                if command.verdict is _ACCEPT:
                    queue.accept(
                        command.packet_id,
                        command.data,
                        offload=command.offload,
                        bulk=command.bulk,
                        queue_all=command.queue_all,
                        spare_answers=command.spare_answers,
                    )
                else:
                    queue.drop(command.packet_id, offload=command.offload, queue_all=command.queue_all)
            elif isinstance(command, Report):
                self.output(self._outputs.commanded, command, now, b"", None)
            elif isinstance(command, Inject):
                # What was accepted before leaves before.
                queue.then(partial(self._inject, command.data))
            elif isinstance(command, SetTimer):
                self._timer_at = command.at
            elif isinstance(command, Hold):
                held += (command.packet_id,)
            elif isinstance(command, Watch):
                self._watch(command)
            elif isinstance(command, SendProbes):
                self._order_probes(command)
            if tells:
                self._tell(command, now)
        return held

    def _inject(self, data: bytes) -> None:
        """Who sees what was injected finds it in the log."""
        self._let_out()
        self._injector.send(data)

    def _let_out(self) -> None:
        """Nothing that was told waits any more for being written."""
        if self.output.used:
            self.output(self._outputs.flush)
            self.output.used = False

    def _tell(self, command: Command, now: float) -> None:
        data, came_from = b"", None
        if isinstance(command, SetVerdict):
            data, came_from = self._waiting.pop(command.packet_id, (b"", None))
        if not isinstance(command, Report):
            self.output(self._outputs.commanded, command, now, data, came_from)

    def _watch(self, watch: Watch) -> None:
        try:
            self._table.watch(
                watch.client, watch.server, watch.proto, watch.server_port, watch.client_port, watch.seconds
            )
        except OSError as error:
            say(f"a residual block cannot be watched in the kernel: {error}")

    def _order_probes(self, command: SendProbes) -> None:
        if self._prober is None:
            return
        try:
            self._prober.order(command)
        except OSError as error:
            say(f"no probes for the rule '{command.rule}': {error}")

    def _probed(self) -> None:
        now, prober = clock(), self._prober
        assert prober is not None
        finished, said = prober.read(now)
        for text in said:
            say(text)
        for event in finished:
            self._perform(self._decide(event), now)
        if prober.broken:
            say("the prober's process ended: no more probes are sent until the rules are loaded anew")
            prober.close()
            self._prober = None

    def _apply_on_error(self, packet_id: int) -> None:
        if not self._queue.is_open(packet_id):
            return
        self._perform([SetVerdict(packet_id, Verdict(self._rules.on_error), reason="on_error")], clock())

    def _fault(self, now: float, error: str) -> None:
        say(f"the engine failed, and its `on_error` was applied; please report this:\n{error}")
        self._perform([Report(EngineFault(now, error))], now)


class Outlet:
    """Calls the outputs. A full disk ends the telling, never the deciding."""

    def __init__(self) -> None:
        self._broken = False
        self.used = False
        """Whether anything was told since somebody set this to False."""

    def __call__(self, method: Callable[..., None], *arguments: object) -> None:
        self.used = True
        if self._broken:
            return
        try:
            method(*arguments)
        except OSError as error:
            self._broken = True
            say(f"nothing more is written: {error}")


def say(text: str) -> None:
    with suppress(OSError):
        print(f"gfwemu: {text}", file=sys.stderr, flush=True)


def settle_garbage() -> None:
    """Rules live long and are many: the collector need not look at them between packets."""
    gc.set_threshold(_YOUNG_OBJECTS, 50, 1_000_000)
    gc.unfreeze()
    gc.collect()
    gc.freeze()
