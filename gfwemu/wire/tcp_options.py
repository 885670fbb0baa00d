"""The options of a TCP header."""

from __future__ import annotations

END, NO_OPERATION, TIMESTAMPS, MD5_SIGNATURE = 0, 1, 8, 19
"""RFC 9293 section 3.2, RFC 7323 section 3.2, RFC 2385 section 3.0."""


def tcp_option(options: bytes, kind: int) -> bytes | None:
    """The data of the first option of that kind, None where there is none. What is malformed ends the list."""
    position, end = 0, len(options)
    while position < end and options[position] != END:
        if options[position] == NO_OPERATION:
            position += 1
            continue
        size = options[position + 1] if position + 1 < end else 0
        if size < 2 or position + size > end:
            return None
        if options[position] == kind:
            return options[position + 2 : position + size]
        position += size
    return None


def timestamp_value(options: bytes) -> int | None:
    """TSval of the timestamps option (RFC 7323), None where there is none."""
    data = tcp_option(options, TIMESTAMPS)
    return int.from_bytes(data[:4], "big") if data is not None and len(data) == 8 else None
