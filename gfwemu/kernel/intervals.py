"""Address lists as nftables interval sets, by netlink: nft itself needs seconds where this needs milliseconds.

An interval is two elements: its first address, and the address after its last with a flag
(<linux/netfilter/nf_tables.h>, NFT_SET_ELEM_INTERVAL_END).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from itertools import chain

from gfwemu.errors import UsageError
from gfwemu.kernel.netlink import (
    NFPROTO_INET,
    NLM_F_CREATE,
    SUBSYSTEM_NFTABLES,
    NetfilterSocket,
    attribute,
    batch,
    kind,
    message,
    nested,
)

_NEW_ELEMENT = 12
_ELEMENTS_TABLE, _ELEMENTS_SET, _ELEMENTS = 1, 2, 3
_LIST_ELEMENT = 1
_ELEMENT_KEY, _ELEMENT_FLAGS = 1, 3
_DATA_VALUE = 1
_INTERVAL_END = attribute(_ELEMENT_FLAGS, struct.pack("!I", 1))

_CHUNK = 800
"""Intervals in one message: an attribute has at most 65,535 bytes, an IPv6 interval takes 64 of them."""

_BATCH_ENDS = 64
"""Bytes of the messages that begin and end a transaction."""

Range = tuple[int, int]
"""First address and the one after the last."""


def ranges(networks: Iterable[str], width: int) -> list[Range]:
    """The addresses of CIDR texts, sorted, disjoint and merged. width: 4 or 16 bytes. Raises UsageError."""
    bits = width * 8
    # One sort of all would keep other threads waiting; by their first byte they are sorted a few at a time.
    spans: list[list[Range]] = [[] for _ in range(256)]
    for network in networks:
        address, _, length = network.partition("/")
        try:
            packed = socket.inet_pton(socket.AF_INET if width == 4 else socket.AF_INET6, address)
            size = 1 << bits - (int(length) if length else bits)
        except (OSError, ValueError):
            raise UsageError(f"'{network}' is not a network") from None
        first = int.from_bytes(packed, "big") & -size
        spans[first >> bits - 8].append((first, first + size))
    for some in spans:
        some.sort()
    merged: list[Range] = []
    for first, end in chain.from_iterable(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged


def fill(netfilter: NetfilterSocket, table: str, name: str, spans: Sequence[Range], width: int) -> None:
    """Adds intervals to an empty set of the inet table. Raises OSError."""
    # Each transaction costs as much as the set holds by then, so there are to be few.
    messages: list[bytes] = []
    size = 0
    for start in range(0, len(spans), _CHUNK):
        one = _new_elements(table, name, spans[start : start + _CHUNK], width)
        if messages and size + len(one) > netfilter.longest - _BATCH_ENDS:
            netfilter.send(batch(messages))
            messages, size = [], 0
        messages.append(one)
        size += len(one)
    if messages:
        netfilter.send(batch(messages))


def _new_elements(table: str, name: str, spans: Sequence[Range], width: int) -> bytes:
    # Every interval has the same bytes around its two addresses.
    first, end = nested(_LIST_ELEMENT, _key(0, width)), nested(_LIST_ELEMENT, _key(0, width), _INTERVAL_END)
    before, between, after = first[:-width], end[: len(first) - width], end[len(first) :]
    last = 1 << width * 8
    elements = [
        before + low.to_bytes(width, "big") + between + high.to_bytes(width, "big") + after
        # An interval up to the last address of all has no end.
        if high < last
        else before + low.to_bytes(width, "big")
        for low, high in spans
    ]
    return message(
        kind(SUBSYSTEM_NFTABLES, _NEW_ELEMENT),
        NLM_F_CREATE,
        NFPROTO_INET,
        0,
        attribute(_ELEMENTS_TABLE, table.encode() + b"\0"),
        attribute(_ELEMENTS_SET, name.encode() + b"\0"),
        nested(_ELEMENTS, b"".join(elements)),
    )


def _key(address: int, width: int) -> bytes:
    return nested(_ELEMENT_KEY, attribute(_DATA_VALUE, address.to_bytes(width, "big")))
