"""The treatments: what each action does to the packets of a flow from then on."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from gfwemu.engine.forge import Forged
from gfwemu.engine.work import Work
from gfwemu.flow.flow import Flow, direction_index
from gfwemu.model import Direction, FiveTuple, Transport, Verdict, record
from gfwemu.rules.actions import Delay, Freeze, IcmpUnreachable, Lose, Throttle, Way
from gfwemu.rules.compiled import CompiledRule
from gfwemu.wire.build import build_icmp_unreachable, replace_endpoints, to_reset
from gfwemu.wire.packet import Packet, TcpFlags

# A member of an enumeration, and its value, are slow to reach.
_ACCEPT = Verdict.ACCEPT
_WAYS = {direction: direction.value for direction in Direction}

# RFC 792: destination unreachable, source quench, redirect, time exceeded, parameter problem.
_ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})


def _is_icmp_error(packet: Packet) -> bool:
    if packet.proto == Transport.ICMPV6:
        return packet.icmp_type < 128  # RFC 4443 section 2.1
    return packet.proto == Transport.ICMP and packet.icmp_type in _ICMP_ERRORS


def covers(way: Way, direction: Direction) -> bool:
    return way == "both" or way == _WAYS[direction]


@record
class PassFlow:
    """Nothing more is done to this flow."""

    def apply(self, work: Work) -> None:
        """The packet stays as it is."""

    def offload(self, now: float) -> Verdict | None:
        return _ACCEPT


@record
class DropFlow:
    """Packets in that direction vanish from `since` on."""

    rule: CompiledRule
    direction: Way
    since: float

    def apply(self, work: Work) -> None:
        if work.now >= self.since and covers(self.direction, work.direction):
            work.drop(self.rule)

    def offload(self, now: float) -> Verdict | None:
        return Verdict.DROP if self.direction == "both" and now >= self.since else None


@dataclass(frozen=True, slots=True)
class RewriteFlow:
    """Packets in that direction become resets in place, or are dropped where they cannot; the others pass."""

    rule: CompiledRule
    direction: Way

    def apply(self, work: Work) -> None:
        if not covers(self.direction, work.direction):
            return
        if work.packet.proto != Transport.TCP or work.packet.is_fragment:
            work.drop(self.rule)
        elif not work.packet.flags & TcpFlags.RST:
            work.data = to_reset(work.packet)
            work.touch(self.rule, "rewritten to a reset")

    def offload(self, now: float) -> Verdict | None:
        return None


@dataclass(frozen=True, slots=True)
class RedirectFlow:
    """The server is another one than the client thinks: addresses and ports are replaced both ways."""

    rule: CompiledRule
    address: bytes
    port: int

    def replaced(self, key: FiveTuple) -> FiveTuple:
        """The client's five-tuple as the new server sees it."""
        return key._replace(dst=self.address, dport=self.port or key.dport)

    def apply(self, work: Work) -> None:
        if work.direction is Direction.TO_SERVER:
            work.data = replace_endpoints(work.packet, dst=self.address, dport=self.port or None)
        else:
            key = work.flow.tuple
            work.data = replace_endpoints(work.packet, src=key.dst, sport=key.dport or None)
        work.touch(self.rule, "redirected")

    def offload(self, now: float) -> Verdict | None:
        return None


@dataclass(frozen=True, slots=True)
class UnreachableFlow:
    """Each packet to the server is answered with ICMP unreachable from the server's address; both ways drop.

    No answer to what must not be answered: ICMP errors and later fragments (RFC 1122 section 3.2.2, RFC 4443 section
    2.4).
    """

    rule: CompiledRule
    action: IcmpUnreachable

    def apply(self, work: Work) -> None:
        packet = work.packet
        if work.direction is Direction.TO_SERVER and not packet.fragment_offset and not _is_icmp_error(packet):
            data = build_icmp_unreachable(work.packet, work.packet.dst, self.action.code)
            work.inject([Forged(data, 0.0, Direction.TO_CLIENT)], self.rule)
        work.drop(self.rule)

    def offload(self, now: float) -> Verdict | None:
        return None


_COUNTING: dict[str, Callable[[Sequence[int]], int]] = {
    "sum": sum,
    "to_server": itemgetter(0),
    "to_client": itemgetter(1),
    "either": max,
}


_LEARNING_PACKETS = 32
_FAR_PACKETS = 4096
_FAR_BYTES = 4 << 20
"""Our choices: a flow's real packets that are seen before it may be bulk, and what must be left to count then. What is
in the bulk queue when it ceases to be still comes unsplit."""


