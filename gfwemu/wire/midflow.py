"""Packets in the midst of a flow: what there is to book of one, without parsing the rest."""

from __future__ import annotations

from struct import Struct

from gfwemu.model import FiveTuple

Ends = tuple[int, bytes]
"""IP protocol; then addresses and ports as they stand in a packet: source and destination, source and destination."""

# Length and protocol of the IP header, addresses and ports; at the same places of UDP and TCP: the UDP length, and the
# data offset and flags of TCP.
_IPV4 = Struct("!2xHxxHxBxx12sH6xBB")
_IPV6 = Struct("!4xHBx36sH6xBB")
_PORTS = Struct("!HH")
_FRAGMENT = 0x3FFF
_FIN_SYN_RST = 0x07


def midflow_packet(data: bytes) -> tuple[Ends, int, bool] | None:
    """A TCP or UDP packet's ends, its length in bytes, and whether it has a payload, all as `parse_packet` has them.

    None where the packet may open or close a flow, is a fragment, has IP options or extension headers, or is odd.
    """
    size = len(data)
    if size >= 40 and data[0] == 0x45:
        length, fragment, proto, ends, udp_length, offset, flags = _IPV4.unpack_from(data)
        if fragment & _FRAGMENT:
            return None
        start = 20
    elif size >= 60 and data[0] >> 4 == 6:
        length, proto, ends, udp_length, offset, flags = _IPV6.unpack_from(data)
        start = 40
        length += start
    else:
        return None
    if length < size:
        size = length
    left = size - start
    if left < 20:
        return None
    if proto == 6:
        if flags & _FIN_SYN_RST:
            return None
        header = offset >> 2 & 0x3C
        return (proto, ends), size, left > (header if 20 <= header <= left else 20)
    return ((proto, ends), size, udp_length != 8) if proto == 17 else None


def ends_of(key: FiveTuple) -> Ends:
    """The ends of a packet with that five-tuple."""
    return key.proto, key.src + key.dst + _PORTS.pack(key.sport, key.dport)
