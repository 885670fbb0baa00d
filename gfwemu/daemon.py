"""The live censor: packets from the kernel's queue to the engine, the engine's commands to the kernel."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from gfwemu.engine.commands import Command, Hold, Inject, Report, SetTimer, SetVerdict, Watch
from gfwemu.engine.events import Event, PacketArrived, RulesReplaced, Stopping, TimerFired
from gfwemu.engine.records import EngineFault
from gfwemu.errors import CapabilityError, GfwemuError, UsageError
from gfwemu.kernel import systemd
from gfwemu.kernel.host import check_forwarding, check_interfaces
from gfwemu.kernel.inject import Injector
from gfwemu.kernel.nft import Nft, NftError
from gfwemu.kernel.queue import PacketQueue
from gfwemu.kernel.ruleset import Ends, Lifetimes
from gfwemu.kernel.table import DEFAULT_QUEUE, RuleCounter, Table
from gfwemu.model import Side, Verdict
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.plan import KernelPlan

_BATCH = 64
"""Packets read before timers and signals get their turn."""

_HEARTBEAT = 1.0
_SPARE_QUEUE = 4096
"""Packets that may wait in the kernel beside those that the engine holds. Our choice."""


class Decider(Protocol):
    """The engine, or what stands in for it."""

    @property
    def flow_count(self) -> int: ...

    def handle(self, event: Event) -> list[Command]: ...


class Outputs(Protocol):
    """Where the daemon tells what it does. OSError comes out of every method."""

    takes_all: bool
    """Whether `commanded` is called for every command, or for `Report` only."""

    def commanded(self, command: Command, now: float, data: bytes, came_from: Side | None) -> None:
        """Every command in order. `data` and `came_from` are of the packet that a SetVerdict decides."""
        ...

    def kernel_rules(self, now: float, counters: Sequence[RuleCounter], rules: RuleSet) -> None:
        """The last counters of a kernel plan, before it is replaced or removed."""
        ...

    def heartbeat(
        self, now: float, flows: int, queue_dropped: int, counters: Sequence[RuleCounter], rules: RuleSet
    ) -> None:
        """About once a second. flows: that the engine remembers now."""
        ...

    def reloaded(self, now: float) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """kernel_decides False: user space sees every packet, and no flow is left to the kernel."""

    inside: str
    outside: str
    queue: int = DEFAULT_QUEUE
    kernel_decides: bool = True
    time_scale: float = 1.0
    pid_file: Path | None = None
    ready_fd: int | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """How to load rules, to plan for the kernel, and to make an engine."""

    load: Callable[[], RuleSet]
    plan: Callable[[RuleSet], KernelPlan]
    engine: Callable[[RuleSet], Decider]
    widened: Callable[[Any, RuleSet], Decider] = lambda engine, _: engine
    """The engine, able to take these rules in the place of its own."""


class Daemon:
    """`run` works until SIGTERM or SIGINT; SIGHUP loads the rules anew."""

    def __init__(self, options: DaemonOptions, parts: Parts, outputs: Outputs) -> None:
        self._options = options
        self._parts = parts
        self._outputs = outputs
        self._timer_at: float | None = None
        self._stop = False
        self._reload = False
        self._loader: threading.Thread | None = None
        self._loaded: RuleSet | GfwemuError | None = None
        self._clock_offset = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self._outputs_broken = False
        self._waiting: dict[int, tuple[bytes, Side | None]] = {}
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)

    def run(self) -> None:
        """Raises GfwemuError where it cannot start; leaves nothing behind in the kernel."""
        options = self._options
        check_interfaces(options.inside, options.outside)
        notes = check_forwarding()
        self._rules = self._parts.load()
        self._engine = self._parts.engine(self._rules)
        self._handle_signals()
        self._open_kernel()
        try:
            if options.pid_file is not None:
                self._write_pid(options.pid_file)
            for note in notes:
                self._say(note)
            self._tell_ready()
            self._loop()
        finally:
            self._close()

    # -- start and end ------------------------------------------------------------------------------------------

    def _open_kernel(self) -> None:
        options = self._options
        ends = Ends(options.inside, options.outside)
        plan = self._plan(self._rules)
        nft = Nft()
        self._injector = Injector()
        try:
            self._table = Table(nft, ends, options.queue)
            self._queue = PacketQueue(
                options.queue,
                (ends.inside, ends.outside),
                self._receive,
                length=self._rules.hold_packets + _SPARE_QUEUE,
                fail_open=plan.fail_open,
            )
            # Only after the queue is bound: then no other daemon can be using the table.
            self._table.remove_leftovers()
            self._table.install(plan, self._lifetimes(self._rules))
        except (NftError, OSError) as error:
            raise CapabilityError(f"The kernel refuses gfwemu's table ({error}).", "Ask `gfwemu doctor`.") from None

    def _write_pid(self, path: Path) -> None:
        try:
            path.write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise UsageError(f"--pid-file {path}: {error.strerror}.") from None

    def _plan(self, rules: RuleSet) -> KernelPlan:
        plan = self._parts.plan(rules)
        return plan if self._options.kernel_decides else plan.all_queued()

    def _lifetimes(self, rules: RuleSet) -> Lifetimes:
        flows, scale = rules.options.flows, self._options.time_scale
        return Lifetimes(flows.tcp_established / scale, flows.udp / scale, flows.other / scale, flows.limit)

    def _tell_ready(self) -> None:
        options, rules = self._options, self._rules
        _settle_garbage()
        self._say(
            f"ready: {len(rules.rules)} rules between {options.inside} (inside) and {options.outside} (outside), "
            f"queue {options.queue}, seed {rules.seed}"
        )
        systemd.notify("READY=1", f"STATUS={len(rules.rules)} rules")
        if options.ready_fd is not None:
            with suppress(OSError):
                os.write(options.ready_fd, b"\n")
                os.close(options.ready_fd)

    def _close(self) -> None:
        """Nothing new is queued; then every packet that waits gets its verdict; then the table goes, come what may."""
        systemd.notify("STOPPING=1")
        try:
            self._drain()
        finally:
            self._say_if_failing(self._table.close)
            self._queue.close()
            self._injector.close()
            self._output(self._outputs.close)
            if self._options.pid_file is not None:
                self._options.pid_file.unlink(missing_ok=True)
        self._tell_losses()

    def _drain(self) -> None:
        now = self._now()
        with suppress(OSError):
            self._output(self._outputs.kernel_rules, now, self._table.counters(), self._rules)
        self._say_if_failing(self._table.quiet)
        while self._queue.read(_BATCH):
            pass
        self._perform(self._decide(Stopping(now), None), now)
        for packet_id in self._queue.open_packets():
            self._apply_on_error(packet_id)
        self._output(self._outputs.heartbeat, now, self._engine.flow_count, self._queue.dropped(), (), self._rules)

    def _tell_losses(self) -> None:
        for what, count in (
            ("messages of the full queue socket", self._queue.overruns),
            ("residual blocks that the kernel's full sets did not take", self._table.watches_refused),
            *((f"forged packets not sent: {reason}", count) for reason, count in self._injector.failed.items()),
        ):
            if count:
                self._say(f"{what}: {count}")

    def _say_if_failing(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (GfwemuError, OSError) as error:
            self._say(str(error))

    # -- the loop -----------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        queue, wake = self._queue.fileno(), self._wake.fileno()
        watchdog = systemd.watchdog_seconds()
        heartbeat = min(_HEARTBEAT, watchdog or _HEARTBEAT)
        next_beat = self._now() + heartbeat
        while not self._stop:
            now = self._now()
            due = next_beat if self._timer_at is None else min(next_beat, self._timer_at)
            # select rather than epoll: its timeout counts microseconds, and forged packets leave on time.
            ready, _, _ = select.select([queue, wake], [], [], max(0.0, due - now))
            if wake in ready:
                self._woken()
            if queue in ready:
                self._queue.read(_BATCH)
            now = self._now()
            if now >= next_beat:
                next_beat = now + heartbeat
                self._timer_at = now
                self._beat(now)
                if watchdog is not None:
                    systemd.notify("WATCHDOG=1")
            if self._timer_at is not None and now >= self._timer_at:
                self._timer_at = None
                self._perform(self._decide(TimerFired(now), None), now)

    def _now(self) -> float:
        """Seconds since the epoch that never step back, and that count a suspended machine's sleep."""
        return self._clock_offset + time.clock_gettime(time.CLOCK_BOOTTIME)

    def _beat(self, now: float) -> None:
        with suppress(GfwemuError, OSError):
            self._output(
                self._outputs.heartbeat,
                now,
                self._engine.flow_count,
                self._queue.dropped(),
                self._table.counters(),
                self._rules,
            )

    # -- packets ------------------------------------------------------------------------------------------------

    def _receive(self, packet_id: int, data: bytes, came_from: Side | None) -> None:
        now = self._now()
        if self._outputs.takes_all:
            self._waiting[packet_id] = (data, came_from)
        held = self._perform(self._decide(PacketArrived(packet_id, data, now, came_from), packet_id), now)
        if packet_id not in held and self._queue.is_open(packet_id):
            self._fault(now, "the engine gave no verdict")
            self._apply_on_error(packet_id)

    def _decide(self, event: Event, packet_id: int | None) -> list[Command]:
        """The one place where a bug in deciding is caught. No packet is lost to it: `on_error` is applied."""
        try:
            return self._engine.handle(event)
        except Exception:
            self._fault(event.now, traceback.format_exc())
            if packet_id is not None:
                self._apply_on_error(packet_id)
            else:
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
                # A packet on which the engine failed has its verdict already.
                if queue.is_open(command.packet_id):
                    if command.verdict is Verdict.ACCEPT:
                        queue.accept(
                            command.packet_id, command.data, offload=command.offload, queue_all=command.queue_all
                        )
                    else:
                        queue.drop(command.packet_id, offload=command.offload, queue_all=command.queue_all)
            elif isinstance(command, Inject):
                self._injector.send(command.data)
            elif isinstance(command, SetTimer):
                self._timer_at = command.at
            elif isinstance(command, Report):
                self._output(self._outputs.commanded, command, now, b"", None)
            elif isinstance(command, Hold):
                held += (command.packet_id,)
            elif isinstance(command, Watch):
                self._watch(command)
            if tells:
                self._tell(command, now)
        return held

    def _tell(self, command: Command, now: float) -> None:
        data, came_from = b"", None
        if isinstance(command, SetVerdict):
            data, came_from = self._waiting.pop(command.packet_id, (b"", None))
        if not isinstance(command, Report):
            self._output(self._outputs.commanded, command, now, data, came_from)

    def _watch(self, watch: Watch) -> None:
        try:
            self._table.watch(
                watch.client, watch.server, watch.proto, watch.server_port, watch.client_port, watch.seconds
            )
        except OSError as error:
            self._say(f"a residual block cannot be watched in the kernel: {error}")

    def _apply_on_error(self, packet_id: int) -> None:
        if not self._queue.is_open(packet_id):
            return
        self._perform([SetVerdict(packet_id, Verdict(self._rules.on_error), reason="on_error")], self._now())

    def _fault(self, now: float, error: str) -> None:
        self._say(f"the engine failed, and its `on_error` was applied; please report this:\n{error}")
        self._perform([Report(EngineFault(now, error))], now)

    def _output(self, method: Callable[..., None], *arguments: object) -> None:
        """A full disk ends the telling, never the deciding."""
        if self._outputs_broken:
            return
        try:
            method(*arguments)
        except OSError as error:
            self._outputs_broken = True
            self._say(f"nothing more is written: {error}")

    # -- signals ------------------------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._reload = True
        else:
            self._stop = True

    def _woken(self) -> None:
        with suppress(BlockingIOError):
            while self._wake.recv(4096):
                pass
        if self._loaded is not None:
            loaded, self._loaded, self._loader = self._loaded, None, None
            self._apply_reload(loaded)
        if self._reload and self._loader is None:
            self._reload = False
            systemd.notify_reloading()
            # In a thread: packets go on being decided under the old rules meanwhile.
            self._loader = threading.Thread(target=self._load, daemon=True)
            self._loader.start()

    def _load(self) -> None:
        try:
            self._loaded = self._parts.load()
        except GfwemuError as error:
            self._loaded = error
        except Exception:
            self._loaded = GfwemuError(traceback.format_exc())
        self._waker.send(b"\0")

    def _apply_reload(self, loaded: RuleSet | GfwemuError) -> None:
        now = self._now()
        try:
            if isinstance(loaded, GfwemuError):
                raise loaded
            plan = self._plan(loaded)
            self._output(self._outputs.kernel_rules, now, self._table.counters(), self._rules)
            self._table.replace(plan, self._lifetimes(loaded))
        except (GfwemuError, OSError) as error:
            self._say(f"the rules were not reloaded, the old ones stay in force:\n{error}")
        else:
            self._queue.set_fail_open(plan.fail_open)
            self._rules = loaded
            self._engine = self._parts.widened(self._engine, loaded)
            self._perform(self._decide(RulesReplaced(loaded, now), None), now)
            self._output(self._outputs.reloaded, now)
            self._say(f"reloaded: {len(loaded.rules)} rules")
            _settle_garbage()
        systemd.notify("READY=1", f"STATUS={len(self._rules.rules)} rules")

    def _say(self, text: str) -> None:
        with suppress(OSError):
            print(f"gfwemu: {text}", file=sys.stderr, flush=True)


def _settle_garbage() -> None:
    """Rules live long and are many: the collector need not look at them between packets."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
