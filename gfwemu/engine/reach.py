"""Which packets the rules of a box can concern at all, by transport, port and address."""

from __future__ import annotations

from collections.abc import Sequence

from gfwemu.model import TRANSPORT_NAMES
from gfwemu.rules.actions import Redirect
from gfwemu.rules.compiled import CompiledRule, Condition, Matcher
from gfwemu.rules.fields import dissector_transports
from gfwemu.rules.needs import Ports, spans_of
from gfwemu.wire.packet import Packet

_OTHER = -1
"""Stands for every protocol without a name in TRANSPORT_NAMES."""

_EVERY: frozenset[int] = frozenset({*TRANSPORT_NAMES, _OTHER})
_PORTS = 1 << 16
_MOST_MATCHERS = 8
"""Address matchers that one packet is held against; of more, asking would cost what leaving the box out saves."""

_ENDS = ("ip.client", "ip.server", "ip.any")


class Reach:
    """What a packet must bear for any of the rules to concern it. Where in doubt, the packet is concerned."""

    def __init__(self, rules: Sequence[CompiledRule]) -> None:
        self._ports: dict[int, bytearray | None] = {}
        for rule in rules:
            ports = None if _blocks_pairs(rule) else _ports_of(rule)
            for transport in _EVERY if _blocks_pairs(rule) else _transports_of(rule):
                self._add(transport, ports)
        matchers = [_address_of(rule) for rule in rules]
        distinct = {id(one): one for one in matchers if one is not None}
        self._addresses = tuple(distinct.values()) if None not in matchers and len(distinct) <= _MOST_MATCHERS else None

    def concerns(self, packet: Packet) -> bool:
        """Whether any rule may do anything to this packet, which is no fragment."""
        proto = packet.proto if packet.proto in TRANSPORT_NAMES else _OTHER
        if proto not in self._ports:
            return False
        ports = self._ports[proto]
        if ports is not None and not (ports[packet.sport] or ports[packet.dport]):
            return False
        if self._addresses is None:
            return True
        return any(one.match(packet.dst) is not None or one.match(packet.src) is not None for one in self._addresses)

    def _add(self, transport: int, spans: Ports | None) -> None:
        present = self._ports.setdefault(transport, bytearray(_PORTS))
        if spans is None or present is None:
            self._ports[transport] = None
            return
        for low, high in spans:
            present[low : high + 1] = b"\x01" * (high + 1 - low)


def _blocks_pairs(rule: CompiledRule) -> bool:
    """Whether a residual block of the rule meets every packet between two hosts, or of a server."""
    return rule.residual is not None and rule.residual.spans_ports


def _transports_of(rule: CompiledRule) -> frozenset[int]:
    allowed = _EVERY
    for condition in rule.conditions:
        allowed &= _transports(condition)
    return allowed


def _transports(condition: Condition) -> frozenset[int]:
    names = {number: TRANSPORT_NAMES.get(number, "other") for number in _EVERY}
    if condition.field == "transport":
        return frozenset(
            number for number, name in names.items() if (condition.matcher.match(name) is None) == condition.negated
        )
    if condition.field.startswith("tcp."):
        return frozenset({6})
    return frozenset(dissector_transports().get(condition.field.partition(".")[0], _EVERY))


def _ports_of(rule: CompiledRule) -> Ports | None:
    """The ports of which one end must have one; None: any. A residual block meets other ports of the client."""
    fields = ("port.server", "port.client") if rule.residual is None else ("port.server",)
    for condition in rule.conditions:
        if condition.field in fields and not condition.negated:
            spans = spans_of(condition.matcher)
            if spans is not None:
                return spans
    return None


def _address_of(rule: CompiledRule) -> Matcher | None:
    """The addresses of which one end must have one; None: any, as where replies come from another server."""
    blocks_others = rule.residual is not None and rule.residual.spans_clients
    if isinstance(rule.action, Redirect) or blocks_others:
        return None
    for condition in rule.conditions:
        if condition.field in _ENDS and not condition.negated:
            return condition.matcher
    return None
