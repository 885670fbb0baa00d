"""WireGuard (Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", section 5.4).

Recognised by the lengths of its four messages and by the indexes that answers repeat. Either end may initiate, at any
time (rekeying), and a peer that changes its address goes on in a new flow with data; so every well-formed message
fits at any place, and only matched indexes confirm. A session is fed until the first matched data message and reports
a message at each change of stage.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.fields import Field, FieldKind
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import NEED_MORE, Confirm, FactValue, Message, Outcome, Reject, Span
from gfwemu.dissect.reader import MalformedBytes, Reader
from gfwemu.model import Direction, Transport

FIELDS = (
    Field(
        "wireguard.stage",
        FieldKind.ENUM,
        "The message that began the stage: handshake initiation, its response, a cookie reply, first transport data.",
        "response",
        ("initiation", "response", "cookie", "data"),
    ),
    Field(
        "wireguard.reserved",
        FieldKind.FLAG,
        "The three reserved bytes are not zero (Cloudflare WARP puts a client's identity there).",
        "true",
    ),
)


class _Type(IntEnum):
    """The first byte (section 5.4)."""

    INITIATION = 1
    RESPONSE = 2
    COOKIE = 3
    DATA = 4


_STAGES = {
    _Type.INITIATION: "initiation",
    _Type.RESPONSE: "response",
    _Type.COOKIE: "cookie",
    _Type.DATA: "data",
}
_CONFIRM_TYPES = {"initiation": _Type.INITIATION, "response": _Type.RESPONSE, "data": _Type.DATA}
_LENGTHS = {_Type.INITIATION: 148, _Type.RESPONSE: 92, _Type.COOKIE: 64}
# Section 5.4.6: header 16, then a padded packet (a multiple of 16, perhaps empty) and a tag of 16.
_SHORTEST_DATA = 32
_PADDING = 16

_TYPE_SPAN = Span(0, 1)
_RESERVED_SPAN = Span(1, 3)
_MAC2_LENGTH = 16
# An initiation that is sent again has a new index, and the answer may be to an earlier one; a peer gives up after
# 90 s of one every 5 s (section 6.1).
_REMEMBERED_INDEXES = 18


def _read_type(data: bytes) -> _Type:
    """The type that the first byte and the length agree on. Raises MalformedBytes."""
    first = data[0] if data else 0
    if first == _Type.DATA:
        if len(data) < _SHORTEST_DATA or len(data) % _PADDING:
            raise MalformedBytes("WireGuard: implausible length of a data message")
        return _Type.DATA
    if first not in _STAGES or len(data) != _LENGTHS[_Type(first)]:
        raise MalformedBytes("WireGuard: type and length do not agree")
    return _Type(first)


class WireguardSession:
    """One message a datagram. Until the protocol is recognised each must fit; later others are passed over."""

    __slots__ = ("_confirm", "_confirmed", "_indexes", "_reserved", "_stage")

    def __init__(self, options: DissectOptions) -> None:
        self._confirm = _CONFIRM_TYPES[options.wireguard_confirm]
        self._confirmed = False
        self._indexes: dict[Direction, deque[bytes]] = {
            direction: deque(maxlen=_REMEMBERED_INDEXES) for direction in Direction
        }
        self._reserved = False
        self._stage: _Type | None = None

    def feed(self, direction: Direction, data: bytes) -> Outcome:
        try:
            kind = _read_type(data)
        except MalformedBytes as problem:
            return NEED_MORE if self._confirmed else Reject(str(problem))
        reader = Reader(data, "WireGuard message", start=1)
        self._reserved = any(reader.take(3)) or self._reserved
        if kind in (_Type.INITIATION, _Type.RESPONSE):
            self._indexes[direction].append(reader.take(4))
        if kind is not _Type.INITIATION and reader.take(4) not in self._indexes[direction.opposite]:
            return NEED_MORE
        return self._advance(kind, data)

    def _advance(self, kind: _Type, data: bytes) -> Outcome:
        """After a message whose indexes match."""
        if not self._confirmed:
            if not self._confirms(kind, data):
                return NEED_MORE
            self._confirmed = True
        if kind is self._stage:
            return NEED_MORE
        self._stage = kind
        facts: dict[str, FactValue] = {"wireguard.stage": _STAGES[kind], "wireguard.reserved": self._reserved}
        spans = {"wireguard.stage": _TYPE_SPAN, "wireguard.reserved": _RESERVED_SPAN}
        return Confirm((Message(facts, spans),), final=kind is _Type.DATA)

    def _confirms(self, kind: _Type, data: bytes) -> bool:
        if kind is _Type.INITIATION and self._reserved and any(data[-_MAC2_LENGTH:]):
            # Nothing but a length and one byte fits; without load mac2 is zero (section 5.4.4).
            return False
        return kind is not _Type.COOKIE and kind >= self._confirm


WIREGUARD = Dissector("wireguard", frozenset({Transport.UDP}), FIELDS, WireguardSession)
