"""The facts that the engine itself knows: of the flow when it opens, and of each packet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from gfwemu.flow.flow import Flow, direction_index
from gfwemu.model import TRANSPORT_NAMES, Direction, FiveTuple, Side
from gfwemu.rules.compiled import Fact, Facts, Subscriber
from gfwemu.wire.packet import Packet

_FLAG_LETTERS = "FSRPAUEC"
_PRINTABLE_BYTES = bytes(range(0x20, 0x7F))
_PRINTABLE_OR_ZERO = bytes(byte if byte in _PRINTABLE_BYTES else 0 for byte in range(256))


def in_networks(address: bytes, networks: Sequence[tuple[bytes, int]]) -> bool:
    """Whether a packed address lies in any of the packed (network, prefix length)."""
    number = int.from_bytes(address, "big")
    bits = len(address) * 8
    return any(
        len(network) == len(address) and (number ^ int.from_bytes(network, "big")) >> (bits - length) == 0
        for network, length in networks
    )


def inside_end(flow: Flow) -> bytes:
    """The address of the subscriber: the client's, unless the flow was opened from outside."""
    return flow.tuple.dst if flow.side is Side.OUTSIDE else flow.tuple.src


class FlowFacts:
    """The FLOW-scope fields, each worked out when a rule asks. `ip.any` holds both ends.

    key: from client to server. side: of who opened the flow.
    """

    __slots__ = ("key", "side", "subscriber")

    def __init__(self, flow: Flow, subscribers: Sequence[Subscriber]) -> None:
        self.key = flow.tuple
        self.side = flow.side
        self.subscriber: Subscriber | None = None
        if subscribers:
            inside = inside_end(flow)
            self.subscriber = next((one for one in subscribers if in_networks(inside, one.networks)), None)

    def get(self, field: str) -> Any:
        """None where it is not known and never will be."""
        read = _FLOW_FIELDS.get(field)
        return None if read is None else read(self)

    def known(self) -> dict[str, Fact]:
        """All that is known."""
        values = {field: read(self) for field, read in _FLOW_FIELDS.items()}
        return {field: value for field, value in values.items() if value is not None}


def _of_ports(read: Callable[[FiveTuple], Fact]) -> Callable[[FlowFacts], Any]:
    return lambda facts: read(facts.key) if facts.key.sport or facts.key.dport else None


_FLOW_FIELDS: dict[str, Callable[[FlowFacts], Any]] = {
    "ip.client": lambda facts: facts.key.src,
    "ip.server": lambda facts: facts.key.dst,
    "ip.any": lambda facts: (facts.key.src, facts.key.dst),
    "ip.version": lambda facts: 4 if len(facts.key.src) == 4 else 6,
    "port.client": _of_ports(lambda key: key.sport),
    "port.server": _of_ports(lambda key: key.dport),
    "port.client_above_server": _of_ports(lambda key: key.sport > key.dport),
    "transport": lambda facts: TRANSPORT_NAMES.get(facts.key.proto, "other"),
    "initiator": lambda facts: None if facts.side is None else facts.side.value,
    "subscriber": lambda facts: None if facts.subscriber is None else facts.subscriber.name,
    "subscriber.group": lambda facts: None if facts.subscriber is None else tuple(sorted(facts.subscriber.groups)),
}

FLOW_FIELDS = frozenset(_FLOW_FIELDS)
"""What is known, or known never to come, when a flow opens."""


def flags_text(flags: int) -> str:
    """TCP flags as letters in the order FSRPAUEC."""
    return "".join(letter for bit, letter in enumerate(_FLAG_LETTERS) if flags >> bit & 1)


def printable_prefix(payload: bytes) -> int:
    """Length of the run of bytes 0x20-0x7e at the start."""
    return len(payload) - len(payload.lstrip(_PRINTABLE_BYTES))


def printable_run(payload: bytes) -> int:
    """Length of the longest run of bytes 0x20-0x7e."""
    return max(map(len, payload.translate(_PRINTABLE_OR_ZERO).split(b"\0")))


def printable_fraction(payload: bytes) -> float:
    return 1 - len(payload.translate(None, _PRINTABLE_BYTES)) / len(payload)


def popcount(payload: bytes) -> float:
    """Set bits for each byte, 0 to 8."""
    return int.from_bytes(payload, "big").bit_count() / len(payload)


def entropy(payload: bytes) -> float:
    """Shannon entropy of the distribution of byte values, in bits per byte, 0 to 8."""
    size = len(payload)
    return math.log2(size) - sum(count * math.log2(count) for count in Counter(payload).values()) / size


class PacketView:
    """The fields of one packet in its flow, each computed when a rule asks."""

    __slots__ = ("direction", "flow", "packet")

    def __init__(self, packet: Packet, flow: Flow, direction: Direction) -> None:
        self.packet = packet
        self.flow = flow
        self.direction = direction

    def get(self, field: str) -> Fact | None:
        """The field's value, None where it does not apply (payload fields of an empty packet)."""
        read = PACKET_FIELDS.get(field)
        return None if read is None else read(self)


def _of_payload(measure: Callable[[bytes], Fact]) -> Callable[[PacketView], Fact | None]:
    return lambda view: measure(view.packet.payload) if view.packet.payload else None


PACKET_FIELDS: dict[str, Callable[[PacketView], Fact | None]] = {
    "direction": lambda view: view.direction.value,
    "tcp.flags": lambda view: flags_text(view.packet.flags) if view.packet.proto == 6 else None,
    "packet.length": lambda view: len(view.packet.raw),
    "payload.number": lambda view: view.flow.payloads[direction_index(view.direction)] if view.packet.payload else None,
    "payload.length": _of_payload(len),
    "payload.length_mod16": _of_payload(lambda payload: len(payload) % 16),
    "payload.bytes": _of_payload(bytes),
    "payload.contains": _of_payload(bytes),
    "payload.popcount": _of_payload(popcount),
    "payload.entropy": _of_payload(entropy),
    "payload.printable": _of_payload(printable_fraction),
    "payload.printable_run": _of_payload(printable_run),
    "payload.printable_prefix": _of_payload(printable_prefix),
    "count.packets": lambda view: sum(view.flow.packets),
    "count.packets.to_server": lambda view: view.flow.packets[0],
    "count.packets.to_client": lambda view: view.flow.packets[1],
    "count.bytes": lambda view: sum(view.flow.bytes),
    "count.bytes.to_server": lambda view: view.flow.bytes[0],
    "count.bytes.to_client": lambda view: view.flow.bytes[1],
}


class View:
    """Everything that is known for one look at the rules: packet, message, flow, in that order."""

    __slots__ = ("flow_facts", "message", "packet")

    def __init__(self, flow_facts: FlowFacts, message: Facts, packet: PacketView | None) -> None:
        self.flow_facts = flow_facts
        self.message = message
        self.packet = packet

    def get(self, field: str) -> Fact | None:
        value = self.message.get(field)
        if value is None:
            value = self.flow_facts.get(field)
        if value is None and self.packet is not None:
            value = self.packet.get(field)
        return value

    def facts(self) -> dict[str, Fact]:
        """All of it, for a Python hook."""
        known = self.flow_facts.known()
        known.update(self.message)
        if self.packet is not None:
            for field, read in PACKET_FIELDS.items():
                value = read(self.packet)
                if value is not None:
                    known[field] = value
        return known
