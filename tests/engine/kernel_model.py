"""The kernel's share of deciding, on paper: marks of decided flows, watched endpoints, the queue for the rest."""

from __future__ import annotations

from dataclasses import dataclass, field

from gfwemu.engine.commands import Command, Inject, SetTimer, SetVerdict, Watch
from gfwemu.engine.engine import Engine
from gfwemu.engine.events import PacketArrived, RulesReplaced, Stopping, TimerFired
from gfwemu.model import FiveTuple, Verdict
from gfwemu.rules.compiled import RuleSet
from gfwemu.wire.packet import Malformed, Packet
from gfwemu.wire.parse import parse_packet

_SYN_ONLY, _SYN_MASK = 0x02, 0x17


@dataclass
class Outcome:
    """What a script came to: the fate of each packet (None: held to the end), and what was sent, with its time."""

    fates: dict[int, tuple[Verdict, bytes | None]] = field(default_factory=dict)
    sent: list[tuple[float, bytes]] = field(default_factory=list)
    queued: int = 0


class KernelModel:
    """An engine behind the chains of `gfwemu.kernel.ruleset`: watched, by_mark, settle."""

    def __init__(self, engine: Engine, start: float = 1000.0) -> None:
        self.outcome = Outcome()
        self._engine = engine
        self._now = start
        self._timer: float | None = None
        self._marks: dict[frozenset[tuple[bytes, int]], Verdict] = {}
        self._watches: list[tuple[Watch, float]] = []
        self._packets: dict[int, Packet | Malformed] = {}

    def packet(self, number: int, data: bytes, after: float) -> None:
        self._pass_time(after)
        packet = self._packets[number] = parse_packet(data)
        mark = None if isinstance(packet, Malformed) or packet.is_fragment else self._answer(packet)
        if mark is not None:
            self.outcome.fates[number] = (mark, None)
            return
        self.outcome.queued += 1
        self._perform(self._engine.handle(PacketArrived(number, data, self._now)))

    def replace(self, rules: RuleSet) -> None:
        self._marks.clear()
        self._perform(self._engine.handle(RulesReplaced(rules, self._now)))

    def stop(self) -> Outcome:
        self._pass_time(30.0)
        self._perform(self._engine.handle(Stopping(self._now)))
        return self.outcome

    def _answer(self, packet: Packet) -> Verdict | None:
        if any(end > self._now and _covers(watch, packet.five_tuple) for watch, end in self._watches):
            return None
        if packet.proto == 6 and packet.flags & _SYN_MASK == _SYN_ONLY:
            return None
        return self._marks.get(_connection(packet))

    def _pass_time(self, seconds: float) -> None:
        end = self._now + seconds
        while self._timer is not None and self._timer <= end:
            self._now, self._timer = max(self._now, self._timer), None
            self._perform(self._engine.handle(TimerFired(self._now)))
        self._now = end

    def _perform(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, SetVerdict):
                self.outcome.fates[command.packet_id] = (command.verdict, command.data)
                packet = self._packets[command.packet_id]
                if isinstance(packet, Malformed) or packet.is_fragment:
                    continue
                self._marks.pop(_connection(packet), None)
                if command.offload:
                    self._marks[_connection(packet)] = command.verdict
            elif isinstance(command, Inject):
                self.outcome.sent.append((round(self._now, 6), command.data))
            elif isinstance(command, SetTimer):
                self._timer = command.at
            elif isinstance(command, Watch):
                self._watches.append((command, self._now + command.seconds))


def _connection(packet: Packet) -> frozenset[tuple[bytes, int]]:
    return frozenset({(packet.src, packet.sport), (packet.dst, packet.dport), (b"", packet.proto)})


def _covers(watch: Watch, key: FiveTuple) -> bool:
    return any(
        watch.client in (b"", way.src)
        and way.dst == watch.server
        and (watch.server_port is None or (way.dport == watch.server_port and way.proto == watch.proto))
        and (watch.client_port is None or way.sport == watch.client_port)
        for way in (key, key.reversed())
    )
