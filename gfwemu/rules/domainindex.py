"""Several sets of domain names as one table: a single walk over the labels of a name finds all that match."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from gfwemu.rules.compiled import Matcher
from gfwemu.rules.domains import DomainSet, parents
from gfwemu.rules.matchers import AnyOf

_LARGEST = 20_000
"""Names of a matcher that goes into the table. Our choice: a longer list costs more memory twice than a second walk."""


def is_indexed(matcher: Matcher) -> bool:
    """Whether the table can hold the matcher: a few names, and neither keywords nor expressions."""
    parts = _parts(matcher)
    return (
        bool(parts)
        and sum(len(part) for part in parts) <= _LARGEST
        and not any(part.keywords or part.regexes or part.url_regexes for part in parts)
        # What one part leaves out, another may name: only a set by itself may have exceptions.
        and (len(parts) == 1 or not any(part.exceptions for part in parts))
    )


class DomainIndex:
    """Matchers by numbers with one bit each."""

    __slots__ = ("_below", "_exceptions", "_full", "_suffixes")

    def __init__(self, matchers: Iterable[tuple[int, Matcher]]) -> None:
        """Raises ValueError for a matcher that `is_indexed` refuses."""
        self._suffixes: dict[str, int] = {}
        self._below: dict[str, int] = {}
        self._full: dict[str, int] = {}
        self._exceptions: dict[str, int] = {}
        for bit, matcher in matchers:
            if not is_indexed(matcher):
                raise ValueError("no plain set of names")
            for part in _parts(matcher):
                _note(self._suffixes, part.suffixes, bit)
                _note(self._below, part.below, bit)
                _note(self._full, part.full, bit)
                _note(self._exceptions, part.exceptions, bit)

    def matching(self, value: str) -> int:
        """The bits of all matchers that match the name."""
        name = value.lower().removesuffix(".")
        suffixes, below, exceptions = self._suffixes, self._below, self._exceptions
        found = self._full.get(name, 0)
        left_out = 0
        for parent in parents(name):
            found |= suffixes.get(parent, 0)
            if below and parent != name:
                found |= below.get(parent, 0)
            if exceptions:
                left_out |= exceptions.get(parent, 0)
        return found & ~left_out


def _parts(matcher: Matcher) -> Sequence[DomainSet]:
    """The sets of which the matcher is made; none where it is made of anything else."""
    parts = matcher.parts if isinstance(matcher, AnyOf) else (matcher,)
    sets = [part for part in parts if isinstance(part, DomainSet)]
    return sets if len(sets) == len(parts) else ()


def _note(table: dict[str, int], names: AbstractSet[str], bit: int) -> None:
    for name in names:
        table[name] = table.get(name, 0) | bit
