"""Fields to packets. `None` means compute it; an explicit value is written as given, wrong or not."""

from __future__ import annotations

import struct

from gfwemu.model import FiveTuple, Transport
from gfwemu.wire.checksum import CHECKSUM_OFFSETS, internet_checksum, transport_checksum, updated_checksum
from gfwemu.wire.packet import Packet, TcpFlags

# A member of an enumeration is slow to reach and to compare.
_TCP, _UDP = int(Transport.TCP), int(Transport.UDP)
_IPV6_FRAGMENT_HEADER = 44
_IPV6_HEADER_LENGTH = 40
_IPV4_HEADER = struct.Struct("!BBHHHBBH4s4s")
_TCP_HEADER = struct.Struct("!HHIIBBHHH")
_UDP_HEADER = struct.Struct("!HHHH")


def build_ip(
    src: bytes,
    dst: bytes,
    proto: int,
    payload: bytes,
    *,
    ttl: int = 64,
    ip_id: int = 0,
    dont_fragment: bool = False,
    tos: int = 0,
    more_fragments: bool = False,
    fragment_offset: int = 0,
    options: bytes = b"",
    length: int | None = None,
    checksum: int | None = None,
) -> bytes:
    """An IPv4 or IPv6 packet, by the length of the addresses.

    fragment_offset: bytes, a multiple of 8. options: IPv4 only, padded to 32 bits. length: the total length (IPv4) or
    the payload length (IPv6). checksum: of the IPv4 header. dont_fragment is IPv4's only; ip_id appears over IPv6
    in fragments only. Raises ValueError where the parts do not fit together.
    """
    if len(src) != len(dst) or len(src) not in (4, 16):
        raise ValueError("source and destination must both be IPv4 or both be IPv6 addresses")
    if fragment_offset % 8:
        raise ValueError(f"fragment offset {fragment_offset} is not a multiple of 8")
    if len(src) == 16:
        if more_fragments or fragment_offset:
            payload = struct.pack("!BxHI", proto, fragment_offset | more_fragments, ip_id) + payload
            proto = _IPV6_FRAGMENT_HEADER
        length = _sixteen_bits(len(payload) if length is None else length, "IPv6 payload length")
        return struct.pack("!IHBB16s16s", 6 << 28 | tos << 20, length, proto, ttl, src, dst) + payload
    if options:
        options += bytes(-len(options) % 4)
    header_length = 20 + len(options)
    if header_length > 60:
        raise ValueError("IPv4 options exceed 40 bytes")
    length = _sixteen_bits(header_length + len(payload) if length is None else length, "IPv4 total length")
    fragment = dont_fragment << 14 | more_fragments << 13 | fragment_offset >> 3
    fields = 0x40 | header_length >> 2, tos, length, ip_id, fragment, ttl, proto
    if checksum is None:
        checksum = internet_checksum(_IPV4_HEADER.pack(*fields, 0, src, dst) + options)
    return _IPV4_HEADER.pack(*fields, checksum, src, dst) + options + payload


def build_tcp(
    five_tuple: FiveTuple,
    *,
    seq: int,
    ack: int,
    flags: int,
    window: int = 0,
    payload: bytes = b"",
    options: bytes = b"",
    ttl: int = 64,
    ip_id: int = 0,
    dont_fragment: bool = False,
    tos: int = 0,
    data_offset: int | None = None,
    checksum: int | None = None,
    urgent: int = 0,
) -> bytes:
    """A TCP segment in its IP packet (RFC 9293 section 3.1).

    seq and ack are taken modulo 2**32. data_offset: 32-bit words. options: padded to 32 bits.
    """
    if options:
        options += bytes(-len(options) % 4)
    if data_offset is None:
        data_offset = 5 + len(options) // 4
    if not 0 <= data_offset <= 15:
        raise ValueError("TCP options exceed 40 bytes")
    _, src, sport, dst, dport = five_tuple
    fields = sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, data_offset << 4, flags, window
    rest = options + payload
    if checksum is None:
        checksum = transport_checksum(src, dst, _TCP, _TCP_HEADER.pack(*fields, 0, urgent) + rest)
    return build_ip(
        src,
        dst,
        _TCP,
        _TCP_HEADER.pack(*fields, checksum, urgent) + rest,
        ttl=ttl,
        ip_id=ip_id,
        dont_fragment=dont_fragment,
        tos=tos,
    )


def build_udp(
    five_tuple: FiveTuple,
    payload: bytes,
    *,
    ttl: int = 64,
    ip_id: int = 0,
    dont_fragment: bool = False,
    tos: int = 0,
    length: int | None = None,
    checksum: int | None = None,
) -> bytes:
    """A UDP datagram in its IP packet (RFC 768). length: of header and payload."""
    _, src, sport, dst, dport = five_tuple
    length = _sixteen_bits(8 + len(payload) if length is None else length, "UDP length")
    if checksum is None:
        checksum = transport_checksum(src, dst, _UDP, _UDP_HEADER.pack(sport, dport, length, 0) + payload)
    return build_ip(
        src,
        dst,
        _UDP,
        _UDP_HEADER.pack(sport, dport, length, checksum) + payload,
        ttl=ttl,
        ip_id=ip_id,
        dont_fragment=dont_fragment,
        tos=tos,
    )


