"""From a captured frame to the IP packet in it, for each link type that hosts and routers capture on.

Link types: tcpdump.org/linktypes.html.
"""

from __future__ import annotations

from collections.abc import Callable

_IPV4, _IPV6 = 0x0800, 0x86DD
_TAGS = frozenset({0x8100, 0x88A8, 0x9100})
"""EtherTypes of IEEE 802.1Q and 802.1ad tags, and the older double-tagging one."""
_PPPOE_SESSION = 0x8864
_PPP_IP = frozenset({0x0021, 0x0057})
"""PPP protocol numbers of IPv4 and IPv6 (RFC 1332, RFC 5072)."""
_MOST_TAGS = 4


def ip_packet(link_type: int, data: bytes) -> bytes | None:
    """A frame's IPv4 or IPv6 packet without the link's header; None where it holds none (ARP and such).

    Padding behind the packet stays. Raises KeyError where the link type is none of LINK_TYPES.
    """
    packet = LINK_TYPES[link_type][1](data)
    return packet if packet and packet[0] >> 4 in (4, 6) else None


def _by_ethertype(data: bytes, type_offset: int, payload_offset: int) -> bytes | None:
    ethertype = int.from_bytes(data[type_offset : type_offset + 2])
    for _ in range(_MOST_TAGS):
        if ethertype not in _TAGS:
            break
        ethertype = int.from_bytes(data[payload_offset + 2 : payload_offset + 4])
        payload_offset += 4
    if ethertype == _PPPOE_SESSION:
        known = int.from_bytes(data[payload_offset + 6 : payload_offset + 8]) in _PPP_IP
        return data[payload_offset + 8 :] if known else None
    return data[payload_offset:] if ethertype in (_IPV4, _IPV6) else None


def _ethernet(data: bytes) -> bytes | None:
    return _by_ethertype(data, 12, 14)


def _raw(data: bytes) -> bytes | None:
    return data


def _cooked(data: bytes) -> bytes | None:
    return _by_ethertype(data, 14, 16)


def _cooked_v2(data: bytes) -> bytes | None:
    return _by_ethertype(data, 0, 20)


def _loopback(data: bytes) -> bytes | None:
    # The four bytes are an address family in the writer's own numbering; the packet's version nibble says as much.
    return data[4:]


LINK_TYPES: dict[int, tuple[str, Callable[[bytes], bytes | None]]] = {
    0: ("BSD loopback", _loopback),
    1: ("Ethernet", _ethernet),
    12: ("raw IP", _raw),
    14: ("raw IP", _raw),
    101: ("raw IP", _raw),
    108: ("OpenBSD loopback", _loopback),
    113: ("Linux cooked v1", _cooked),
    228: ("raw IPv4", _raw),
    229: ("raw IPv6", _raw),
    276: ("Linux cooked v2", _cooked_v2),
}
"""LINKTYPE_ number: its name, and how to find the packet."""
