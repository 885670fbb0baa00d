"""What a capture file holds, whatever its format, and the error for one that cannot be read."""

from __future__ import annotations

from typing import NamedTuple

from gfwemu.errors import UsageError

LONGEST_FRAME = 262_144
"""Bytes; libpcap's MAXIMUM_SNAPLEN. A longer length means that the file is damaged."""

LATEST_TIME = 253_402_300_799.0
"""Seconds since the epoch: the end of the year 9999. A later timestamp means that the file is damaged."""


class Frame(NamedTuple):
    """One captured frame. number counts from 1; offset: of its record in the file; time: seconds since the epoch.

    link_type: LINKTYPE_ number (tcpdump.org/linktypes.html). interface and application: as the file names them, or "".
    """

    number: int
    offset: int
    time: float
    link_type: int
    data: bytes
    original_length: int
    interface: str = ""
    application: str = ""


class CaptureError(UsageError):
    """A capture file that is damaged or of an unknown kind."""

    def __init__(self, name: str, offset: int, message: str) -> None:
        self.offset = offset
        super().__init__(f"{name}: at byte {offset}: {message}")
