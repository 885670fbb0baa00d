"""The replay's stage: the engine alone, model servers at the far ends, and a clock that nobody waits for."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from gfwemu.conformance.addresses import Addresses
from gfwemu.conformance.host import ModelHost
from gfwemu.conformance.stage import Ended, InconclusiveError, Path
from gfwemu.conformance.trace import Trace, seen
from gfwemu.engine.commands import Command, Inject, SendProbes, SetVerdict
from gfwemu.model import FiveTuple, Side, Verdict
from gfwemu.rules.compiled import RuleSet
from gfwemu.testing.playbook import Playbook
from gfwemu.wire.packet import Malformed
from gfwemu.wire.parse import parse_packet

_PATIENCE = 1e-9
_REST = 1.0


class Paper:
    """A censor on paper for the repetitions of one case. Everything happens in order, and in no time."""

    def __init__(self, rules: RuleSet, path: Path, addresses: Addresses, *, start: float, seed: int) -> None:
        self.path = path
        self.addresses = addresses
        self._book = Playbook(rules, start=start, seed=seed)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[bytes, Side]] = {}
        self._hosts = {side: ModelHost(addresses.silent, addresses.resolvers) for side in Side}
        self.traces: list[Trace] = []

    @property
    def now(self) -> float:
        return self._book.now

    def stage(self) -> PaperStage:
        return PaperStage(self)

    def clear(self) -> None:
        """A repetition is over: what it left under way must not reach the next one."""
        self.advance(_REST)
        self.traces.clear()
        self.addresses.give_all_back()

    def advance(self, seconds: float) -> None:
        end = self._book.now + seconds
        while True:
            due = self._queue[0][0] if self._queue else end
            timer = self._book.timer
            target = min(end, due if timer is None else min(due, max(timer, self._book.now)))
            self._perform(self._book.wait(max(0.0, target - self._book.now)).commands)
            if self._queue and self._queue[0][0] <= self._book.now + _PATIENCE:
                heapq.heappop(self._queue)[2]()
            elif self._book.now >= end - _PATIENCE and (self._book.timer is None or self._book.timer > end):
                return

    def emit(self, side: Side, data: bytes) -> None:
        """A packet leaves that end."""
        self._note(data, side, sent=True)
        aged = age(data, self.path.towards(side) + 1)
        if aged is not None:
            self._later(self._half(side), lambda: self._arrive(side, aged))

    def say(self, side: Side, flow: FiveTuple, data: bytes) -> bool:
        packet = self._hosts[side].say(flow, data)
        if packet is not None:
            self.emit(side, packet)
        return packet is not None

    def received(self, side: Side, flow: FiveTuple) -> bytes:
        return self._hosts[side].received(flow)

    def _half(self, side: Side) -> float:
        return self.path.rtt / 2 if side is Side.OUTSIDE else 0.0

    def _later(self, delay: float, task: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self._book.now + delay, next(self._numbers), task))

    def _arrive(self, side: Side, data: bytes) -> None:
        """At the censor."""
        reaction = self._book.packet(data, came_from=side)
        assert reaction.packet_id is not None
        self._waiting[reaction.packet_id] = (data, side)
        self._perform(reaction.commands)

    def _perform(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case SetVerdict(packet_id=number, verdict=verdict, data=rewritten):
                    data, side = self._waiting.pop(number)
                    if verdict is Verdict.ACCEPT:
                        self._forward(rewritten if rewritten is not None else data, side.opposite)
                case SendProbes():
                    for trace in self.traces:
                        trace.suspected = True
                case Inject(data=data):
                    packet = parse_packet(data)
                    if not isinstance(packet, Malformed):
                        self._forward(data, self.addresses.side_of(packet.dst))

    def _forward(self, data: bytes, to_side: Side) -> None:
        aged = age(data, self.path.towards(to_side))
        if aged is not None:
            self._later(self._half(to_side), lambda: self._land(to_side, aged))

    def _land(self, side: Side, data: bytes) -> None:
        """At an end. Its kernel answers, unless the address is one of the hand-made ones."""
        self._note(data, side, sent=False)
        packet = parse_packet(data)
        if not isinstance(packet, Malformed) and not self.addresses.by_hand(packet.dst):
            for answer in self._hosts[side].take(packet, self._book.now):
                self.emit(side, answer)

    def _note(self, data: bytes, side: Side, *, sent: bool) -> None:
        one = seen(data, self._book.now, side, sent=sent)
        if one is not None:
            for trace in self.traces:
                trace.packets.append(one)


class PaperStage:
    """A repetition on paper."""

    scale = 1.0

    def __init__(self, paper: Paper) -> None:
        self._paper = paper
        self.path = paper.path
        self.trace = Trace()
        paper.traces[:] = [self.trace]

    @property
    def now(self) -> float:
        return self._paper.now

    async def sleep(self, seconds: float) -> None:
        self._paper.advance(seconds)

    def client(self, side: Side, *, ipv6: bool) -> bytes:
        return self._paper.addresses.client(side, ipv6=ipv6)

    def server(self, side: Side, client: bytes, wanted: str) -> bytes:
        return self._paper.addresses.server(side, client, wanted)

    def serve(self, side: Side, address: bytes, port: int, proto: int) -> None:
        """The model listens everywhere."""

    def emit(self, side: Side, data: bytes) -> None:
        self._paper.emit(side, data)

    def received(self, flow: FiveTuple) -> bytes:
        return self._paper.received(self._paper.addresses.side_of(flow.dst), flow)

    def answer(self, flow: FiveTuple, data: bytes) -> bool:
        return self._paper.say(self._paper.addresses.side_of(flow.dst), flow, data)

    async def program(self, argv: list[str], timeout: float) -> Ended:
        raise InconclusiveError(f"{argv[0]} needs a lab: programs are not replayed")


def age(data: bytes, hops: int) -> bytes | None:
    """The packet so many routers later; None where one of them drops it."""
    packet = parse_packet(data)
    if isinstance(packet, Malformed) or packet.ttl <= hops:
        return None
    raw = bytearray(data)
    raw[8 if packet.version == 4 else 7] -= hops
    if packet.version == 4:
        # The header's sum grows as the TTL, its high byte, falls (RFC 1624).
        total = int.from_bytes(raw[10:12], "big") + (hops << 8)
        total = (total & 0xFFFF) + (total >> 16)
        raw[10:12] = total.to_bytes(2, "big")
    return bytes(raw)
