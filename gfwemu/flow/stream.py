"""One direction of a TCP stream as the censor puts it together."""

from __future__ import annotations

from bisect import insort
from typing import Literal

Overlap = Literal["first", "last", "left_equal_last"]

_MODULUS = 1 << 32
_HALF = 1 << 31

_NOTHING: list[tuple[int, bytes]] = []
"""What waits in the streams of most flows: one list for all, to which nothing is ever added."""


def seq_delta(later: int, earlier: int) -> int:
    """How far `later` lies ahead of `earlier` in sequence space, negative where behind (RFC 9293 section 3.4)."""
    delta = (later - earlier) % _MODULUS
    return delta - _MODULUS if delta >= _HALF else delta


class Stream:
    """In-order bytes from segments that come in any order, doubled or overlapping.

    overlap: `first` keeps the copy of a byte that came first, `last` the one that came last, `left_equal_last` the
    first unless a later segment begins where the one that brought it begins; bytes already handed out stay as they
    were. At most `buffer` bytes wait above a hole; what lies beyond is forgotten, or, with `follow`, begins the stream
    anew. `overflowed` tells that there was such data.
    """

    __slots__ = ("_buffer", "_follow", "_held", "_overlap", "_waiting", "delivered", "next_seq", "overflowed")

    def __init__(self, next_seq: int, overlap: Overlap, buffer: int, *, follow: bool = False) -> None:
        self.next_seq = next_seq
        self.overflowed = False
        self._follow = follow
        self.delivered = 0
        self._overlap = overlap
        self._buffer = buffer
        self._waiting = _NOTHING
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes that wait above a hole."""
        return self._held

    def push(self, seq: int, data: bytes) -> bytes:
        """Takes one segment's payload; returns the bytes that are now in order, b"" where there are none."""
        offset = self.delivered + seq_delta(seq, self.next_seq)
        if offset < self.delivered:
            data = data[self.delivered - offset :]
            offset = self.delivered
        if not data:
            return b""
        if offset == self.delivered and not self._waiting:
            self._advance(len(data))
            return data
        if offset > self.delivered:
            room = max(0, self.delivered + self._buffer - offset)
            if len(data) > room:
                self.overflowed = True
                if self._follow and not room:
                    return self._begin_anew(seq, data)
                data = data[:room]
        self._insert(offset, data)
        return self._take()

    def _begin_anew(self, seq: int, data: bytes) -> bytes:
        self._waiting.clear()
        self._held = 0
        self.next_seq = seq
        self._advance(len(data))
        return data

    def _insert(self, offset: int, data: bytes) -> None:
        if not data:
            return
        if self._overlap == "last":
            self._carve(offset, offset + len(data))
            pieces = [(offset, data)]
        else:
            if self._overlap == "left_equal_last":
                self._cede(offset, offset + len(data))
            pieces = self._gaps(offset, data)
        if not self._waiting:
            self._waiting = []
        for piece in pieces:
            insort(self._waiting, piece)
            self._held += len(piece[1])

    def _cede(self, start: int, end: int) -> None:
        """Cuts the new segment's bytes out of the piece that begins where it begins."""
        for offset, data in self._waiting:
            if offset == start:
                self._carve(start, min(end, offset + len(data)))
                return

    def _carve(self, start: int, end: int) -> None:
        """Cuts [start, end) out of what waits."""
        kept: list[tuple[int, bytes]] = []
        for offset, data in self._waiting:
            if offset + len(data) <= start or offset >= end:
                kept.append((offset, data))
                continue
            if offset < start:
                kept.append((offset, data[: start - offset]))
            if offset + len(data) > end:
                kept.append((end, data[end - offset :]))
        self._waiting = kept
        self._held = sum(len(data) for _, data in kept)

    def _gaps(self, offset: int, data: bytes) -> list[tuple[int, bytes]]:
        """The parts of `data` that nothing waiting covers yet."""
        pieces: list[tuple[int, bytes]] = []
        position, end = offset, offset + len(data)
        for start, held in self._waiting:
            if start >= end:
                break
            if start + len(held) <= position:
                continue
            if start > position:
                pieces.append((position, data[position - offset : start - offset]))
            position = start + len(held)
        if position < end:
            pieces.append((position, data[position - offset :]))
        return pieces

    def _take(self) -> bytes:
        ready: list[bytes] = []
        while self._waiting and self._waiting[0][0] == self.delivered:
            _, data = self._waiting.pop(0)
            self._held -= len(data)
            self._advance(len(data))
            ready.append(data)
        return b"".join(ready)

    def _advance(self, length: int) -> None:
        self.delivered += length
        self.next_seq = (self.next_seq + length) % _MODULUS
