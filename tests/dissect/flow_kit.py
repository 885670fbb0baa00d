"""Flows off captures or made up, and what a dissector says to them."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import Confirm, Message, NeedMore, Outcome, Reject
from gfwemu.model import Direction, FiveTuple, Transport
from gfwemu.wire.packet import Packet, TcpFlags
from gfwemu.wire.parse import parse_packet

CAPTURES = Path(__file__).parent.parent / "data" / "captures"
TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT

Event = tuple[Direction, bytes]


@dataclass(slots=True)
class CapturedFlow:
    """`events`: datagrams, or segments in order without retransmissions."""

    tuple: FiveTuple
    events: list[Event] = field(default_factory=list)

    @property
    def transport(self) -> int:
        return self.tuple.proto


@dataclass(frozen=True, slots=True)
class Played:
    """The last word of a session and everything that it told. `kind`: need_more, reject or confirm."""

    kind: str
    messages: tuple[Message, ...] = ()
    final: bool = False
    reason: str = ""

    @property
    def facts(self) -> list[dict[str, object]]:
        return [dict(message.facts) for message in self.messages]


def read_packets(path: Path) -> Iterator[Packet]:
    """The IP packets of a little-endian pcap file on Ethernet or raw IP (link types 1 and 101)."""
    data = path.read_bytes()
    magic, link = struct.unpack_from("<I", data)[0], struct.unpack_from("<I", data, 20)[0]
    assert magic == 0xA1B2C3D4, path
    assert link in (1, 101), path
    position = 24
    while position < len(data):
        (length,) = struct.unpack_from("<I", data, position + 8)
        frame = data[position + 16 : position + 16 + length]
        position += 16 + length
        packet = parse_packet(frame[14:] if link == 1 else frame)
        if isinstance(packet, Packet):
            yield packet


def captured_flows(path: Path) -> list[CapturedFlow]:
    """Every flow with payload, in order of appearance; who sends first (TCP: the SYN) is the client."""
    flows: dict[FiveTuple, CapturedFlow] = {}
    expected: dict[FiveTuple, int] = {}
    for packet in read_packets(path):
        five = packet.five_tuple
        if packet.proto not in (Transport.TCP, Transport.UDP):
            continue
        flow = flows.get(five) or flows.get(five.reversed()) or flows.setdefault(five, CapturedFlow(five))
        payload = packet.payload
        if packet.proto == Transport.TCP:
            if packet.flags & TcpFlags.SYN:
                expected[five] = packet.seq + 1
                continue
            payload = payload[expected[five] - packet.seq :]
            expected[five] = max(expected[five], packet.seq + len(packet.payload))
        if payload:
            flow.events.append((TO_SERVER if five == flow.tuple else TO_CLIENT, payload))
    return [flow for flow in flows.values() if flow.events]


def play(dissector: Dissector, events: Iterable[Event], options: DissectOptions | None = None) -> Played:
    """Feeds a fresh session until it rejects or is final. Holds it to its contract on the way."""
    session = dissector.open(options or DissectOptions())
    messages: list[Message] = []
    confirmed = False
    for direction, data in events:
        outcome: Outcome = session.feed(direction, data)
        assert isinstance(outcome, NeedMore | Reject | Confirm)
        if isinstance(outcome, Reject):
            assert not confirmed, "rejected after it had confirmed"
            assert outcome.reason
            return Played("reject", reason=outcome.reason)
        if isinstance(outcome, Confirm):
            assert outcome.messages or outcome.final
            confirmed = True
            messages += outcome.messages
            for message in outcome.messages:
                check_message(dissector, message)
            if outcome.final:
                return Played("confirm", tuple(messages), final=True)
    return Played("confirm", tuple(messages)) if confirmed else Played("need_more")


def check_message(dissector: Dissector, message: Message) -> None:
    names = {field.name for field in dissector.fields}
    assert message.facts
    assert names.issuperset(message.facts)
    assert set(message.facts).issuperset(message.spans)


def cut_events(events: Sequence[Event], cuts: Sequence[int]) -> list[Event]:
    """The same streams, each piece cut at some of the offsets."""
    pieces: list[Event] = []
    for direction, data in events:
        edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
        pieces += [(direction, data[start:end]) for start, end in itertools.pairwise(edges)]
    return pieces
