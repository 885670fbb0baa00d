"""Reads pcap and pcapng files, frame by frame.

Formats: draft-ietf-opsawg-pcap section 4 (file header), 5 (packet record); draft-ietf-opsawg-pcapng section 3.1
(blocks), 3.5 (options), 4.1 to 4.4 (section header, interface, enhanced and simple packet).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from gfwemu.replay.frames import LATEST_TIME, LONGEST_FRAME, CaptureError, Frame

_PCAP_TICKS: dict[int, int] = {0xA1B2C3D4: 1_000_000, 0xA1B23C4D: 1_000_000_000}
_SECTION_HEADER = 0x0A0D0D0A
_BYTE_ORDER = 0x1A2B3C4D
_INTERFACE, _SIMPLE_PACKET, _ENHANCED_PACKET = 1, 3, 6
_SHB_APPLICATION, _IF_NAME, _IF_TSRESOL, _IF_TSOFFSET = 4, 2, 9, 14
_LONGEST_BLOCK = 16_777_216
_MOST_INTERFACES = 65_536
_PIECE = 1 << 16
"""Bytes that are read at once. For many more the C library has the kernel map fresh memory, page by page, each time."""

_new = tuple.__new__
"""As Frame(...), in half the time."""

_COMPRESSED: dict[bytes, str] = {b"\x1f\x8b": "gunzip", b"\x28\xb5": "unzstd", b"\xfd7": "unxz", b"BZ": "bunzip2"}


def read_capture(stream: BinaryIO, name: str) -> Iterator[Frame]:
    """All frames in file order. `name` is the file's, for errors. Raises CaptureError where the file is damaged."""
    source = _Source(stream, name)
    magic = source.read(4, "the file's first four bytes")
    if struct.unpack("<I", magic)[0] == _SECTION_HEADER:
        return _read_pcapng(source)
    for order in "<>":
        ticks = _PCAP_TICKS.get(struct.unpack(f"{order}I", magic)[0])
        if ticks:
            return _read_pcap(source, order, ticks)
    for start, tool in _COMPRESSED.items():
        if magic.startswith(start):
            raise CaptureError(name, 0, f"the file is compressed; unpack it first ({tool})")
    raise CaptureError(name, 0, f"neither pcap nor pcapng (it begins with {magic.hex(' ')})")