# ICMP type 3 (RFC 792, RFC 1812 section 5.2.7.1), ICMPv6 type 1 (RFC 4443 section 3.1).
_UNREACHABLE_CODES: dict[str, tuple[int, int]] = {
    "network": (0, 0),
    "host": (1, 3),
    "port": (3, 4),
    "admin_prohibited": (13, 1),
}
_ICMP_ERROR_LIMIT = 576  # RFC 1812 section 4.3.2.3
_ICMPV6_ERROR_LIMIT = 1280  # RFC 4443 section 3.1: the minimum IPv6 MTU
_INTERNETWORK_CONTROL = 0xC0  # RFC 1812 section 4.3.2.5


def build_icmp_unreachable(original: Packet, router: bytes, code_name: str, *, ttl: int = 64) -> bytes:
    """A destination unreachable from `router` to the source of `original`, which it quotes.

    code_name: `network`, `host`, `port` or `admin_prohibited`.
    """
    code, code_v6 = _UNREACHABLE_CODES[code_name]
    if original.version == 4:
        quote = original.raw[: _ICMP_ERROR_LIMIT - 20 - 8]
        message = struct.pack("!BBHI", 3, code, 0, 0) + quote
        message = _with_checksum(message, 2, internet_checksum(message))
        return build_ip(router, original.src, Transport.ICMP, message, ttl=ttl, tos=_INTERNETWORK_CONTROL)
    quote = original.raw[: _ICMPV6_ERROR_LIMIT - _IPV6_HEADER_LENGTH - 8]
    message = struct.pack("!BBHI", 1, code_v6, 0, 0) + quote
    message = _with_checksum(message, 2, transport_checksum(router, original.src, Transport.ICMPV6, message))
    return build_ip(router, original.src, Transport.ICMPV6, message, ttl=ttl)


def replace_endpoints(
    packet: Packet,
    *,
    src: bytes | None = None,
    sport: int | None = None,
    dst: bytes | None = None,
    dport: int | None = None,
) -> bytes:
    """The packet with other endpoints, as a NAT writes it (RFC 3022): checksums follow, wrong ones stay wrong.

    Ports are left alone where the packet has none (later fragments, ICMP). Raises ValueError for an address of the
    other family.
    """
    src = packet.src if src is None else src
    dst = packet.dst if dst is None else dst
    if len(src) != len(packet.src) or len(dst) != len(packet.dst):
        raise ValueError("the new address is of the other IP version")
    raw = bytearray(packet.raw)
    old_addresses, new_addresses = packet.src + packet.dst, src + dst
    start = 12 if packet.version == 4 else 8
    raw[start : start + len(new_addresses)] = new_addresses
    if packet.version == 4:
        _update_checksum(raw, 10, old_addresses, new_addresses)

    if packet.fragment_offset or packet.proto not in CHECKSUM_OFFSETS:
        return bytes(raw)
    offset = packet.transport_offset
    checksum_at = offset + CHECKSUM_OFFSETS[packet.proto]
    old, new = old_addresses, new_addresses
    if packet.proto in (Transport.TCP, Transport.UDP) and len(raw) >= offset + 4:
        old += raw[offset : offset + 4]
        if sport is not None:
            raw[offset : offset + 2] = sport.to_bytes(2, "big")
        if dport is not None:
            raw[offset + 2 : offset + 4] = dport.to_bytes(2, "big")
        new += raw[offset : offset + 4]
    if packet.proto == Transport.ICMP or len(raw) < checksum_at + 2:
        return bytes(raw)
    if packet.proto != Transport.UDP:
        _update_checksum(raw, checksum_at, old, new)
    elif raw[checksum_at : checksum_at + 2] != b"\0\0":
        _update_checksum(raw, checksum_at, old, new)
        if raw[checksum_at : checksum_at + 2] == b"\0\0":
            raw[checksum_at : checksum_at + 2] = b"\xff\xff"
    return bytes(raw)


def to_reset(packet: Packet) -> bytes:
    """The TCP packet as RST/ACK: same endpoints, numbers, window, TTL and IP ID; without payload and options.

    Raises ValueError for anything but a whole TCP segment.
    """
    if packet.proto != Transport.TCP or packet.is_fragment:
        raise ValueError("only a whole TCP segment can become a reset")
    return build_tcp(
        packet.five_tuple,
        seq=packet.seq,
        ack=packet.ack,
        flags=TcpFlags.RST | TcpFlags.ACK,
        window=packet.window,
        ttl=packet.ttl,
        ip_id=packet.ip_id,
        dont_fragment=packet.dont_fragment,
        tos=packet.tos,
    )


def _sixteen_bits(value: int, what: str) -> int:
    if not 0 <= value <= 0xFFFF:
        raise ValueError(f"{what} {value} does not fit into 16 bits")
    return value


def _with_checksum(message: bytes, offset: int, checksum: int) -> bytes:
    return message[:offset] + checksum.to_bytes(2, "big") + message[offset + 2 :]


def _update_checksum(raw: bytearray, offset: int, old: bytes, new: bytes) -> None:
    checksum = updated_checksum(int.from_bytes(raw[offset : offset + 2], "big"), old, new)
    raw[offset : offset + 2] = checksum.to_bytes(2, "big")
