"""IP fragments, put together by the censor's own policy (RFC 791 section 3.2, RFC 8200 section 4.5)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gfwemu.flow.options import FragmentOptions
from gfwemu.wire.packet import Packet

_LARGEST = 65_535
"""Bytes after the IPv6 header (RFC 8200 section 3), or of a whole IPv4 packet (RFC 791 section 3.1)."""

_IPV4_HEADER = 20


class DatagramKey(NamedTuple):
    src: bytes
    dst: bytes
    ip_id: int
    proto: int


@dataclass(slots=True)
class _Datagram:
    started: float
    packet_ids: list[int] = field(default_factory=list)
    pieces: list[tuple[int, bytes]] = field(default_factory=list)
    bytes: int = 0
    first: Packet | None = None
    total: int | None = None


class Refused(NamedTuple):
    """The datagram breaks the policy: its fragments, this one included, are not let through."""

    packet_ids: tuple[int, ...]


class Complete(NamedTuple):
    """All fragments are here: the first one's header fields, the whole payload, every packet ID in arrival order."""

    first: Packet
    payload: bytes
    packet_ids: tuple[int, ...]


class Fragments:
    """At most `options.datagrams` datagrams in the making; the oldest goes first."""

    def __init__(self, options: FragmentOptions) -> None:
        self.options = options
        self._datagrams: OrderedDict[DatagramKey, _Datagram] = OrderedDict()

    def __len__(self) -> int:
        return len(self._datagrams)

    def add(self, packet_id: int, packet: Packet, now: float) -> Complete | Refused | None:
        """Takes one fragment; None while the datagram is incomplete. What grows too large to exist is refused."""
        key = DatagramKey(packet.src, packet.dst, packet.ip_id, packet.proto)
        datagram = self._datagrams.get(key)
        if datagram is None:
            datagram = self._datagrams[key] = _Datagram(now)
        datagram.packet_ids.append(packet_id)
        data = packet.raw[packet.transport_offset :]
        end = packet.fragment_offset + len(data)
        room = _LARGEST - (_IPV4_HEADER if packet.version == 4 else 0)
        if len(datagram.packet_ids) > self.options.limit or end > room or not self._place(datagram, packet, data):
            del self._datagrams[key]
            return Refused(tuple(datagram.packet_ids))
        last_wins = self.options.on_overlap == "last"
        if packet.fragment_offset == 0 and (datagram.first is None or last_wins):
            datagram.first = packet
        if not packet.more_fragments and (datagram.total is None or last_wins):
            datagram.total = end
        payload = _joined(datagram, self.options.on_overlap)
        if payload is None or datagram.first is None:
            return None
        del self._datagrams[key]
        return Complete(datagram.first, payload, tuple(datagram.packet_ids))

    def expire(self, now: float) -> list[int]:
        """Packet IDs of datagrams that waited too long."""
        gone: list[int] = []
        while self._datagrams:
            key, oldest = next(iter(self._datagrams.items()))
            if oldest.started + self.options.timeout > now:
                break
            del self._datagrams[key]
            gone.extend(oldest.packet_ids)
        return gone

    def overflow(self) -> list[int]:
        """Packet IDs of the oldest datagrams beyond the bound."""
        gone: list[int] = []
        while len(self._datagrams) > self.options.datagrams:
            gone.extend(self.pop_oldest())
        return gone

    def pop_oldest(self) -> list[int]:
        """Packet IDs of the oldest datagram, which is forgotten."""
        if not self._datagrams:
            return []
        return self._datagrams.popitem(last=False)[1].packet_ids

    def next_expiry(self) -> float | None:
        """When the oldest datagram in the making runs out."""
        for oldest in self._datagrams.values():
            return oldest.started + self.options.timeout
        return None

    def drain(self) -> list[int]:
        """Every packet ID that still waits; the table is empty afterwards."""
        waiting = [packet_id for datagram in self._datagrams.values() for packet_id in datagram.packet_ids]
        self._datagrams.clear()
        return waiting

    def _place(self, datagram: _Datagram, packet: Packet, data: bytes) -> bool:
        """False where the datagram contradicts itself and the policy is to drop it then."""
        offset, end = packet.fragment_offset, packet.fragment_offset + len(data)
        if self.options.on_overlap == "drop":
            overlaps = any(offset < start + len(held) and start < end for start, held in datagram.pieces)
            beyond = datagram.total is not None and (end > datagram.total or not packet.more_fragments)
            short = not packet.more_fragments and any(start + len(held) > end for start, held in datagram.pieces)
            if overlaps or beyond or short:
                return False
        datagram.pieces.append((offset, data))
        datagram.bytes += len(data)
        return True


def _joined(datagram: _Datagram, policy: str) -> bytes | None:
    """The whole payload, None while bytes are missing."""
    if datagram.total is None or datagram.bytes < datagram.total:
        return None
    whole, filled = bytearray(datagram.total), bytearray(datagram.total)
    pieces = datagram.pieces if policy in ("last", "first_unless_wider") else reversed(datagram.pieces)
    for number, (offset, data) in enumerate(pieces):
        earlier = datagram.pieces[:number] if policy == "first_unless_wider" else ()
        for start, end in _won(offset, min(offset + len(data), datagram.total), earlier):
            whole[start:end] = data[start - offset : end - offset]
            filled[start:end] = b"\x01" * (end - start)
    return bytes(whole) if all(filled) else None


def _won(start: int, end: int, earlier: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, int]]:
    """The parts of a fragment that lie in no earlier one, but for those that begin and end inside of it."""
    standing = sorted(
        (left, left + len(held)) for left, held in earlier if not (start < left and left + len(held) < end)
    )
    for left, right in standing:
        if left > start:
            yield start, min(left, end)
        start = max(start, right)
        if start >= end:
            return
    if start < end:
        yield start, end
