"""The server of the replay: just enough of a TCP stack to ignore what Linux ignores and to answer what it answers.

What Linux ignores follows Wang et al., "Your State is Not Mine", IMC 2017, Table 3; the live runner has the real thing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from gfwemu.flow.fragments import Complete, Fragments
from gfwemu.flow.options import FragmentOptions
from gfwemu.model import FiveTuple, Transport
from gfwemu.wire.build import build_ip, build_tcp, build_udp
from gfwemu.wire.checksum import checksum_ok
from gfwemu.wire.packet import Malformed, Packet, TcpFlags
from gfwemu.wire.parse import parse_packet

_FIN, _SYN, _RST, _PSH, _ACK = (
    int(flag) for flag in (TcpFlags.FIN, TcpFlags.SYN, TcpFlags.RST, TcpFlags.PSH, TcpFlags.ACK)
)
_MD5, _TIMESTAMP = 19, 8  # TCP option kinds (IANA)
_WINDOW = 65160
_SPACE = 1 << 32
_REAL_V4, _REAL_V6 = bytes([203, 0, 113, 10]), bytes.fromhex("20010db8000f00000000000000000010")


@dataclass(slots=True)
class _Connection:
    iss: int
    next_in: int
    next_out: int
    established: bool = False
    closed: bool = False
    read: bytearray = field(default_factory=bytearray)
    waiting: dict[int, bytes] = field(default_factory=dict)
    timestamp: int | None = None


class ModelHost:
    """Every address of one side. `silent`: addresses that nobody has; `resolvers`: those that answer DNS over UDP."""

    def __init__(self, silent: set[bytes], resolvers: set[bytes]) -> None:
        self._silent = silent
        self._resolvers = resolvers
        self._connections: dict[FiveTuple, _Connection] = {}
        self._datagrams: dict[FiveTuple, bytearray] = {}
        self._fragments = Fragments(FragmentOptions())

    def received(self, flow: FiveTuple) -> bytes:
        connection = self._connections.get(flow)
        return bytes(connection.read) if connection else bytes(self._datagrams.get(flow, b""))

    def say(self, flow: FiveTuple, data: bytes) -> bytes | None:
        """The packet that carries `data` to the client; None without a connection."""
        if flow.proto == Transport.UDP:
            return build_udp(flow.reversed(), data)
        connection = self._connections.get(flow)
        if connection is None or connection.closed or not connection.established:
            return None
        packet = self._segment(flow, connection, _PSH | _ACK, data)
        connection.next_out = (connection.next_out + len(data)) % _SPACE
        return packet

    def take(self, packet: Packet, now: float) -> list[bytes]:
        """What the host answers."""
        if packet.dst in self._silent:
            return []
        if packet.is_fragment:
            whole = self._fragments.add(0, packet, now)
            if not isinstance(whole, Complete):
                return []
            first = whole.first
            parsed = parse_packet(build_ip(first.src, first.dst, first.proto, whole.payload, ttl=first.ttl))
            if isinstance(parsed, Malformed):
                return []
            packet = parsed
        if not checksum_ok(packet):
            return []
        if packet.proto == Transport.TCP:
            return self._tcp(packet)
        if packet.proto == Transport.UDP:
            self._datagrams.setdefault(packet.five_tuple, bytearray()).extend(packet.payload)
            if packet.dst in self._resolvers and packet.dport == 53:
                return [
                    build_udp(packet.five_tuple.reversed(), answer) for answer in [_resolve(packet.payload)] if answer
                ]
        return []

    def _tcp(self, packet: Packet) -> list[bytes]:
        header = packet.data_offset * 4
        if header < 20 or header > len(packet.raw) - packet.transport_offset or _MD5 in _options(packet):
            return []
        flow = packet.five_tuple
        connection = self._connections.get(flow)
        if connection is None:
            if packet.flags & (_SYN | _ACK | _RST | _FIN) != _SYN:
                return [] if packet.flags & _RST else [_refusal(packet)]
            iss = (packet.seq * 2654435761 + 12345) % _SPACE
            connection = _Connection(iss, (packet.seq + 1) % _SPACE, iss)
            self._connections[flow] = connection
            answer = self._segment(flow, connection, _SYN | _ACK)
            connection.next_out = (iss + 1) % _SPACE
            return [answer]
        if connection.closed:
            return [] if packet.flags & _RST else [_refusal(packet)]
        return self._known(packet, flow, connection)

    def _known(self, packet: Packet, flow: FiveTuple, connection: _Connection) -> list[bytes]:
        ahead = _distance(connection.next_in, packet.seq)
        if packet.flags & _RST:
            if ahead == 0:
                connection.closed = True
                return []
            return [self._segment(flow, connection, _ACK)] if 0 < ahead < _WINDOW else []
        if packet.flags & _SYN:
            if not connection.established and packet.seq == (connection.next_in - 1) % _SPACE:
                connection.next_out = connection.iss
                again = self._segment(flow, connection, _SYN | _ACK)
                connection.next_out = (connection.iss + 1) % _SPACE
                return [again]
            return [self._segment(flow, connection, _ACK)]
        if not packet.flags & _ACK:
            return []
        ours = _distance(connection.next_out, packet.ack)
        if ours > 0 or ours < -_WINDOW or (not connection.established and ours != 0):
            return [] if connection.established else [_refusal(packet)]
        stamp = _options(packet).get(_TIMESTAMP)
        if stamp is not None and len(stamp) == 8:
            value = int.from_bytes(stamp[:4], "big")
            if connection.timestamp is not None and _distance(connection.timestamp, value) < 0:
                return [self._segment(flow, connection, _ACK)]
            connection.timestamp = value
        connection.established = True
        if not packet.payload and not packet.flags & _FIN:
            return []
        self._queue(connection, packet.seq, packet.payload, ahead)
        if packet.flags & _FIN and _distance(connection.next_in, packet.seq + len(packet.payload)) == 0:
            connection.next_in = (connection.next_in + 1) % _SPACE
        return [self._segment(flow, connection, _ACK)]

    def _queue(self, connection: _Connection, seq: int, payload: bytes, ahead: int) -> None:
        """The first copy of a byte stays, as in Linux."""
        if ahead >= _WINDOW or ahead + len(payload) < 0:
            return
        for at in range(max(0, -ahead), len(payload)):
            connection.waiting.setdefault((seq + at) % _SPACE, payload[at : at + 1])
        while (byte := connection.waiting.pop(connection.next_in, None)) is not None:
            connection.read += byte
            connection.next_in = (connection.next_in + 1) % _SPACE

    def _segment(self, flow: FiveTuple, connection: _Connection, flags: int, data: bytes = b"") -> bytes:
        return build_tcp(
            flow.reversed(),
            seq=connection.next_out,
            ack=connection.next_in,
            flags=flags,
            window=_WINDOW,
            payload=data,
            dont_fragment=True,
        )


def _refusal(packet: Packet) -> bytes:
    """RFC 9293 section 3.10.7.1."""
    if packet.flags & _ACK:
        return build_tcp(packet.five_tuple.reversed(), seq=packet.ack, ack=0, flags=_RST)
    length = len(packet.payload) + bool(packet.flags & _SYN) + bool(packet.flags & _FIN)
    return build_tcp(packet.five_tuple.reversed(), seq=0, ack=packet.seq + length, flags=_RST | _ACK)


def _distance(start: int, end: int) -> int:
    """How far `end` is ahead of `start`, negative where it is behind (RFC 9293 section 3.4)."""
    return (end - start + (_SPACE >> 1)) % _SPACE - (_SPACE >> 1)


def _options(packet: Packet) -> dict[int, bytes]:
    """RFC 9293 section 3.1."""
    found: dict[int, bytes] = {}
    data, at = packet.tcp_options, 0
    while at < len(data) and data[at]:
        if data[at] == 1:
            at += 1
            continue
        length = data[at + 1] if at + 1 < len(data) else 0
        if length < 2:
            break
        found[data[at]] = data[at + 2 : at + length]
        at += length
    return found


def _resolve(query: bytes) -> bytes:
    """An honest resolver's answer: the lab's one address for every name. Empty for what is no plain query."""
    if len(query) < 12 or query[2] & 0x80 or struct.unpack_from("!H", query, 4)[0] != 1:
        return b""
    at = 12
    while at < len(query) and query[at]:
        if query[at] >= 64:
            return b""
        at += query[at] + 1
    question = query[12 : at + 5]
    if len(query) < at + 5:
        return b""
    kind = struct.unpack_from("!H", query, at + 1)[0]
    address = {1: _REAL_V4, 28: _REAL_V6}.get(kind, b"")
    head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, bool(address), 0, 0)
    record = b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(address)) + address if address else b""
    return head + question + record
