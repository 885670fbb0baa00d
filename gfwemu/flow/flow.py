"""What the censor remembers of one flow."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any

from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.outcome import Session
from gfwemu.flow.tcb import Tcb
from gfwemu.model import Direction, FiveTuple, Side
from gfwemu.wire.midflow import Ends

_TO_SERVER = Direction.TO_SERVER
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class FlowState(Enum):
    """The lifetime class of a flow; each has a time-out of its own."""

    OPENING = "new"
    ESTABLISHED = "established"
    CLOSING = "closed"
    UDP = "udp"
    OTHER = "other"

    __hash__ = object.__hash__
    """Members are single objects; Enum's own hash of the name costs a call for each packet."""

    @property
    def told_as(self) -> str:
        """As event logs call it: `new`, `established` or `closed`."""
        return "established" if self in (FlowState.UDP, FlowState.OTHER) else self.value


class Flow:
    """Both directions between one client and one server. `tuple` runs from client to server.

    Sizes are whole IP packets. `fins` has bit 0 for a closed to_server and bit 1 for a closed to_client. `decision`
    belongs to the engine. `by_synack`: who is the client is known by a SYN/ACK alone. `ends`: by which the table finds
    it besides, of packets to the server and to the client. There are many flows, so what mostly stays empty is nothing
    of its own until it is needed.
    """

    __slots__ = (
        "alias",
        "by_synack",
        "bytes_to_client",
        "bytes_to_server",
        "client_isn",
        "confirmed",
        "decision",
        "dropped",
        "ends",
        "excerpt_to_client",
        "excerpt_to_server",
        "facts",
        "fins",
        "flow_id",
        "injected",
        "inspected_to_client",
        "inspected_to_server",
        "last",
        "packets_to_client",
        "packets_to_server",
        "payloads_to_client",
        "payloads_to_server",
        "protocol",
        "rules",
        "sessions",
        "side",
        "start",
        "state",
        "tcb",
        "tuple",
    )

    def __init__(self, flow_id: int, key: FiveTuple, side: Side | None, now: float, state: FlowState) -> None:
        self.flow_id = flow_id
        self.tuple = key
        self.side = side
        self.start = now
        self.last = now
        self.state = state
        self.packets_to_server = self.packets_to_client = 0
        self.bytes_to_server = self.bytes_to_client = 0
        self.payloads_to_server = self.payloads_to_client = 0
        self.inspected_to_server = self.inspected_to_client = 0
        self.excerpt_to_server = self.excerpt_to_client = b""
        self.dropped = 0
        self.injected = 0
        self.protocol = ""
        self.facts: Mapping[str, Any] = _NOTHING
        self.sessions: tuple[tuple[Dissector, Session], ...] | None = None
        self.confirmed = False
        self.client_isn: int | None = None
        self.by_synack = False
        self.fins = 0
        self.tcb: Tcb | None = None
        self.alias: FiveTuple | None = None
        self.ends: tuple[Ends, Ends] | None = None
        self.decision: Any = None
        self.rules: tuple[str, ...] = ()

    def count(self, direction: Direction, length: int, has_payload: bool, now: float) -> None:
        """Books one packet of that direction."""
        if direction is _TO_SERVER:
            self.packets_to_server += 1
            self.bytes_to_server += length
            self.payloads_to_server += has_payload
        else:
            self.packets_to_client += 1
            self.bytes_to_client += length
            self.payloads_to_client += has_payload
        self.last = now

    def add(self, direction: Direction, packets: int, size: int) -> None:
        """What one packet of that direction was besides what `count` has booked."""
        if direction is _TO_SERVER:
            self.packets_to_server += packets
            self.bytes_to_server += size
        else:
            self.packets_to_client += packets
            self.bytes_to_client += size

    def inspect(self, direction: Direction, length: int) -> int:
        """Books bytes that dissectors get to see; returns how many there were before."""
        if direction is _TO_SERVER:
            before = self.inspected_to_server
            self.inspected_to_server = before + length
        else:
            before = self.inspected_to_client
            self.inspected_to_client = before + length
        return before

    def excerpt(self, direction: Direction) -> bytes:
        """What is kept of the stream's beginning, or of the datagram."""
        return self.excerpt_to_server if direction is _TO_SERVER else self.excerpt_to_client

    def keep(self, direction: Direction, excerpt: bytes) -> None:
        """Takes the place of what was kept of that direction."""
        if direction is _TO_SERVER:
            self.excerpt_to_server = excerpt
        else:
            self.excerpt_to_client = excerpt

    @property
    def packets(self) -> tuple[int, int]:
        """To the server, to the client."""
        return self.packets_to_server, self.packets_to_client

    @property
    def bytes(self) -> tuple[int, int]:
        """To the server, to the client."""
        return self.bytes_to_server, self.bytes_to_client

    @property
    def payloads(self) -> tuple[int, int]:
        """Packets with a payload: to the server, to the client."""
        return self.payloads_to_server, self.payloads_to_client

    def forget_stream(self) -> None:
        """Gives back the memory of inspection; no dissector looks at the flow again."""
        self.sessions = ()
        self.excerpt_to_server = self.excerpt_to_client = b""
        self.tcb = None

    def read_anew(self) -> None:
        """Lets dissectors look at a flow again that they had done with, from here on."""
        self.sessions = None
        self.excerpt_to_server = self.excerpt_to_client = b""
        self.inspected_to_server = self.inspected_to_client = 0


def direction_index(direction: Direction) -> int:
    """0 for to_server, 1 for to_client: the index of what comes in pairs."""
    return 0 if direction is _TO_SERVER else 1
