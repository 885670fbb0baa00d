"""The replay itself: frames in, the engine's decisions out.

A capture cannot react. Where the emulated censor would have dropped a packet or reset a flow, the later packets of that
flow are in the capture all the same, and go in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Protocol

from gfwemu.engine.commands import Command, Report, SetTimer, SetVerdict
from gfwemu.engine.events import Event, PacketArrived, Stopping, TimerFired
from gfwemu.engine.fastpath import FastPath
from gfwemu.engine.records import EngineFault
from gfwemu.model import Side, Verdict
from gfwemu.replay.frames import CaptureError, Frame
from gfwemu.replay.links import LINK_TYPES, ip_packet

DRAIN_SECONDS = 10.0
"""How long the clock runs on after the last packet, so that what is held or delayed still happens. Our choice."""

_MOST_TIMERS_AT_ONCE = 1000
_MOST_SIDES = 65_536
"""Addresses whose side is remembered."""
_OWN_CAPTURES = "gfwemu"
_OWN_SIDES = {"inside": Side.INSIDE, "outside": Side.OUTSIDE}
_OWN_FORGERIES = "injected"


_Packet = tuple[Frame, bytes, Side | None]


class Decider(Protocol):
    """The engine, or what stands in for it."""

    def handle(self, event: Event) -> list[Command]: ...


@dataclass(frozen=True, slots=True)
class Decided:
    """A packet of the capture and what became of it. now: when it was decided, in seconds since the epoch."""

    frame: Frame
    packet: bytes
    came_from: Side | None
    command: SetVerdict
    now: float


class Sink(Protocol):
    """Where a replay's outcome goes."""

    takes_packets: bool
    """Whether `decided` is called."""

    def decided(self, outcome: Decided) -> None: ...

    def commanded(self, command: Command, now: float) -> None:
        """Every command in order but verdicts, which `decided` tells, and wishes for timers."""
        ...


@dataclass(slots=True)
class Totals:
    """What went in. cut: packets that the capture's snap length shortened. backwards: timestamps that ran back.

    own_forgeries: packets of an earlier run that its censor forged; they are left out. undecided: packets that the
    engine left without a verdict, which is a bug.
    """

    frames: int = 0
    packets: int = 0
    other: int = 0
    cut: int = 0
    backwards: int = 0
    own_forgeries: int = 0
    undecided: int = 0


class Replay:
    """Feeds one engine. `run` may be called once.

    inside: the networks of the inside as (address, prefix length). With none, packets are of no known side, and the
    engine takes whoever opens a flow for a subscriber. on_error: the verdict of a packet on which the engine failed.
    fast_path: of the engine, for packets that nobody is told of.
    """

    def __init__(
        self,
        engine: Decider,
        sink: Sink,
        *,
        inside: Sequence[tuple[bytes, int]] = (),
        on_error: Verdict = Verdict.ACCEPT,
        fast_path: FastPath | None = None,
    ) -> None:
        self.totals = Totals()
        self._inside = [ip_network(network, strict=False) for network in inside]
        self._on_error = on_error
        self._engine = engine
        self._sink = sink
        self._takes_packets = sink.takes_packets
        self._passes = None if fast_path is None or sink.takes_packets else fast_path.takes
        self._now = 0.0
        self._wish: float | None = None
        self._waiting: dict[int, _Packet] = {}
        self._sides: dict[bytes, Side] = {}

    def run(self, frames: Iterable[Frame], name: str) -> None:
        """All frames, then the drain, then the end. Raises CaptureError where the capture is damaged.

        What came before the damage has gone in then, and every packet has its verdict.
        """
        try:
            for frame in frames:
                self._frame(frame, name)
        except CaptureError:
            self._finish()
            raise
        self._finish()

    def _frame(self, frame: Frame, name: str) -> None:
        number, offset, time, link_type, data, original_length, interface, application = frame
        totals = self.totals
        totals.frames += 1
        if link_type not in LINK_TYPES:
            known = ", ".join(sorted({text for text, _ in LINK_TYPES.values()}))
            raise CaptureError(name, offset, f"link type {link_type} is not supported (these are: {known})")
        came_from: Side | None = None
        if application and application.startswith(_OWN_CAPTURES):
            if interface == _OWN_FORGERIES:
                totals.own_forgeries += 1
                return
            came_from = _OWN_SIDES.get(interface)
        packet = ip_packet(link_type, data)
        if packet is None:
            totals.other += 1
            return
        totals.packets += 1
        if len(data) < original_length:
            totals.cut += 1
        if time < self._now:
            totals.backwards += 1
            time = self._now
        if self._wish is not None and self._wish <= time:
            self._advance(time)
        self._now = time
        if self._passes is not None and self._passes(packet, time):
            return
        if came_from is None and self._inside:
            came_from = self._side_of(packet)
        commands = self._decide(PacketArrived(number, packet, time, came_from), number)
        if len(commands) == 1 and not self._takes_packets:
            # Nearly always: the packet has its verdict, and that is all.
            (command,) = commands
            if isinstance(command, SetVerdict) and command.packet_id == number:
                return
        self._waiting[number] = (frame, packet, came_from)
        self._perform(commands)

    def _side_of(self, packet: bytes) -> Side | None:
        source = packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]
        side = self._sides.get(source)
        if side is None:
            if len(source) not in (4, 16):
                return None
            address = ip_address(source)
            side = Side.INSIDE if any(address in network for network in self._inside) else Side.OUTSIDE
            if len(self._sides) >= _MOST_SIDES:
                self._sides.clear()
            self._sides[source] = side
        return side

    def _advance(self, until: float) -> None:
        """Lets the clock run to `until`, with the timers that come before it."""
        fired = 0
        while self._wish is not None and self._wish <= until and fired < _MOST_TIMERS_AT_ONCE:
            wish = max(self._wish, self._now)
            fired = fired + 1 if wish == self._now else 0
            self._now, self._wish = wish, None
            self._perform(self._decide(TimerFired(self._now)))
        self._now = until

    def _finish(self) -> None:
        if not self.totals.packets:
            return
        self._advance(self._now + DRAIN_SECONDS)
        self._perform(self._decide(Stopping(self._now)))
        self.totals.undecided = len(self._waiting)

    def _decide(self, event: Event, arrived: int | None = None) -> list[Command]:
        """arrived: the number of the packet that the event is about."""
        try:
            return self._engine.handle(event)
        except Exception as error:
            # An engine's bug must not end the run; the log names it, and the packet fares as the rules say.
            fault = EngineFault(self._now, f"{type(error).__name__}: {error}")
            commands: list[Command] = [Report(fault)]
            if arrived is not None:
                commands.append(SetVerdict(arrived, self._on_error, reason="an engine fault"))
            return commands

    def _perform(self, commands: Iterable[Command]) -> None:
        for command in commands:
            if isinstance(command, SetVerdict):
                waiting = self._waiting.pop(command.packet_id, None)
                if waiting is not None and self._takes_packets:
                    self._sink.decided(Decided(*waiting, command, self._now))
            elif isinstance(command, SetTimer):
                self._wish = command.at
            else:
                self._sink.commanded(command, self._now)


def comment_of(command: SetVerdict) -> str:
    """What a capture says of a packet: "" where it passed as it was."""
    if command.verdict is Verdict.DROP:
        text = "dropped"
    elif command.data is not None:
        text = "rewritten"
    else:
        return ""
    return f"{text} ({command.reason})" if command.reason else text