@dataclass(slots=True)
class FreezeFlow:
    """The flow passes until a count is exceeded, then it is silent.

    Where the kernel hands over packets unsplit, they count as the segments that they become on the wire. segments: the
    largest payload seen in each direction, which is how long these are.
    """

    rule: CompiledRule
    action: Freeze
    packets: int | None
    bytes: int | None
    frozen: bool = False
    payload_packets: list[int] = field(default_factory=lambda: [0, 0])
    payload_bytes: list[int] = field(default_factory=lambda: [0, 0])
    segments: list[int] = field(default_factory=lambda: [0, 0])

    def apply(self, work: Work) -> None:
        index = direction_index(work.direction)
        length = len(work.packet.payload)
        if work.packet.unseen:
            length += work.packet.unseen
            self.payload_packets[index] += self._count_segments(work, index, length)
            self.payload_bytes[index] += length
        elif length:
            self.segments[index] = max(self.segments[index], length)
            self.payload_packets[index] += 1
            self.payload_bytes[index] += length
        if not self.frozen:
            flow = work.flow
            packets = self.payload_packets if self.action.payload_only else flow.packets
            sizes = self.payload_bytes if self.action.payload_only else flow.bytes
            self.frozen = (self.packets is not None and self._counted(packets) > self.packets) or (
                self.bytes is not None and self._counted(sizes) > self.bytes
            )
        if self.frozen and covers(self.action.direction, work.direction):
            work.drop(self.rule)

    def _count_segments(self, work: Work, index: int, length: int) -> int:
        """How many segments the packet becomes; the flow has counted one, and those of its bytes that were seen."""
        count = -(-length // (self.segments[index] or max(self.segments) or length))
        headers = len(work.packet.raw) - len(work.packet.payload)
        work.flow.add(work.direction, count - 1, work.packet.unseen + (count - 1) * headers)
        return count

    def is_far(self, flow: Flow) -> bool:
        """Whether the end is so far away that the flow's packets may come unsplit."""
        if self.frozen or sum(flow.packets) < _LEARNING_PACKETS:
            return False
        packets = self.payload_packets if self.action.payload_only else flow.packets
        sizes = self.payload_bytes if self.action.payload_only else flow.bytes
        return (self.packets is None or self.packets - self._counted(packets) > _FAR_PACKETS) and (
            self.bytes is None or self.bytes - self._counted(sizes) > _FAR_BYTES
        )

    def _counted(self, counts: Sequence[int]) -> int:
        return _COUNTING[self.action.counting](counts)

    def offload(self, now: float) -> Verdict | None:
        return Verdict.DROP if self.frozen and self.action.direction == "both" else None


@dataclass(slots=True)
class Bucket:
    """A token bucket, by the bytes that it lacks: what was let through and is not yet paid for.

    Bytes rather than a time: the clock's floats resolve a quarter of a microsecond, in which fast links send packets.
    """

    owed: float = 0.0
    at: float = 0.0

    def excess(self, now: float, length: int, rate: float, burst: float) -> float:
        """Bytes that must be paid for before a packet of that length conforms; 0: it does. A full bucket lets any
        packet pass."""
        if now > self.at:
            self.owed = max(0.0, self.owed - (now - self.at) * rate)
            self.at = now
        return max(0.0, self.owed + length - max(burst, length))

    def take(self, length: int) -> None:
        self.owed += length


@dataclass(frozen=True, slots=True)
class ThrottleFlow:
    """Each direction has a bucket; flows of one subscriber or one rule may share theirs."""

    rule: CompiledRule
    action: Throttle
    buckets: tuple[Bucket, Bucket]

    def apply(self, work: Work) -> None:
        action = self.action
        if not covers(action.direction, work.direction):
            return
        bucket = self.buckets[direction_index(work.direction)]
        arrives = max(work.now, work.release_at)
        length = len(work.packet.raw)
        excess = bucket.excess(arrives, length, action.rate, action.burst)
        # Half a byte is beyond what the clock can tell.
        conforms = excess < 0.5
        if not conforms and (action.mode == "police" or excess > action.limit + 0.5):
            work.drop(self.rule)
            return
        bucket.take(length)
        if not conforms:
            work.release_at = arrives + excess / action.rate
            work.touch(self.rule, "held")

    def offload(self, now: float) -> Verdict | None:
        return None


@dataclass(slots=True)
class DelayFlow:
    """Every packet waits; none overtakes another of its direction."""

    rule: CompiledRule
    action: Delay
    rng: random.Random
    latest: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def apply(self, work: Work) -> None:
        if not covers(self.action.direction, work.direction):
            return
        index = direction_index(work.direction)
        due = max(work.now, work.release_at) + self.action.time.sample(self.rng)
        work.release_at = self.latest[index] = max(due, self.latest[index])
        work.touch(self.rule, "delayed")

    def offload(self, now: float) -> Verdict | None:
        return None


@dataclass(frozen=True, slots=True)
class LoseFlow:
    """Every packet is dropped with a probability."""

    rule: CompiledRule
    action: Lose
    rng: random.Random

    def apply(self, work: Work) -> None:
        if covers(self.action.direction, work.direction) and self.rng.random() < self.action.probability.at(
            work.censor_now
        ):
            work.drop(self.rule)

    def offload(self, now: float) -> Verdict | None:
        return None
