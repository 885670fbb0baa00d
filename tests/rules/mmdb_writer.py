"""A minimal writer of MaxMind databases (MaxMind DB format 2.0), so that tests need no published one."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

Tree = list[Any]


def mmdb(countries: dict[str, str]) -> bytes:
    """A database of country codes by network, IPv4 and IPv6 (24-bit records, IPv6 tree)."""
    root: Tree = [None, None]
    codes = sorted(set(countries.values()))
    for text, code in countries.items():
        network = ipaddress.ip_network(text)
        size = network.max_prefixlen
        bits = f"{int(network.network_address):0{size}b}"[: network.prefixlen]
        if size == 32:
            bits = "0" * 96 + bits
        node = root
        for bit in bits[:-1]:
            if node[int(bit)] is None:
                node[int(bit)] = [None, None]
            node = node[int(bit)]
        node[int(bits[-1])] = code
    data, offsets = b"", {}
    for code in codes:
        offsets[code] = len(data)
        data += _value({"country": {"iso_code": code}})
    nodes: list[Tree] = []
    _number(root, nodes)
    records = b"".join(_record(side, nodes, offsets) for node in nodes for side in node)
    metadata = {
        "node_count": len(nodes),
        "record_size": 24,
        "ip_version": 6,
        "binary_format_major_version": 2,
        "binary_format_minor_version": 0,
        "build_epoch": 1,
        "database_type": "Test-Country",
        "languages": [],
        "description": {"en": "test"},
    }
    return records + bytes(16) + data + b"\xab\xcd\xefMaxMind.com" + _value(metadata)


def _number(node: Tree, nodes: list[Tree]) -> None:
    nodes.append(node)
    for side in node:
        if isinstance(side, list):
            _number(side, nodes)


def _record(side: Any, nodes: list[Tree], offsets: dict[str, int]) -> bytes:
    if side is None:
        value = len(nodes)
    elif isinstance(side, str):
        value = len(nodes) + 16 + offsets[side]
    else:
        value = next(index for index, node in enumerate(nodes) if node is side)
    return value.to_bytes(3, "big")


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return _head(2, len(value.encode())) + value.encode()
    if isinstance(value, dict):
        return _head(7, len(value)) + b"".join(_value(key) + _value(item) for key, item in value.items())
    if isinstance(value, list):
        return bytes([len(value), 11 - 7]) + b"".join(map(_value, value))
    return _head(6, 4) + struct.pack(">I", value)


def _head(kind: int, size: int) -> bytes:
    assert size < 29
    return bytes([kind << 5 | size])
