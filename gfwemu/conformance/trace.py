"""What passed at the two ends of the path, and what follows from it: which packets were injected, which were lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from gfwemu.model import Side
from gfwemu.wire.packet import Malformed, Packet, TcpFlags
from gfwemu.wire.parse import parse_packet


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """An IP packet on the wire of one end. `sent`: by that end; else it arrived there. `at`: seconds."""

    data: bytes
    at: float
    side: Side
    sent: bool
    packet: Packet


def seen(data: bytes, at: float, side: Side, *, sent: bool) -> Seen | None:
    """None for what is no IP packet."""
    packet = parse_packet(data)
    return None if isinstance(packet, Malformed) else Seen(data, at, side, sent, packet)


def identity(packet: Packet) -> bytes:
    """The packet without what routers change: TTL and the header's checksum."""
    raw = bytearray(packet.raw)
    if packet.version == 4:
        raw[8] = 0
        raw[10:12] = b"\0\0"
    else:
        raw[7] = 0
    return bytes(raw)


@dataclass(slots=True)
class Trace:
    """Everything that was seen, in the order of its coming; `strangers`: what others exchanged with the servers;
    `suspected`: the censor ordered probes."""

    packets: list[Seen] = field(default_factory=list)
    strangers: list[Seen] = field(default_factory=list)
    suspected: bool = False

    def injected(self, at: Side, since: int = 0) -> list[Seen]:
        """What arrived at that end from packet number `since` on, and was never sent by the other.

        Between addresses of which neither sent anything, it is a latecomer for who had the address before.
        """
        sent = Counter(identity(one.packet) for one in self.packets if one.sent and one.side is at.opposite)
        met = {frozenset((one.packet.src, one.packet.dst)) for one in self.packets if one.sent}
        found = []
        for number, one in enumerate(self.packets):
            if one.sent or one.side is not at:
                continue
            key = identity(one.packet)
            if sent[key] > 0:
                sent[key] -= 1
            elif number >= since and one.packet.proto in (6, 17) and frozenset((one.packet.src, one.packet.dst)) in met:
                found.append(one)
        return found

    def probes(self) -> int:
        """The connections that others opened to the servers."""
        return len(
            {one.packet.five_tuple for one in self.strangers if one.packet.flags & TcpFlags.SYN and not one.sent}
        )

    def arrived(self, sent: Seen) -> bool:
        """Whether the packet reached the other end."""
        key = identity(sent.packet)
        return any(
            not one.sent and one.side is sent.side.opposite and identity(one.packet) == key for one in self.packets
        )
