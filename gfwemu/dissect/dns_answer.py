"""Forges answers to DNS queries."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from gfwemu.dissect.dns_message import (
    FLAG_AUTHORITATIVE,
    FLAG_RECURSION_AVAILABLE,
    FLAG_RECURSION_DESIRED,
    FLAG_RESPONSE,
    Query,
)

# A pointer to offset 12, where the question's name begins.
_NAME_OF_QUESTION = 0xC00C
_TYPE_BY_LENGTH = {4: 1, 16: 28}
_CLASS_IN = 1


def build_answer(
    query: Query,
    addresses: Sequence[bytes],
    *,
    ttl: int,
    rcode: int = 0,
    authoritative: bool = False,
    recursion_available: bool = True,
    flags: int | None = None,
) -> bytes:
    """A DNS message, without TCP length prefix, in the shape of measured injectors (Wallbleed, NDSS 2025).

    The ID and the question's bytes are copied verbatim and recursion desired is echoed; one A or AAAA record follows
    for each packed address (4 or 16 bytes), whatever type was asked for; no EDNS. No address and rcode 3 is NXDOMAIN.
    flags: the whole flag word but for the rcode.
    """
    if flags is None:
        flags = FLAG_RESPONSE
        flags |= FLAG_AUTHORITATIVE if authoritative else 0
        flags |= FLAG_RECURSION_DESIRED if query.flags_rd else 0
        flags |= FLAG_RECURSION_AVAILABLE if recursion_available else 0
    records = [
        struct.pack("!HHHIH", _NAME_OF_QUESTION, _TYPE_BY_LENGTH[len(address)], _CLASS_IN, ttl, len(address)) + address
        for address in addresses
    ]
    header = struct.pack("!HHHHHH", query.id, flags | rcode, 1, len(records), 0, 0)
    return header + query.question_bytes + b"".join(records)
