"""The lines of a list file: what is plainly an entry is read in blocks, by one search each; the rest line by line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gfwemu.errors import Place

_BLOCK = 1 << 15
"""Characters read at once. Small: a reload reads lists beside the packets, and a search keeps other threads waiting."""

Line = tuple[Place, str]


@dataclass(frozen=True, slots=True)
class ListText:
    """The text of a list file. label: how messages call the file. comments: how comment lines begin.

    inline: a `#` behind a blank ends a line, too.
    """

    text: str
    label: str
    comments: tuple[str, ...]
    inline: bool

    def lines(self) -> Iterator[Line]:
        """All lines without comments and empty ones."""
        for number, block in self._blocks():
            yield from self._told(enumerate(block.split("\n"), number))

    def other_lines(self, plain: re.Pattern[str], take: Callable[[Sequence[str]], object]) -> Iterator[Line]:
        """The lines that `plain` does not match as a whole; of the others, `take` gets what its one group found.

        plain: for one line, with `^`, `$` and re.MULTILINE; blanks in it must not match the end of a line.
        """
        for number, block in self._blocks():
            found = plain.findall(block)
            take(found)
            lines = block.split("\n")
            if len(found) < len(lines):
                yield from self._told(one for one in enumerate(lines, number) if not plain.fullmatch(one[1]))

    def _blocks(self) -> Iterator[tuple[int, str]]:
        """The number of its first line, and some lines."""
        text, number, start = self.text, 1, 0
        while start < len(text):
            end = text.find("\n", start + _BLOCK)
            end = len(text) if end < 0 else end
            block = text[start:end]
            yield number, block
            number += block.count("\n") + 1
            start = end + 1

    def _told(self, lines: Iterator[tuple[int, str]]) -> Iterator[Line]:
        for number, line in lines:
            if self.inline and "#" in line:
                line = re.sub(r"(^|\s)#.*", "", line)
            line = line.strip()
            if line and not line.startswith(self.comments):
                yield Place(self.label, number), line
