"""The treatments: what each action does to the packets of a flow from then on."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from gfwemu.engine.forge import Forged
from gfwemu.engine.work import Work
from gfwemu.flow.flow import direction_index
from gfwemu.model import Direction, FiveTuple, Transport, Verdict
from gfwemu.rules.actions import Delay, Freeze, IcmpUnreachable, Lose, Throttle, Way
from gfwemu.rules.compiled import CompiledRule
from gfwemu.wire.build import build_icmp_unreachable, replace_endpoints, to_reset
from gfwemu.wire.packet import TcpFlags


def covers(way: Way, direction: Direction) -> bool:
    return way == "both" or way == direction.value


@dataclass(frozen=True, slots=True)
class PassFlow:
    """Nothing more is done to this flow."""

    def apply(self, work: Work) -> None:
        """The packet stays as it is."""

    def offload(self, now: float) -> Verdict | None:
        return Verdict.ACCEPT


@dataclass(frozen=True, slots=True)
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
    """Packets in that direction become resets in place; the other direction passes. Other than TCP is dropped."""

    rule: CompiledRule
    direction: Way

    def apply(self, work: Work) -> None:
        if not covers(self.direction, work.direction):
            return
        if work.packet.proto != Transport.TCP:
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
    """Each packet to the server is answered with ICMP unreachable from the server's address; both ways drop."""

    rule: CompiledRule
    action: IcmpUnreachable

    def apply(self, work: Work) -> None:
        if work.direction is Direction.TO_SERVER:
            data = build_icmp_unreachable(work.packet, work.packet.dst, self.action.code)
            work.inject([Forged(data, 0.0, Direction.TO_CLIENT)], self.rule)
        work.drop(self.rule)

    def offload(self, now: float) -> Verdict | None:
        return None


@dataclass(slots=True)
class FreezeFlow:
    """The flow passes until a count is exceeded, then it is silent."""

    rule: CompiledRule
    action: Freeze
    packets: int | None
    bytes: int | None
    frozen: bool = False
    payload_packets: list[int] = field(default_factory=lambda: [0, 0])
    payload_bytes: list[int] = field(default_factory=lambda: [0, 0])

    def apply(self, work: Work) -> None:
        index = direction_index(work.direction)
        if work.packet.payload:
            self.payload_packets[index] += 1
            self.payload_bytes[index] += len(work.packet.payload)
        if not self.frozen:
            flow = work.flow
            packets = self.payload_packets if self.action.payload_only else flow.packets
            sizes = self.payload_bytes if self.action.payload_only else flow.bytes
            self.frozen = self._exceeds(packets, self.packets) or self._exceeds(sizes, self.bytes)
        if self.frozen and covers(self.action.direction, work.direction):
            work.drop(self.rule)

    def _exceeds(self, counts: list[int], limit: int | None) -> bool:
        if limit is None:
            return False
        return {
            "sum": sum(counts) > limit,
            "to_server": counts[0] > limit,
            "to_client": counts[1] > limit,
            "either": max(counts) > limit,
        }[self.action.counting]

    def offload(self, now: float) -> Verdict | None:
        return Verdict.DROP if self.frozen and self.action.direction == "both" else None


@dataclass(slots=True)
class Bucket:
    """A token bucket as one number, the time at which it would be empty again (the GCRA of ITU-T I.371)."""

    empty_at: float = 0.0

    def earliest(self, now: float, length: int, rate: float, burst: float) -> float:
        """When a packet of that length conforms: `now` where tokens are left. A full bucket lets any packet pass."""
        return max(now, self.empty_at + (length - max(burst, length)) / rate)

    def take(self, now: float, length: int, rate: float) -> None:
        self.empty_at = max(self.empty_at, now) + length / rate


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
        earliest = bucket.earliest(arrives, len(work.packet.raw), action.rate, action.burst)
        waits = earliest - arrives
        if waits > 0 and (action.mode == "police" or waits * action.rate > action.limit + 0.5):
            work.drop(self.rule)
            return
        bucket.take(arrives, len(work.packet.raw), action.rate)
        if waits > 0:
            work.release_at = earliest
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
        if covers(self.action.direction, work.direction) and self.rng.random() < self.action.probability:
            work.drop(self.rule)

    def offload(self, now: float) -> Verdict | None:
        return None