class _Source:
    """A stream that is read in large pieces, knows where it is and says so when it ends too early.

    buffer[at:] has been read from the stream and not yet taken.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        # From a pipe, what is there: `read` would wait until all that was asked for has come.
        self._read_some: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
        self.name = name
        self.buffer = b""
        self.at = 0
        self.start = 0
        """Where in the stream the buffer begins."""

    @property
    def offset(self) -> int:
        return self.start + self.at

    def read(self, count: int, what: str) -> bytes:
        data = self._take(count)
        if len(data) < count:
            raise self._ends_inside(what, count, data)
        return data

    def read_or_end(self, count: int, what: str) -> bytes:
        """As `read`, or b"" where the file ends right here."""
        data = self._take(count)
        if data and len(data) < count:
            raise self._ends_inside(what, count, data)
        return data

    def _take(self, count: int) -> bytes:
        """So many bytes, or what the stream still has."""
        left = len(self.buffer) - self.at
        if left < count:
            pieces = [self.buffer[self.at :]]
            while left < count and (piece := self._read_some(max(_PIECE, count - left))):
                pieces.append(piece)
                left += len(piece)
            self.start += self.at
            self.buffer, self.at = b"".join(pieces), 0
        data = self.buffer[self.at : self.at + count]
        self.at += len(data)
        return data

    def _ends_inside(self, what: str, count: int, data: bytes) -> CaptureError:
        message = f"the file ends inside {what}: {count} bytes wanted, {len(data)} left"
        return self.error(message, self.offset - len(data))

    def error(self, message: str, offset: int | None = None) -> CaptureError:
        return CaptureError(self.name, self.offset if offset is None else offset, message)


def _read_pcap(source: _Source, order: str, ticks: int) -> Iterator[Frame]:
    major, minor, _, _, _, link = struct.unpack(f"{order}HHiIII", source.read(20, "the file header"))
    if major != 2:
        raise source.error(f"pcap version {major}.{minor} is not known; version 2 is", 4)
    link_type = link & 0xFFFF
    unpack = struct.Struct(f"{order}IIII").unpack_from
    number = 0
    while True:
        # The records that lie in the buffer as a whole.
        buffer, at, start = source.buffer, source.at, source.start
        end = len(buffer)
        while at + 16 <= end:
            seconds, fraction, length, original = unpack(buffer, at)
            after = at + 16 + length
            if after > end or length > LONGEST_FRAME:
                break
            number += 1
            time, data = seconds + fraction / ticks, buffer[at + 16 : after]
            yield _new(Frame, (number, start + at, time, link_type, data, original, "", ""))
            at = after
        source.at = at
        # The one that does not, and then comes the next piece of the file.
        offset = source.offset
        number += 1
        header = source.read_or_end(16, f"the header of frame {number}")
        if not header:
            return
        seconds, fraction, length, original = unpack(header)
        if length > LONGEST_FRAME:
            raise source.error(f"frame {number} claims {length} bytes; the file is damaged here", offset)
        data = source.read(length, f"frame {number}")
        yield Frame(number, offset, seconds + fraction / ticks, link_type, data, original)


@dataclass(frozen=True, slots=True)
class _Interface:
    link_type: int
    snap_length: int
    name: str
    ticks: int
    offset_seconds: int


def _read_pcapng(source: _Source) -> Iterator[Frame]:
    order, application = _read_section_header(source, 0)
    interfaces: list[_Interface] = []
    number = 0
    last_time = 0.0
    while True:
        for frame in _ordinary_packets(source, order, interfaces, application, number):
            number, last_time = frame.number, frame.time
            yield frame
        offset = source.offset
        head = source.read_or_end(4, "a block's type")
        if not head:
            return
        kind = struct.unpack(f"{order}I", head)[0]
        if kind == _SECTION_HEADER:
            order, application = _read_section_header(source, offset)
            interfaces = []
            continue
        body = _read_body(source, offset, order)
        block = _Block(source, offset, order, body)
        if kind == _INTERFACE:
            if len(interfaces) >= _MOST_INTERFACES:
                raise source.error(f"more than {_MOST_INTERFACES} interfaces in a section", offset)
            interfaces.append(_read_interface(block))
        elif kind in (_ENHANCED_PACKET, _SIMPLE_PACKET):
            number += 1
            if kind == _ENHANCED_PACKET:
                index, high, low, length, original = block.take("IIIII")
                interface = _interface(block, interfaces, index)
                last_time = interface.offset_seconds + ((high << 32) | low) / interface.ticks
                if not 0 <= last_time <= LATEST_TIME:
                    raise source.error(f"the timestamp of frame {number} is out of range", offset)
            else:
                (original,) = block.take("I")
                interface = _interface(block, interfaces, 0)
                length = min(original, interface.snap_length or original, LONGEST_FRAME)
            if length > LONGEST_FRAME:
                raise source.error(f"frame {number} claims {length} bytes; the file is damaged here", offset)
            data = block.data(length)
            yield Frame(
                number,
                offset,
                last_time,
                interface.link_type,
                data,
                original,
                interface.name,
                application,
            )


def _ordinary_packets(
    source: _Source, order: str, interfaces: list[_Interface], application: str, number: int
) -> Iterator[Frame]:
    """The enhanced packets that come next, up to the first block that is another, odd, or not in the buffer."""
    unpack, trailer = struct.Struct(f"{order}7I").unpack_from, struct.Struct(f"{order}I").unpack_from
    buffer, at, start = source.buffer, source.at, source.start
    end, known = len(buffer), len(interfaces)
    while at + 32 <= end:
        kind, total, index, high, low, length, original = unpack(buffer, at)
        after = at + total
        if kind != _ENHANCED_PACKET or after > end or index >= known or length > LONGEST_FRAME:
            break
        if total % 4 or length + 32 > total or trailer(buffer, after - 4)[0] != total or total > _LONGEST_BLOCK:
            break
        interface = interfaces[index]
        time = interface.offset_seconds + ((high << 32) | low) / interface.ticks
        if not 0 <= time <= LATEST_TIME:
            break
        number += 1
        data = buffer[at + 28 : at + 28 + length]
        # Before the frame is given away: who takes it may take no more.
        at = source.at = after
        offset, link_type = start + after - total, interface.link_type
        yield _new(Frame, (number, offset, time, link_type, data, original, interface.name, application))


def _read_section_header(source: _Source, offset: int) -> tuple[str, str]:
    """The section's byte order and the application that wrote it. The block's type has been read."""
    start = source.read(8, "a section header")
    for order in "<>":
        length, byte_order = struct.unpack(f"{order}II", start)
        if byte_order == _BYTE_ORDER:
            break
    else:
        raise source.error("a section header without a byte-order mark", offset)
    _check_length(source, offset, length, 28)
    body = source.read(length - 16, "a section header")
    _check_trailer(source, offset, order, length)
    block = _Block(source, offset, order, body)
    major, minor, _ = block.take("HHq")
    if major != 1:
        raise source.error(f"pcapng version {major}.{minor} is not known; version 1 is", offset)
    return order, _text(block.options().get(_SHB_APPLICATION, b""))


def _read_body(source: _Source, offset: int, order: str) -> bytes:
    (length,) = struct.unpack(f"{order}I", source.read(4, "a block's length"))
    _check_length(source, offset, length, 12)
    body = source.read(length - 12, "a block")
    _check_trailer(source, offset, order, length)
    return body


def _check_length(source: _Source, offset: int, length: int, least: int) -> None:
    if length < least or length % 4 or length > _LONGEST_BLOCK:
        raise source.error(f"a block claims {length} bytes; the file is damaged here", offset)


def _check_trailer(source: _Source, offset: int, order: str, length: int) -> None:
    (again,) = struct.unpack(f"{order}I", source.read(4, "a block's end"))
    if again != length:
        raise source.error(f"a block is {length} bytes at its head and {again} at its end; damaged here", offset)


class _Block:
    """Reads along one block's body."""

    def __init__(self, source: _Source, offset: int, order: str, body: bytes) -> None:
        self._source = source
        self._offset = offset
        self._order = order
        self._body = body
        self._at = 0
        self.byte_order: Literal["little", "big"] = "little" if order == "<" else "big"

    def take(self, form: str) -> tuple[int, ...]:
        layout = struct.Struct(self._order + form)
        return layout.unpack(self.data(layout.size))

    def data(self, count: int) -> bytes:
        if count > len(self._body) - self._at:
            raise self.error("a block is shorter than what it must hold; the file is damaged here")
        data = self._body[self._at : self._at + count]
        self._at += count
        return data

    def options(self) -> dict[int, bytes]:
        """The block's options; of one that stands twice, the last."""
        found: dict[int, bytes] = {}
        while len(self._body) - self._at >= 4:
            code, length = self.take("HH")
            if code == 0:
                break
            found[code] = self.data(length)
            self.data(min(-length % 4, len(self._body) - self._at))
        return found

    def error(self, message: str) -> CaptureError:
        return self._source.error(message, self._offset)


def _read_interface(block: _Block) -> _Interface:
    link_type, _, snap_length = block.take("HHI")
    options = block.options()
    resolution = (options.get(_IF_TSRESOL) or b"\x06")[0]
    ticks = 1 << (resolution & 0x7F) if resolution & 0x80 else 10 ** (resolution & 0x7F)
    seconds = int.from_bytes(options.get(_IF_TSOFFSET, b"")[:8], block.byte_order, signed=True)
    return _Interface(link_type, snap_length, _text(options.get(_IF_NAME, b"")), ticks, seconds)


def _interface(block: _Block, interfaces: list[_Interface], index: int) -> _Interface:
    if index >= len(interfaces):
        raise block.error(f"a packet of interface {index}, which the file does not describe")
    return interfaces[index]


def _text(option: bytes) -> str:
    return option.decode("utf-8", "replace").rstrip("\0")
