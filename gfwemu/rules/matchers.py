"""Compiled tests of one value. Each answers with the entry that matched, and can say whether it covers another."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Protocol

from gfwemu.rules.compiled import Fact
from gfwemu.rules.patterns import BytePattern, Keywords, Regexes


class CoveringMatcher(Protocol):
    """A matcher that lint can compare."""

    def match(self, value: Fact) -> str | None: ...

    def covers(self, other: object) -> bool:
        """Whether everything that `other` matches, this matches, too. False where it cannot tell."""
        ...

    def __len__(self) -> int:
        """How many entries it holds; 0: it can never match."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class AnyOf:
    """Matches where one of its parts does."""

    parts: tuple[CoveringMatcher, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def match(self, value: Fact) -> str | None:
        for part in self.parts:
            if (found := part.match(value)) is not None:
                return found
        return None

    def covers(self, other: object) -> bool:
        others = other.parts if isinstance(other, AnyOf) else (other,)
        return all(any(part.covers(one) for part in self.parts) for one in others)


@dataclass(frozen=True, slots=True, eq=False)
class ExactSet:
    """Texts, of one source. A value that is several texts matches where one of them does."""

    source: str
    texts: frozenset[str]

    def __len__(self) -> int:
        return len(self.texts)

    def match(self, value: Fact) -> str | None:
        if isinstance(value, tuple):
            found = next((text for text in value if text in self.texts), None)
        else:
            found = value if isinstance(value, str) and value in self.texts else None
        if found is None:
            return None
        return f"{found} from {self.source}" if self.source else found

    def covers(self, other: object) -> bool:
        return isinstance(other, ExactSet) and other.texts <= self.texts


@dataclass(frozen=True, slots=True, eq=False)
class TextPattern:
    """Text by beginning, end, part or expression: `how` is prefix, suffix, contains or regex."""

    source: str
    how: str
    texts: frozenset[str]
    keywords: Keywords | None = None
    regexes: Regexes | None = None

    @classmethod
    def make(cls, source: str, how: str, texts: frozenset[str]) -> TextPattern:
        keywords = Keywords(texts) if how == "contains" else None
        regexes = Regexes(sorted(texts)) if how == "regex" else None
        return cls(source, how, texts, keywords, regexes)

    def __len__(self) -> int:
        return len(self.texts)

    def match(self, value: Fact) -> str | None:
        values = value if isinstance(value, tuple) else (value,)
        for text in values:
            if isinstance(text, str) and (found := self._search(text)) is not None:
                entry = f"{self.how}:{found}"
                return f"{entry} from {self.source}" if self.source else entry
        return None

    def _search(self, text: str) -> str | None:
        if self.keywords is not None:
            return self.keywords.search(text)
        if self.regexes is not None:
            return self.regexes.search(text)
        if self.how == "prefix":
            return next((prefix for prefix in self.texts if text.startswith(prefix)), None)
        return next((suffix for suffix in self.texts if text.endswith(suffix)), None)

    def covers(self, other: object) -> bool:
        if isinstance(other, ExactSet):
            return all(self._search(text) is not None for text in other.texts)
        return isinstance(other, TextPattern) and other.how == self.how and other.texts <= self.texts


@dataclass(frozen=True, slots=True)
class Interval:
    """Numbers between two ends, each inside or (open) outside."""

    low: float
    high: float
    low_open: bool
    high_open: bool
    text: str

    def holds(self, number: float) -> bool:
        above = number > self.low if self.low_open else number >= self.low
        return above and (number < self.high if self.high_open else number <= self.high)

    def covers(self, other: Interval) -> bool:
        above = other.low > self.low or (other.low == self.low and (other.low_open or not self.low_open))
        below = other.high < self.high or (other.high == self.high and (other.high_open or not self.high_open))
        return above and below

    @property
    def empty(self) -> bool:
        return self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))


_PART = re.compile(r"(>=|<=|>|<|=|==)?\s*(0x[0-9a-fA-F]{1,15}|[0-9]{1,15}(?:\.[0-9]{1,15})?)")
_RANGE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*-\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)")


def parse_interval(text: str) -> Interval:
    """`443`, `1-1000`, `>=149`, or several comparisons that all hold: `>3.4 <4.6`. Raises ValueError."""
    text = text.strip()
    if found := _RANGE.fullmatch(text):
        low, high = float(found[1]), float(found[2])
        if low > high:
            raise ValueError(f"the range '{text}' runs backwards")
        return Interval(low, high, False, False, text)
    parts = list(_PART.finditer(text))
    if not parts or re.sub(r"[\s,]", "", _PART.sub("", text)) or (len(parts) > 1 and not all(p[1] for p in parts)):
        raise ValueError(f"'{text[:60]}' is not a number, a range such as 1-1000, or a comparison such as >=149")
    result = Interval(0.0, math.inf, False, False, text)
    for part in parts:
        number = float(int(part[2], 16)) if part[2].startswith("0x") else float(part[2])
        if part[1] in (None, "=", "=="):
            one = Interval(number, number, False, False, text)
        elif part[1].startswith(">"):
            one = Interval(number, math.inf, part[1] == ">", False, text)
        else:
            one = Interval(0.0, number, False, part[1] == "<", text)
        result = _both(result, one)
    if result.empty:
        raise ValueError(f"no number is {text}")
    return result


def _both(left: Interval, right: Interval) -> Interval:
    low, low_open = max((left.low, left.low_open), (right.low, right.low_open))
    high, high_closed = min((left.high, not left.high_open), (right.high, not right.high_open))
    return Interval(low, high, low_open, not high_closed, right.text)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers by intervals, any of which may hold."""

    intervals: tuple[Interval, ...]

    def __len__(self) -> int:
        return len(self.intervals)

    def match(self, value: Fact) -> str | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        for interval in self.intervals:
            if interval.holds(value):
                return interval.text
        return None

    def exhausted(self, value: float) -> bool:
        """Whether neither `value` nor any larger number can match: a count that has come this far never will again."""
        return all(
            value > interval.high or (interval.high_open and value >= interval.high) for interval in self.intervals
        )

    def covers(self, other: object) -> bool:
        return isinstance(other, Numbers) and all(
            any(mine.covers(theirs) for mine in self.intervals) for theirs in other.intervals
        )


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    wanted: bool

    def __len__(self) -> int:
        return 1

    def match(self, value: Fact) -> str | None:
        return str(value).lower() if isinstance(value, bool) and value is self.wanted else None

    def covers(self, other: object) -> bool:
        return self == other


@dataclass(frozen=True, slots=True)
class BytesAt:
    """Byte patterns at offsets, any of which may hold."""

    patterns: tuple[BytePattern, ...]

    def __len__(self) -> int:
        return len(self.patterns)

    def match(self, value: Fact) -> str | None:
        if not isinstance(value, bytes):
            return None
        return next((pattern.text for pattern in self.patterns if pattern.found_in(value)), None)

    def covers(self, other: object) -> bool:
        return isinstance(other, BytesAt) and set(other.patterns) <= set(self.patterns)


@dataclass(frozen=True, slots=True)
class BytesAnywhere:
    """Byte strings, any of which may stand anywhere."""

    needles: tuple[tuple[bytes, str], ...]

    def __len__(self) -> int:
        return len(self.needles)

    def match(self, value: Fact) -> str | None:
        if not isinstance(value, bytes):
            return None
        return next((text for needle, text in self.needles if needle in value), None)

    def covers(self, other: object) -> bool:
        return isinstance(other, BytesAnywhere) and all(
            any(mine in theirs for mine, _ in self.needles) for theirs, _ in other.needles
        )
