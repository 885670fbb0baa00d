"""A bounds-checked reader, so that no dissector compares lengths itself.

Running out of bytes has two meanings. At the open end of a stream more may come: `OutOfBytes`, which a session
answers with `NeedMore`. Inside a field whose length was announced, or in a datagram, nothing more can come:
`MalformedBytes`, which a session answers with `Reject`.
"""

from __future__ import annotations

_CHUNK = 256


class OutOfBytes(Exception):  # noqa: N818 - a state of the stream, not an error
    """The open end of a stream was reached; the rest may still arrive.

    `wanted`: with fewer bytes than this, counted from the start of the data, reading again ends here again.
    """

    def __init__(self, wanted: int) -> None:
        super().__init__(wanted)
        self.wanted = wanted


class MalformedBytes(Exception):  # noqa: N818 - a finding about the bytes, not an error of ours
    """The bytes cannot be what the protocol says. `str()` is the reason, worded for `Reject`."""


class Reader:
    """Reads big-endian numbers and length-prefixed fields from `data[start:end]`.

    `what` names the thing being read in the reasons. `open_end`: more bytes may follow `end` later.
    Positions count from the start of `data`, in sub-readers too.
    """

    __slots__ = ("_data", "_end", "_open_end", "_position", "_what")

    def __init__(
        self, data: bytes | bytearray, what: str, *, open_end: bool = False, start: int = 0, end: int | None = None
    ) -> None:
        self._data = data
        self._what = what
        self._open_end = open_end
        self._position = start
        self._end = len(data) if end is None else min(end, len(data))

    @property
    def what(self) -> str:
        return self._what

    @property
    def position(self) -> int:
        """Bytes from the start of the data to the next byte to be read."""
        return self._position

    @property
    def remaining(self) -> int:
        """Bytes left here; at an open end, bytes left so far."""
        return self._end - self._position

    def _advance(self, count: int) -> int:
        start = self._position
        if count > self._end - start:
            if self._open_end:
                raise OutOfBytes(start + count)
            raise MalformedBytes(f"{self._what}: {count} bytes wanted, {self._end - start} left")
        self._position = start + count
        return start

    def skip(self, count: int) -> None:
        self._advance(count)

    def skip_zeros(self) -> None:
        """Skip the zero bytes that come next, if any."""
        found: bytes | bytearray = b""
        while self._position < self._end and not found:
            chunk = self._data[self._position : min(self._position + _CHUNK, self._end)]
            found = chunk.lstrip(b"\0")
            self._position += len(chunk) - len(found)

    def take(self, count: int) -> bytes:
        start = self._advance(count)
        return bytes(self._data[start : start + count])

    def peek(self, count: int) -> bytes:
        """The next bytes, which stay unread."""
        start = self._position
        data = self.take(count)
        self._position = start
        return data

    def rest(self) -> bytes:
        """All that is left, perhaps nothing. At an open end: all that is there so far."""
        return self.take(self.remaining)

    def number(self, size: int) -> int:
        """A big-endian unsigned number of `size` bytes."""
        start = self._advance(size)
        if size == 1:
            return self._data[start]
        return int.from_bytes(self._data[start : start + size], "big")

    def u8(self) -> int:
        return self._data[self._advance(1)]

    def u16(self) -> int:
        start = self._advance(2)
        return self._data[start] << 8 | self._data[start + 1]

    def u24(self) -> int:
        return self.number(3)

    def u32(self) -> int:
        return self.number(4)

    def varint(self) -> int:
        """A variable-length integer (RFC 9000 section 16)."""
        start = self._position
        size = 1 << (self.u8() >> 6)
        self._position = start
        return self.number(size) & ((1 << (8 * size - 2)) - 1)

    def field(self, count: int, what: str) -> Reader:
        """The next `count` bytes as a reader with a closed end; all of them must be there."""
        start = self._advance(count)
        return Reader(self._data, what, start=start, end=start + count)

    def vector(self, prefix: int, what: str) -> Reader:
        """A field after its length, which takes `prefix` bytes (RFC 8446 section 3.4)."""
        start = self._position
        count = self.number(prefix)
        self._position = start
        start = self._advance(prefix + count) + prefix
        return Reader(self._data, what, start=start, end=start + count)

    def end(self) -> None:
        """Assert that nothing is left."""
        if self.remaining:
            raise MalformedBytes(f"{self._what}: {self.remaining} bytes too many")
