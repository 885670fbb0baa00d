"""Rules that an earlier rule always decides first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gfwemu.errors import Problem
from gfwemu.model import Transport
from gfwemu.rules.actions import decides
from gfwemu.rules.compile import allowed_transports, needs_tcp
from gfwemu.rules.conditions import Alternative, Clause
from gfwemu.rules.domains import DomainSet, parents
from gfwemu.rules.draft import Draft
from gfwemu.rules.matchers import AnyOf, CoveringMatcher, ExactSet, Numbers
from gfwemu.rules.networks import NetworkSet

Reach = tuple[Draft, Alternative]
Key = tuple[object, ...]

_FILED_ENTRIES = 64
"""A matcher with more entries is not filed by them, but held against every later rule."""


def shadowing(drafts: Sequence[Draft]) -> list[Problem]:
    """One problem for each alternative that can never fire because a terminal rule before it in its box matches all."""
    problems: list[Problem] = []
    by_box: dict[str | None, _Index] = {}
    for draft in drafts:
        deciding = by_box.setdefault(draft.entry.box, _Index())
        own: list[Reach] = []
        for alternative in draft.alternatives:
            candidates = deciding.candidates(alternative)
            earlier = next((one for one in candidates if _covers(one, (draft, alternative))), None)
            if earlier is not None:
                first = f"'{earlier[0].name}' at {earlier[0].place}"
                message = (
                    f"can never fire: {first} decides all that it matches; put it before that rule, or take it out"
                )
                problems.append(Problem(draft.place, f"rule '{draft.name}' {message}"))
                break
            if _decides(draft, alternative):
                own.append((draft, alternative))
        deciding.add(own)
    return problems


class _Index:
    """Rules filed under the entries of one of their clauses, so that thousands need not be compared pair by pair."""

    def __init__(self) -> None:
        self._filed: dict[Key, list[Reach]] = {}
        self._others: list[Reach] = []

    def add(self, reaches: Iterable[Reach]) -> None:
        for reach in reaches:
            keys = next(filter(None, map(_keys, reach[1].clauses)), None)
            if keys is None:
                self._others.append(reach)
            else:
                for key in keys:
                    self._filed.setdefault(key, []).append(reach)

    def candidates(self, alternative: Alternative) -> Iterator[Reach]:
        """Every rule that may cover the alternative."""
        yield from self._others
        for clause in alternative.clauses:
            for key in _probes(clause):
                yield from self._filed.get(key, ())


def _parts(clause: Clause) -> tuple[CoveringMatcher, ...]:
    return clause.matcher.parts if isinstance(clause.matcher, AnyOf) else (clause.matcher,)


def _keys(clause: Clause) -> list[Key] | None:
    """The keys under one of which a covered clause has a probe; None where the clause cannot be filed."""
    if clause.negated or len(clause.matcher) > _FILED_ENTRIES:
        return None
    keys: list[Key] = []
    for part in _parts(clause):
        match part:
            case DomainSet() if not (part.keywords or part.regexes or part.url_regexes):
                keys += [(clause.field.name, name) for name in (*part.suffixes, *part.below, *part.full)]
            case ExactSet():
                keys += [(clause.field.name, text) for text in part.texts]
            case NetworkSet():
                keys += [(clause.field.name, *network) for network in part]
            case Numbers() if all(interval.low == interval.high for interval in part.intervals):
                keys += [(clause.field.name, interval.low) for interval in part.intervals]
            case _:
                return None
    return keys


def _probes(clause: Clause) -> Iterator[Key]:
    """The keys under which anything that covers the clause is filed: those of one of its entries and what is above."""
    if clause.negated:
        return
    field = clause.field.name
    match _parts(clause)[0]:
        case DomainSet() as names:
            entry = next(iter(names.suffixes or names.below or names.full), None)
            if entry is not None:
                yield from ((field, parent) for parent in parents(entry))
        case ExactSet() as texts:
            yield from ((field, text) for text in list(texts.texts)[:1])
        case NetworkSet() as networks:
            packed, prefix = next(iter(networks))
            size = len(packed)
            number = int.from_bytes(packed, "big")
            for length in range(prefix + 1):
                shift = 8 * size - length
                yield (field, (number >> shift << shift).to_bytes(size, "big"), length)
        case Numbers() as numbers:
            yield (field, numbers.intervals[0].low)


def _decides(draft: Draft, alternative: Alternative) -> bool:
    """Whether the rule, where it matches, leaves nothing to later rules."""
    return (
        decides(draft.action_name, draft.placement, repeat=draft.entry.repeat)
        and draft.odds.low >= 1.0
        and draft.schedule is None
        and not alternative.hooks
    )


def _covers(earlier: Reach, later: Reach) -> bool:
    """Whether each condition of the earlier rule follows from one of the later rule."""
    if needs_tcp(earlier[0]) and not needs_tcp(later[0]) and not allowed_transports(later[1]) <= {Transport.TCP}:
        return False
    return all(any(_implied(mine, theirs) for theirs in later[1].clauses) for mine in earlier[1].clauses)


def _implied(wide: Clause, narrow: Clause) -> bool:
    if wide.field.name != narrow.field.name or wide.negated != narrow.negated:
        return False
    if wide.negated:
        return narrow.matcher.covers(wide.matcher)
    return wide.matcher.covers(narrow.matcher)
