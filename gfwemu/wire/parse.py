"""IPv4 and IPv6 packets to fields. Never raises, whatever the bytes.

Censors read packets that no host accepts, so this reads what it can: lengths that promise more than there is are
cut to what is there, and checksums are not looked at (see `gfwemu.wire.checksum`).
"""

from __future__ import annotations

from struct import Struct

from gfwemu.wire.packet import Malformed, Packet

_IPV4 = Struct("!BBHHHBBxx4s4s")
_IPV6 = Struct("!IHBB16s16s")
_IPV6_FRAGMENT = Struct("!BxHI")
_TCP = Struct("!HHIIBBHxxH")
_UDP = Struct("!HHH")

_TCP_MINIMUM = 20
_UDP_LENGTH = 8
_ICMP_LENGTH = 8

_IPV6_FRAGMENT_HEADER = 44
_AUTHENTICATION_HEADER = 51
# IANA "IPv6 Extension Header Types" that begin with next header and length in 8-byte units: hop-by-hop, routing,
# destination options, mobility, HIP, shim6. ESP hides what follows; its payload starts right there.
_IPV6_OPTION_HEADERS = frozenset({0, 43, 60, 135, 139, 140})


def parse_packet(data: bytes) -> Packet | Malformed:
    """Read one IP packet (RFC 791, RFC 8200) and its TCP, UDP, ICMP or ICMPv6 header.

    - `raw` ends where the IP length says; link padding behind it is gone. A length beyond the data is cut to it, and
      a length of 0 (jumbograms, kernel segmentation offload) means all the data.
    - TCP: `data_offset` counts 32-bit words as on the wire. Where it is below 5 or beyond the segment there are no
      options and `payload` is everything after the first 20 bytes.
    - UDP: `payload` ends where the UDP length says, if that is inside the packet; a length below 8 is ignored.
    - ICMP: `payload` is everything after the first 8 bytes.
    - Any other protocol: `payload` is everything after the IP headers, and so it is for a fragment other than the
      first and for a first fragment too short for its transport header, whose transport fields are all 0.
    - IPv6 extension headers are walked, up to and with the fragment header in a fragment: `proto` is the first
      header that is not walked. An ESP or unknown header ends the walk.
    """
    if not data:
        return Malformed("empty packet")
    version = data[0] >> 4
    if version == 4:
        return _parse_ipv4(data)
    if version == 6:
        return _parse_ipv6(data)
    return Malformed(f"IP version {version}")


def _parse_ipv4(data: bytes) -> Packet | Malformed:
    if len(data) < 20:
        return Malformed("IPv4 header cut short")
    first, tos, length, ip_id, fragment, ttl, proto, src, dst = _IPV4.unpack_from(data)
    header = (first & 0x0F) * 4
    if header < 20:
        return Malformed("IPv4 header length below 20")
    if length:
        data = data[:length]
    if header > len(data):
        return Malformed("IPv4 header cut short")
    # RFC 791 section 3.1: bit 1 is DF, bit 2 is MF, the offset counts units of 8 bytes.
    return _parse_transport(
        Packet(
            data,
            4,
            src,
            dst,
            proto,
            ttl,
            tos,
            ip_id,
            fragment & 0x4000 != 0,
            fragment & 0x2000 != 0,
            (fragment & 0x1FFF) << 3,
            header,
        )
    )


def _parse_ipv6(data: bytes) -> Packet | Malformed:
    if len(data) < 40:
        return Malformed("IPv6 header cut short")
    word, length, proto, ttl, src, dst = _IPV6.unpack_from(data)
    if length:
        data = data[: 40 + length]
    offset = 40
    end = len(data)
    ip_id = fragment = 0
    while True:
        if proto in _IPV6_OPTION_HEADERS:
            if offset + 8 > end:
                return Malformed("IPv6 extension header cut short")
            proto, size = data[offset], (data[offset + 1] + 1) * 8
        elif proto == _AUTHENTICATION_HEADER:
            if offset + 8 > end:
                return Malformed("IPv6 extension header cut short")
            proto, size = data[offset], (data[offset + 1] + 2) * 4  # RFC 4302 section 2.2
        elif proto == _IPV6_FRAGMENT_HEADER:
            if offset + 8 > end:
                return Malformed("IPv6 fragment header cut short")
            proto, fragment, ip_id = _IPV6_FRAGMENT.unpack_from(data, offset)
            size = 8
        else:
            break
        offset += size
        if offset > end:
            return Malformed("IPv6 extension header cut short")
        if fragment & 0xFFF9:
            break
    return _parse_transport(
        Packet(
            data,
            6,
            src,
            dst,
            proto,
            ttl,
            word >> 20 & 0xFF,
            ip_id,
            False,
            fragment & 1 != 0,
            fragment & 0xFFF8,
            offset,
        )
    )


def _parse_transport(packet: Packet) -> Packet | Malformed:
    data = packet.raw
    start = packet.transport_offset
    left = len(data) - start
    proto = packet.proto
    if packet.fragment_offset:
        packet.payload = data[start:]
    elif proto == 6:
        if left < _TCP_MINIMUM:
            return _too_short(packet, "TCP header cut short")
        (
            packet.sport,
            packet.dport,
            packet.seq,
            packet.ack,
            offset_byte,
            packet.flags,
            packet.window,
            packet.urgent,
        ) = _TCP.unpack_from(data, start)
        packet.data_offset = words = offset_byte >> 4
        header = words * 4
        if header == _TCP_MINIMUM or header < _TCP_MINIMUM or header > left:
            packet.payload = data[start + _TCP_MINIMUM :]
        else:
            packet.tcp_options = data[start + _TCP_MINIMUM : start + header]
            packet.payload = data[start + header :]
    elif proto == 17:
        if left < _UDP_LENGTH:
            return _too_short(packet, "UDP header cut short")
        packet.sport, packet.dport, length = _UDP.unpack_from(data, start)
        end = start + length if length >= _UDP_LENGTH else len(data)
        packet.payload = data[start + _UDP_LENGTH : end]
    elif proto in (1, 58):
        if left < _ICMP_LENGTH:
            return _too_short(packet, "ICMP header cut short")
        packet.icmp_type = data[start]
        packet.icmp_code = data[start + 1]
        packet.payload = data[start + _ICMP_LENGTH :]
    else:
        packet.payload = data[start:]
    return packet


def _too_short(packet: Packet, reason: str) -> Packet | Malformed:
    # A first fragment may hold as little as 8 bytes (RFC 1858); reassembly brings the rest.
    if not packet.more_fragments:
        return Malformed(reason)
    packet.payload = packet.raw[packet.transport_offset :]
    return packet
