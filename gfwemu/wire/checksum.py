"""The Internet checksum (RFC 1071)."""

from __future__ import annotations

import struct

from gfwemu.model import Transport
from gfwemu.wire.packet import Packet

# A member of an enumeration is slow to reach and to compare.
_UDP = int(Transport.UDP)
_CHECKED = frozenset({int(Transport.TCP), _UDP})

CHECKSUM_OFFSETS: dict[int, int] = {Transport.ICMP: 2, Transport.TCP: 16, Transport.UDP: 6, Transport.ICMPV6: 2}
"""Bytes from the start of the transport header to its checksum."""


def ones_complement_sum(data: bytes) -> int:
    """The sum of the 16-bit words, 0 to 0xFFFF; an odd last byte counts as the high half of a word.

    0x10000 is 1 modulo 0xFFFF, so one remainder of the whole, read as one number, is that sum.
    """
    number = int.from_bytes(data, "big") << (8 * (len(data) & 1))
    return number % 0xFFFF or (0xFFFF if number else 0)


def internet_checksum(data: bytes) -> int:
    """Of `data` with its checksum field set to 0: what belongs into that field."""
    return ones_complement_sum(data) ^ 0xFFFF


def pseudo_header(src: bytes, dst: bytes, proto: int, length: int) -> bytes:
    """RFC 9293 section 3.1 (IPv4) and RFC 8200 section 8.1 (IPv6); `length` of the transport header and payload."""
    if len(src) == 4:
        return struct.pack("!4s4sxBH", src, dst, proto, length & 0xFFFF)
    return struct.pack("!16s16sIxxxB", src, dst, length, proto)


def transport_checksum(src: bytes, dst: bytes, proto: int, segment: bytes) -> int:
    """Of a TCP, UDP or ICMPv6 segment whose checksum field is 0. UDP's 0 comes as 0xFFFF (RFC 768)."""
    # The pseudo header's words can be added as numbers, in any order (see ones_complement_sum); protocol is not 0.
    length = len(segment)
    ends = int.from_bytes(src, "big") + int.from_bytes(dst, "big")
    number = ends + proto + length + (int.from_bytes(segment, "big") << (8 * (length & 1)))
    value = (number % 0xFFFF or 0xFFFF) ^ 0xFFFF
    return value or 0xFFFF if proto == _UDP else value


def updated_checksum(checksum: int, old: bytes, new: bytes) -> int:
    """The checksum after `old` was replaced by `new` (RFC 1624): a wrong one stays wrong by as much."""
    total = (checksum ^ 0xFFFF) + (ones_complement_sum(old) ^ 0xFFFF) + ones_complement_sum(new)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def checksum_ok(packet: Packet) -> bool:
    """Whether a host would accept the TCP or UDP checksum.

    True for everything that cannot be checked: other protocols and fragments. UDP without a checksum is right over
    IPv4 and wrong over IPv6 (RFC 8200 section 8.1). A segment that was cut short on its way here is wrong.
    """
    if packet.proto not in _CHECKED or packet.is_fragment:
        return True
    segment = packet.raw[packet.transport_offset :]
    if packet.proto == _UDP:
        length, checksum = struct.unpack_from("!HH", segment, 4)
        if checksum == 0:
            return packet.version == 4
        if not 8 <= length <= len(segment):
            return False
        segment = segment[:length]
    return ones_complement_sum(pseudo_header(packet.src, packet.dst, packet.proto, len(segment)) + segment) == 0xFFFF
