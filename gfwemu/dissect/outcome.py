"""What a dissector answers: it needs more, it rejects, or it confirms with facts."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping
from dataclasses import field
from typing import Any, NamedTuple, Protocol

from gfwemu.dissect.dns_message import Query
from gfwemu.model import Direction, record

FactValue = str | int | float | bool | tuple[str, ...]


class Span(NamedTuple):
    """Where a fact was read: bytes from the start of the message's stream direction (TCP) or datagram (UDP)."""

    offset: int
    length: int


class DeferredFacts(Mapping[str, FactValue]):
    """Facts of which those in `later` are computed from `source`, each once, when somebody asks for it.

    Fingerprints cost more than all else that is done about a ClientHello, and few rules ask for them.
    """

    __slots__ = ("_known", "_later", "_source")

    def __init__(
        self, known: dict[str, FactValue], later: Mapping[str, Callable[[Any], FactValue]], source: object
    ) -> None:
        self._known = known
        self._later = later
        self._source = source

    def plus(self, field: str, value: FactValue) -> DeferredFacts:
        """The same with one fact more."""
        return DeferredFacts({**self._known, field: value}, self._later, self._source)

    def __getitem__(self, field: str) -> FactValue:
        known = self._known
        if field not in known:
            known[field] = self._later[field](self._source)
        return known[field]

    def get(self, field: str, default: Any = None) -> Any:
        known = self._known
        value = known.get(field)
        if value is None:
            compute = self._later.get(field)
            if compute is None:
                return default
            value = known[field] = compute(self._source)
        return value

    def __contains__(self, field: object) -> bool:
        return field in self._known or field in self._later

    def __iter__(self) -> Iterator[str]:
        yield from self._known
        yield from tuple(field for field in self._later if field not in self._known)

    def items(self) -> ItemsView[str, FactValue]:
        """All of them: who asks for each value has each computed."""
        known, source = self._known, self._source
        for name, compute in self._later.items():
            if name not in known:
                known[name] = compute(source)
        return known.items()

    def __len__(self) -> int:
        return len(self._known.keys() | self._later.keys())

    def __repr__(self) -> str:
        return repr(dict(self))


@record
class Message:
    """One protocol message (a ClientHello, a query, a request): facts by field name, and where they stood.

    `query`: of a DNS message, what a forged answer must echo.
    """

    facts: Mapping[str, FactValue]
    spans: Mapping[str, Span] = field(default_factory=dict)
    query: Query | None = None


@record
class NeedMore:
    """The bytes so far fit the protocol, and its facts are not complete."""


@record
class Reject:
    """Not this protocol, or malformed beyond reading. The session is not fed again."""

    reason: str


@record
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
