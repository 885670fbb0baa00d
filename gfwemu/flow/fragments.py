"""IP fragments, put together by the censor's own policy (RFC 791 section 3.2, RFC 8200 section 4.5)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from gfwemu.flow.options import FragmentOptions
from gfwemu.wire.packet import Packet


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
        """Takes one fragment; None while the datagram is incomplete."""
        key = DatagramKey(packet.src, packet.dst, packet.ip_id, packet.proto)
        datagram = self._datagrams.get(key)
        if datagram is None:
            datagram = self._datagrams[key] = _Datagram(now)
        datagram.packet_ids.append(packet_id)
        data = packet.raw[packet.transport_offset :]
        if len(datagram.packet_ids) > self.options.limit or not self._place(datagram, packet.fragment_offset, data):
            del self._datagrams[key]
            return Refused(tuple(datagram.packet_ids))
        if packet.fragment_offset == 0:
            datagram.first = packet
        if not packet.more_fragments:
            datagram.total = packet.fragment_offset + len(data)
        payload = _joined(datagram, last_wins=self.options.on_overlap == "last")
        if payload is None or datagram.first is None:
            return None
        del self._datagrams[key]
        return Complete(datagram.first, payload, tuple(datagram.packet_ids))

    def expire(self, now: float) -> list[int]:
        """Packet IDs of datagrams that waited too long."""
        gone: list[int] = []
        while self._datagrams:
            key, oldest = next(iter(self._datagrams.items()))
            if now - oldest.started < self.options.timeout:
                break
            del self._datagrams[key]
            gone.extend(oldest.packet_ids)
        return gone

    def overflow(self) -> list[int]:
        """Packet IDs of the oldest datagrams beyond the bound."""
        gone: list[int] = []
        while len(self._datagrams) > self.options.datagrams:
            _, oldest = self._datagrams.popitem(last=False)
            gone.extend(oldest.packet_ids)
        return gone

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

    def _place(self, datagram: _Datagram, offset: int, data: bytes) -> bool:
        overlaps = any(offset < start + len(held) and start < offset + len(data) for start, held in datagram.pieces)
        if overlaps and self.options.on_overlap == "drop":
            return False
        datagram.pieces.append((offset, data))
        return True


def _joined(datagram: _Datagram, *, last_wins: bool) -> bytes | None:
    """The whole payload, None while bytes are missing."""
    if datagram.total is None:
        return None
    whole, filled = bytearray(datagram.total), bytearray(datagram.total)
    for offset, data in datagram.pieces if last_wins else reversed(datagram.pieces):
        room = data[: max(0, datagram.total - offset)]
        whole[offset : offset + len(room)] = room
        filled[offset : offset + len(room)] = b"\x01" * len(room)
    return bytes(whole) if all(filled) else None
