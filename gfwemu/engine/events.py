"""What happens to the engine."""

from __future__ import annotations

from dataclasses import dataclass

from gfwemu.model import Side
from gfwemu.rules.compiled import RuleSet
from gfwemu.wire.packet import Packet


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time asked for by the last `SetTimer` has come (early or late does no harm)."""

    now: float


@dataclass(frozen=True, slots=True)
class RulesReplaced:
    """From now on these rules hold; flows decided under the old ones are looked at anew."""

    rules: RuleSet
    now: float


@dataclass(frozen=True, slots=True)
class Stopping:
    """The shell is about to end: every held packet gets its verdict, every flow its last record."""

    now: float


Event = PacketArrived | TimerFired | RulesReplaced | Stopping
