"""Captures in pcapng with a comment on each packet that a rule touched.

Block and option layouts: draft-ietf-opsawg-pcapng, sections 4.1 (section header), 4.2 (interface description) and
4.3 (enhanced packet).
"""

from __future__ import annotations

import platform
import struct
from typing import Protocol

from gfwemu import __version__
from gfwemu.model import Side

LINKTYPE_RAW = 101
"""IPv4 or IPv6, told apart by the version nibble (tcpdump.org/linktypes.html)."""

INTERFACES: tuple[tuple[str, str], ...] = (
    ("inside", "the firewall's side where the subscribers are"),
    ("outside", "the firewall's side where the servers are"),
    ("injected", "packets that the emulated censor forged"),
    ("unknown", "packets of which the side is not known"),
)
"""if_name and if_description, in the order of their numbers in the file."""

_SECTION_HEADER, _INTERFACE, _ENHANCED_PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER = 0x1A2B3C4D
_END, _COMMENT = 0, 1
_SHB_HARDWARE, _SHB_OS, _SHB_APPLICATION = 2, 3, 4
_IF_NAME, _IF_DESCRIPTION = 2, 3
_EPB_FLAGS = 2
_INBOUND, _OUTBOUND = 1, 2
_LONGEST_TEXT = 0xFFFF
_MOST_BLOCKS = 256
"""Packets that wait for `flush`."""

_NUMBERS: dict[Side | None, int] = {Side.INSIDE: 0, Side.OUTSIDE: 1, None: 3}
_INJECTED = 2


class Blocks(Protocol):
    """What the writer needs of a stream."""

    def write(self, data: bytes, /) -> object: ...

    def flush(self) -> object: ...


class PcapngWriter:
    """Writes IP packets. Every write leaves a file that is whole so far, and is flushed.

    each: every packet goes out at once, so that a reader may follow; otherwise packets wait for `flush`.

    header False: somebody else begins the file.

    Packets that arrived stand on the interface they came from, as inbound; forged ones on `injected`, as outbound.
    Errors of the stream (a full disk) are the caller's.
    """

    def __init__(self, stream: Blocks, *, each: bool = True, header: bool = True) -> None:
        self._stream = stream
        self._each = each
        self._blocks: list[bytes] = []
        version = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
        start = _block(
            _SECTION_HEADER,
            version,
            (_SHB_HARDWARE, platform.machine().encode()),
            (_SHB_OS, f"{platform.system()} {platform.release()}".encode()),
            (_SHB_APPLICATION, f"gfwemu {__version__}".encode()),
        )
        for name, description in INTERFACES:
            start += _block(
                _INTERFACE,
                struct.pack("<HHI", LINKTYPE_RAW, 0, 0),
                (_IF_NAME, name.encode()),
                (_IF_DESCRIPTION, description.encode()),
            )
        if header:
            self._write(start)

    def write(
        self, data: bytes, now: float, *, came_from: Side | None, comment: str = "", injected: bool = False
    ) -> None:
        """One IP packet. `now`: seconds since the epoch, kept to the microsecond."""
        interface = _INJECTED if injected else _NUMBERS[came_from]
        microseconds = round(now * 1_000_000)
        header = struct.pack("<IIIII", interface, microseconds >> 32, microseconds & 0xFFFFFFFF, len(data), len(data))
        options: list[tuple[int, bytes]] = []
        if comment:
            options.append((_COMMENT, _text(comment)))
        if injected or came_from is not None:
            options.append((_EPB_FLAGS, struct.pack("<I", _OUTBOUND if injected else _INBOUND)))
        self._write(_block(_ENHANCED_PACKET, header + data + bytes(-len(data) % 4), *options))

    def _write(self, block: bytes) -> None:
        self._blocks.append(block)
        if self._each or len(self._blocks) >= _MOST_BLOCKS:
            self.flush()

    def flush(self) -> None:
        """Lets out the packets that wait, in one write."""
        if self._blocks:
            data, self._blocks = b"".join(self._blocks), []
            self._stream.write(data)
            self._stream.flush()


def _text(comment: str) -> bytes:
    return comment.encode("utf-8", "replace")[:_LONGEST_TEXT].decode("utf-8", "ignore").encode()


def _block(kind: int, body: bytes, *options: tuple[int, bytes]) -> bytes:
    parts = [body]
    for code, value in options:
        parts.append(struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4))
    if options:
        parts.append(struct.pack("<HH", _END, 0))
    content = b"".join(parts)
    length = struct.pack("<I", len(content) + 12)
    return struct.pack("<I", kind) + length + content + length
