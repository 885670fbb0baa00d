"""What happens to the engine."""

from __future__ import annotations

from gfwemu.model import Side, record
from gfwemu.rules.actions import Reaction
from gfwemu.rules.compiled import RuleSet
from gfwemu.wire.packet import Packet


@record
class PacketArrived:
    """One IP packet from the queue. `now`: seconds since the epoch. `came_from` None: unknown, as in a capture.

    packet: what the parser makes of `data`, where the caller has parsed it already. length: of the whole packet in
    bytes, where `data` is but its beginning; 0 where it is all.
    """

    packet_id: int
    data: bytes
    now: float
    came_from: Side | None = None
    packet: Packet | None = None
    length: int = 0


@record
class TimerFired:
    """The time asked for by the last `SetTimer` has come (early or late does no harm)."""

    now: float


@record
class RulesReplaced:
    """From now on these rules hold; flows decided under the old ones are looked at anew."""

    rules: RuleSet
    now: float


@record
class Stopping:
    """The shell is about to end: every held packet gets its verdict, every flow its last record."""

    now: float


@record
class ProbeFinished:
    """A probe of a `SendProbes` came to its end.

    type: of the probe, as the rule names it. seconds: from its last byte until the reaction. sent: bytes. prober: the
    address that it came from, packed. last: no other probe of the request follows.
    """

    request_id: int
    type: str
    reaction: Reaction
    seconds: float
    sent: int
    prober: bytes
    port: int
    last: bool
    now: float


Event = PacketArrived | TimerFired | RulesReplaced | Stopping | ProbeFinished
