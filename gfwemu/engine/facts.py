"""The facts that the engine itself knows: of the flow when it opens, and of each packet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from gfwemu.flow.flow import Flow, direction_index
from gfwemu.model import TRANSPORT_NAMES, Direction, Side
from gfwemu.rules.compiled import Fact, Facts, Subscriber
from gfwemu.wire.packet import Packet

_FLAG_LETTERS = "FSRPAUEC"
_PRINTABLE = frozenset(range(0x20, 0x7F))
_PRINTABLE_BYTES = bytes(sorted(_PRINTABLE))


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


def flow_facts(flow: Flow, subscribers: Sequence[Subscriber]) -> dict[str, Any]:
    """FLOW-scope fields; `ip.any` holds both ends."""
    key = flow.tuple
    facts: dict[str, Any] = {
        "ip.client": key.src,
        "ip.server": key.dst,
        "ip.any": (key.src, key.dst),
        "ip.version": 4 if len(key.src) == 4 else 6,
        "transport": TRANSPORT_NAMES.get(key.proto, "other"),
    }
    if key.sport or key.dport:
        facts["port.client"] = key.sport
        facts["port.server"] = key.dport
        facts["port.client_above_server"] = key.sport > key.dport
    if flow.side is not None:
        facts["initiator"] = flow.side.value
    inside = inside_end(flow)
    for subscriber in subscribers:
        if in_networks(inside, subscriber.networks):
            facts["subscriber"] = subscriber.name
            facts["subscriber.group"] = tuple(sorted(subscriber.groups))
            break
    return facts


def flags_text(flags: int) -> str:
    """TCP flags as letters in the order FSRPAUEC."""
    return "".join(letter for bit, letter in enumerate(_FLAG_LETTERS) if flags >> bit & 1)


def printable_prefix(payload: bytes) -> int:
    """Length of the run of bytes 0x20-0x7e at the start."""
    return len(payload) - len(payload.lstrip(_PRINTABLE_BYTES))


def printable_run(payload: bytes) -> int:
    """Length of the longest run of bytes 0x20-0x7e."""
    longest = run = 0
    for byte in payload:
        run = run + 1 if byte in _PRINTABLE else 0
        longest = max(longest, run)
    return longest


def printable_fraction(payload: bytes) -> float:
    return 1 - len(payload.translate(None, _PRINTABLE_BYTES)) / len(payload)


def popcount(payload: bytes) -> float:
    """Set bits for each byte, 0 to 8."""
    return int.from_bytes(payload, "big").bit_count() / len(payload)


def entropy(payload: bytes) -> float:
    """Shannon entropy of the distribution of byte values, in bits per byte, 0 to 8."""
    size = len(payload)
    return math.log2(size) - sum(count * math.log2(count) for count in Counter(payload).values()) / size


FLOW_FIELDS = frozenset(
    {
        "ip.client",
        "ip.server",
        "ip.any",
        "ip.version",
        "port.client",
        "port.server",
        "port.client_above_server",
        "transport",
        "initiator",
        "subscriber",
        "subscriber.group",
    }
)
"""What is known, or known never to come, when a flow opens."""


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

    def __init__(self, flow_facts: Facts, message: Facts, packet: PacketView | None) -> None:
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
        known: dict[str, Fact] = dict(self.flow_facts)
        known.update(self.message)
        if self.packet is not None:
            for field, read in PACKET_FIELDS.items():
                value = read(self.packet)
                if value is not None:
                    known[field] = value
        return known
