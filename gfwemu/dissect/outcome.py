"""What a dissector answers: it needs more, it rejects, or it confirms with facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from gfwemu.model import Direction

FactValue = str | int | float | bool | tuple[str, ...]


class Span(NamedTuple):
    """Where a fact was read: bytes from the start of the message's stream direction (TCP) or datagram (UDP)."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Message:
    """One protocol message (a ClientHello, a query, a request): facts by field name, and where they stood."""

    facts: Mapping[str, FactValue]
    spans: Mapping[str, Span] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NeedMore:
    """The bytes so far fit the protocol, and its facts are not complete."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Not this protocol, or malformed beyond reading. The session is not fed again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Confirm:
    """It is this protocol. `messages` holds one entry for each message completed by this feed, in order.

    `final`: the session has nothing further to learn and is not fed again.
    """

    messages: tuple[Message, ...]
    final: bool


Outcome = NeedMore | Reject | Confirm

NEED_MORE = NeedMore()


class Session(Protocol):
    """The dissection of one flow by one dissector. It holds its own, bounded, buffer."""

    def feed(self, direction: Direction, data: bytes) -> Outcome:
        """TCP: the next in-order bytes of that direction, cut anywhere. UDP: exactly one datagram."""
        ...
