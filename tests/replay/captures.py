"""Capture files made by hand, as their specifications lay them out, to read back."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

from gfwemu.replay.capture import read_capture
from gfwemu.replay.frames import Frame

Record = tuple[float, bytes]


def pcap(records: Sequence[Record], *, link: int = 101, order: str = "<", nano: bool = False, cut: int = 0) -> bytes:
    """A classic file; every frame shortened by `cut` bytes, as by a snap length."""
    ticks = 1_000_000_000 if nano else 1_000_000
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    parts = [struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link)]
    for time, data in records:
        seconds, fraction = divmod(round(time * ticks), ticks)
        kept = data[: len(data) - cut]
        parts.append(struct.pack(f"{order}IIII", seconds, fraction, len(kept), len(data)) + kept)
    return b"".join(parts)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + length + body + length


def options(pairs: Sequence[tuple[int, bytes]], order: str = "<") -> bytes:
    parts = [struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4) for code, value in pairs]
    return b"".join(parts) + (struct.pack(f"{order}HH", 0, 0) if pairs else b"")


def section(order: str = "<", application: str = "", major: int = 1) -> bytes:
    told = options([(4, application.encode())] if application else [], order)
    return block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, major, 0, -1) + told, order)


def interface(
    link: int = 101, order: str = "<", *, name: str = "", resolution: int | None = None, offset: int | None = None
) -> bytes:
    pairs: list[tuple[int, bytes]] = []
    if name:
        pairs.append((2, name.encode()))
    if resolution is not None:
        pairs.append((9, bytes([resolution])))
    if offset is not None:
        pairs.append((14, struct.pack(f"{order}q", offset)))
    return block(1, struct.pack(f"{order}HHI", link, 0, 0) + options(pairs, order), order)


def enhanced(ticks: int, data: bytes, order: str = "<", *, number: int = 0) -> bytes:
    head = struct.pack(f"{order}IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
    return block(6, head + data, order)


def simple(data: bytes, order: str = "<") -> bytes:
    return block(3, struct.pack(f"{order}I", len(data)) + data, order)


def frames(data: bytes) -> list[Frame]:
    return list(read_capture(io.BytesIO(data), "x.pcap"))
