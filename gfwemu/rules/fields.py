"""Every field that may stand under `match:`: the engine's own and those of the dissectors."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from gfwemu.dissect.fields import Field, FieldKind
from gfwemu.dissect.registry import DISSECTORS
from gfwemu.model import Transport
from gfwemu.rules.compiled import Scope

UNKNOWN_PROTOCOL = "unknown"

_TCP = frozenset({int(Transport.TCP)})
_PORTS = frozenset({int(Transport.TCP), int(Transport.UDP)})
_ANY: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class RuleField:
    """A field with the moment at which it is known, the dissector that fills it (or ""), and its transports.

    `transports` empty: known on any.
    """

    field: Field
    scope: Scope
    transports: frozenset[int] = _ANY
    dissector: str = ""

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def kind(self) -> FieldKind:
        return self.field.kind


def _flow(field: Field, transports: frozenset[int] = _ANY) -> RuleField:
    return RuleField(field, Scope.FLOW, transports)


def _packet(field: Field, transports: frozenset[int] = _ANY) -> RuleField:
    return RuleField(field, Scope.PACKET, transports)


_K = FieldKind
_TRANSPORTS = ("tcp", "udp", "icmp", "icmpv6", "other")
_COUNTS = (
    ("count.packets", "packets of the flow so far, this one included", ">=25"),
    ("count.packets.to_server", "as count.packets, of the client", ">=15"),
    ("count.packets.to_client", "as count.packets, of the server", ">=5"),
    ("count.bytes", "IP bytes of the flow so far, this packet included", ">16384"),
    ("count.bytes.to_server", "as count.bytes, of the client", ">4000"),
    ("count.bytes.to_client", "as count.bytes, of the server", ">16384"),
)

ENGINE_FIELDS: tuple[RuleField, ...] = (
    _flow(Field("ip.client", _K.ADDRESS, "address of who opened the flow", "198.51.100.0/24")),
    _flow(Field("ip.server", _K.ADDRESS, "address of the other end", "203.0.113.7")),
    _flow(Field("ip.any", _K.ADDRESS, "address of either end", "2001:db8::/32")),
    _flow(Field("ip.version", _K.NUMBER, "4 or 6", "4")),
    _flow(Field("port.client", _K.PORT, "port of who opened the flow", "1024-65535"), _PORTS),
    _flow(Field("port.server", _K.PORT, "port of the other end", "443"), _PORTS),
    _flow(Field("port.client_above_server", _K.FLAG, "the client's port is higher than the server's", "true"), _PORTS),
    _flow(Field("transport", _K.ENUM, "what IP carries", "tcp", _TRANSPORTS)),
    _flow(Field("initiator", _K.ENUM, "the side that opened the flow", "inside", ("inside", "outside"))),
    _flow(Field("subscriber", _K.TEXT, "name, from `subscribers:`, of who sits at the inside address", "alice")),
    _flow(Field("subscriber.group", _K.TEXTS, "groups of that subscriber", "foreign-sim")),
    RuleField(
        Field("protocol", _K.ENUM, "the recognised protocol; `unknown` once every dissector has rejected", "openvpn"),
        Scope.MESSAGE,
    ),
    _packet(Field("direction", _K.ENUM, "of this packet", "to_server", ("to_server", "to_client"))),
    _packet(Field("tcp.flags", _K.TEXT, "flags of this segment, letters in the order FSRPAUEC", "SA"), _TCP),
    _packet(Field("packet.length", _K.NUMBER, "IP length of this packet in bytes", ">1200")),
    _packet(Field("payload.number", _K.NUMBER, "ordinal, from 1, of this payload in its direction", "1")),
    _packet(Field("payload.length", _K.NUMBER, "payload bytes of this packet", ">=411")),
    _packet(Field("payload.length_mod16", _K.NUMBER, "payload bytes of this packet modulo 16", "9")),
    _packet(
        Field(
            "payload.bytes",
            _K.BYTES,
            "bytes at an offset, as `hex` (?? is any byte, 00-09 one of these) or as `text`",
            "{offset: 0, hex: 16 03 00-04}",
        )
    ),
    _packet(Field("payload.contains", _K.BYTES, "text, or {hex:}, anywhere in the payload", "falun")),
    _packet(Field("payload.popcount", _K.NUMBER, "one-bits per byte of the payload, 0 to 8", "3.4-4.6")),
    _packet(
        Field("payload.entropy", _K.NUMBER, "Shannon entropy of the payload's bytes, in bits per byte, 0 to 8", ">=7")
    ),
    _packet(Field("payload.printable", _K.NUMBER, "fraction of bytes that are printable ASCII, 0 to 1", "<=0.5")),
    _packet(Field("payload.printable_run", _K.NUMBER, "longest run of printable ASCII bytes", "<=20")),
    _packet(Field("payload.printable_prefix", _K.NUMBER, "printable ASCII bytes at the start", "<6")),
    *(_packet(Field(name, _K.NUMBER, description, example)) for name, description, example in _COUNTS),
)


@functools.cache
def rule_fields() -> Mapping[str, RuleField]:
    """All fields by name: the engine's in the table's order, then those of the dissectors."""
    fields = {entry.name: entry for entry in ENGINE_FIELDS}
    protocol = fields["protocol"].field
    names = tuple(dict.fromkeys(dissector.name for dissector in DISSECTORS))
    fields["protocol"] = RuleField(
        Field(protocol.name, protocol.kind, protocol.description, protocol.example, (*names, UNKNOWN_PROTOCOL)),
        Scope.MESSAGE,
    )
    for dissector in DISSECTORS:
        for field in dissector.fields:
            known = fields.get(field.name)
            transports = dissector.transports | (known.transports if known else _ANY)
            fields[field.name] = RuleField(field, Scope.MESSAGE, transports, dissector.name)
    return fields


@functools.cache
def dissector_transports() -> Mapping[str, frozenset[int]]:
    """The transports that each dissector reads."""
    found: dict[str, frozenset[int]] = {}
    for dissector in DISSECTORS:
        found[dissector.name] = found.get(dissector.name, _ANY) | dissector.transports
    return found
