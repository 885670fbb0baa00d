"""Keywords, regular expressions and byte patterns that cannot hang: time is linear in the subject, always.

Regular expressions are RE2's: no backreferences and no lookaround, hence no exponential search.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import re2

REGEX_LIMIT = 1000
"""Characters of one expression."""
_REGEX_MEMORY = 64 << 20
_FEW = 32
"""Up to here, searching keyword by keyword beats looking up every window of the subject."""


class Keywords:
    """Texts, any of which may stand anywhere in the subject."""

    __slots__ = ("_by_length", "_few", "texts")

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = frozenset(texts)
        self._few = tuple(sorted(self.texts)) if len(self.texts) <= _FEW else ()
        by_length: dict[int, set[str]] = {}
        for text in self.texts:
            by_length.setdefault(len(text), set()).add(text)
        self._by_length = tuple((length, frozenset(found)) for length, found in sorted(by_length.items()))

    def __len__(self) -> int:
        return len(self.texts)

    def search(self, subject: str) -> str | None:
        """A keyword that stands in the subject, or None."""
        if self._few:
            return next((text for text in self._few if text in subject), None)
        for length, texts in self._by_length:
            for start in range(len(subject) - length + 1):
                if subject[start : start + length] in texts:
                    return subject[start : start + length]
        return None


class Regexes:
    """Regular expressions, searched together in one pass."""

    __slots__ = ("_automaton", "texts")

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(dict.fromkeys(texts))
        self._automaton = _automaton(self.texts) if self.texts else None

    def __len__(self) -> int:
        return len(self.texts)

    def search(self, subject: str) -> str | None:
        """An expression that matches somewhere in the subject, or None."""
        if self._automaton is None:
            return None
        found = self._automaton.Match(subject.encode("utf-8", "surrogateescape"))
        return self.texts[min(found)] if found else None


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _REGEX_MEMORY
    return options


def _automaton(texts: Sequence[str]) -> Any:
    automaton = re2.Set.SearchSet(_options())
    for text in texts:
        automaton.Add(text.encode())
    automaton.Compile()
    return automaton


def check_regex(text: str) -> None:
    """Raises ValueError with the reason where the expression cannot be used."""
    if not text:
        raise ValueError("an empty regular expression matches everything")
    if len(text) > REGEX_LIMIT:
        raise ValueError(f"the regular expression is longer than {REGEX_LIMIT} characters")
    try:
        re2.compile(text.encode("utf-8"), _options())
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        hint = ""
        if re.search(r"\(\?<?[=!]|\\[1-9]", text):
            hint = "; lookaround and backreferences are not available, because they can hang"
        raise ValueError(f"not a regular expression: {reason}{hint}") from None


_BYTE = re.compile(r"[0-9a-fA-F]{2}-[0-9a-fA-F]{2}|\?\?|[0-9a-fA-F]{2}|\S")


@dataclass(frozen=True, slots=True)
class BytePattern:
    """Bytes at one of the offsets `first` to `last`; `mask` is 0 where any byte may stand, or one of `ranges`.

    ranges: (index in the pattern, lowest byte, highest byte).
    """

    first: int
    last: int
    value: bytes
    mask: bytes
    text: str
    ranges: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def parse(cls, hex_text: str, first: int, last: int) -> BytePattern:
        """From pairs of hex digits, ranges of them such as `00-09`, or `??`. Raises ValueError with the reason."""
        pairs = _BYTE.findall(hex_text)
        if not pairs or any(len(pair) == 1 for pair in pairs):
            raise ValueError(f"'{hex_text[:60]}' is not hex: write pairs of digits, or ?? for any byte")
        if all(pair == "??" for pair in pairs):
            raise ValueError("a pattern of nothing but ?? says nothing")
        ranges = tuple((index, int(pair[:2], 16), int(pair[3:], 16)) for index, pair in enumerate(pairs) if "-" in pair)
        for index, low, high in ranges:
            if low > high:
                raise ValueError(f"the range '{pairs[index]}' runs backwards")
        value = bytes(int(pair, 16) if pair.isalnum() else 0 for pair in pairs)
        mask = bytes(0xFF if pair.isalnum() else 0 for pair in pairs)
        return cls(first, last, value, mask, f"{' '.join(pairs).lower()} at {_where(first, last)}", ranges)

    @classmethod
    def of_text(cls, text: str, first: int, last: int) -> BytePattern:
        """The text's UTF-8 bytes."""
        value = text.encode()
        return cls(first, last, value, b"\xff" * len(value), f"'{text}' at {_where(first, last)}")

    def found_in(self, data: bytes) -> bool:
        size = len(self.value)
        wanted = int.from_bytes(self.value, "big")
        mask = int.from_bytes(self.mask, "big")
        for offset in range(self.first, min(self.last, len(data) - size) + 1):
            if int.from_bytes(data[offset : offset + size], "big") & mask == wanted and all(
                low <= data[offset + index] <= high for index, low, high in self.ranges
            ):
                return True
        return False


def _where(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
