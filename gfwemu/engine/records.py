"""What the engine tells: the material of the event log, the verdict table and the capture's comments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from gfwemu.model import Direction, FiveTuple, Placement, record
from gfwemu.rules.compiled import Fact


@record
class FlowRef:
    """Which flow: `tuple` runs from client to server. `protocol` is the recognised one, or ""."""

    flow_id: int
    tuple: FiveTuple
    protocol: str = ""


@record
class Evidence:
    """Why a rule fired: the field, its value, the rule's entry that matched, and the bytes where they are known.

    offset and length count within the message's stream direction or datagram; `excerpt` is at most 64 bytes.
    """

    field: str
    value: str
    entry: str
    offset: int | None = None
    length: int | None = None
    excerpt: bytes = b""


@record
class RuleHit:
    """A rule fired. packet_number counts the flow's packets in both directions from 1, those that passed unseen
    not, but for those of the handshake.

    towards: whom a reset goes to (`client`, `server`, `both`), or "" where the action sends none.
    """

    time: float
    flow: FlowRef
    rule: str
    action: str
    placement: Placement
    direction: Direction
    packet_number: int
    packet_length: int
    evidence: tuple[Evidence, ...]
    facts: Mapping[str, Fact]
    cite: str = ""
    observed: str = ""
    place: str = ""
    residual_seconds: float = 0.0
    towards: str = ""


@record
class ResidualHit:
    """A packet met a residual block. Told once for each flow that meets it."""

    time: float
    flow: FlowRef
    rule: str
    action: str
    key: str
    remaining: float
    cite: str = ""


@record
class ProbeReacted:
    """A server reacted to a probe, by not answering perhaps. `flow` set the rule off; the rest as in ProbeFinished."""

    time: float
    flow: FlowRef
    rule: str
    type: str
    reaction: str
    seconds: float
    sent: int
    prober: str
    port: int
    cite: str = ""


@record
class ServerBlocked:
    """What a server answered to probes had it blocked. `key`: of the residual block; `reactions`: by type of probe."""

    time: float
    flow: FlowRef
    rule: str
    key: str
    seconds: float
    reactions: tuple[tuple[str, str], ...]
    cite: str = ""
    observed: str = ""
    place: str = ""


@record
class MessageSeen:
    """A dissector completed a message: the material of `tls`, `dns`, `http` and `quic` events."""

    time: float
    flow: FlowRef
    direction: Direction
    facts: Mapping[str, Fact]


@record
class PacketDropped:
    """The first packet of a flow that a rule dropped in that direction; later ones are counted in FlowEnded.

    The TCP numbers are None where it was no TCP segment.
    """

    time: float
    flow: FlowRef
    rule: str
    direction: Direction
    length: int
    ttl: int
    reason: str
    tcp_seq: int | None = None
    tcp_ack: int | None = None
    tcp_flags: int | None = None


@record
class FlowEnded:
    """A flow left the table.

    state: `new`, `established`, `closed`. reason: `timeout`, `closed`, `evicted`, `stopping`.
    """

    time: float
    flow: FlowRef
    start: float
    last: float
    packets_to_server: int
    packets_to_client: int
    bytes_to_server: int
    bytes_to_client: int
    dropped: int
    injected: int
    state: str
    reason: str
    rules: tuple[str, ...] = ()
    facts: Mapping[str, Fact] = field(default_factory=dict)


@record
class EngineFault:
    """The engine failed on a packet: `on_error` was applied. A bug to report."""

    time: float
    error: str


Record = RuleHit | ResidualHit | ProbeReacted | ServerBlocked | MessageSeen | PacketDropped | FlowEnded | EngineFault
