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

    Counters are indexed 0 to_server, 1 to_client; sizes are whole IP packets. `fins` has bit 0 and bit 1 likewise, for
    directions that are closed. `decision` belongs to the engine.
    """

    __slots__ = (
        "alias",
        "bytes",
        "client_isn",
        "confirmed",
        "decision",
        "dropped",
        "excerpts",
        "facts",
        "fins",
        "flow_id",
        "injected",
        "inspected",
        "last",
        "packets",
        "payloads",
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
        self.packets = [0, 0]
        self.bytes = [0, 0]
        self.payloads = [0, 0]
        self.inspected = [0, 0]
        self.excerpts = [b"", b""]
        self.dropped = 0
        self.injected = 0
        self.protocol = ""
        self.facts: Mapping[str, Any] = _NOTHING
        self.sessions: list[tuple[Dissector, Session]] | None = None
        self.confirmed = False
        self.client_isn: int | None = None
        self.fins = 0
        self.tcb: Tcb | None = None
        self.alias: FiveTuple | None = None
        self.decision: Any = None
        self.rules: list[str] = []

    def count(self, direction: Direction, length: int, has_payload: bool, now: float) -> None:
        """Books one packet of that direction."""
        index = direction_index(direction)
        self.packets[index] += 1
        self.bytes[index] += length
        if has_payload:
            self.payloads[index] += 1
        self.last = now

    def forget_stream(self) -> None:
        """Gives back the memory of inspection; no dissector looks at the flow again."""
        self.sessions = []
        self.excerpts = [b"", b""]
        self.tcb = None

    def read_anew(self) -> None:
        """Lets dissectors look at a flow again that they had done with, from here on."""
        self.sessions = None
        self.excerpts = [b"", b""]
        self.inspected = [0, 0]


def direction_index(direction: Direction) -> int:
    """0 for to_server, 1 for to_client: the index of a flow's counters."""
    return 0 if direction is Direction.TO_SERVER else 1
