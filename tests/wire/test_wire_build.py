"""Builders and checksums against scapy, both ways, and against the parser."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrFragment
from scapy.packet import Raw

from gfwemu.model import FiveTuple, address_bytes, address_text
from gfwemu.wire.build import build_icmp_unreachable, build_ip, build_tcp, build_udp, replace_endpoints, to_reset
from gfwemu.wire.checksum import checksum_ok, internet_checksum, ones_complement_sum, updated_checksum
from gfwemu.wire.packet import Packet, TcpFlags
from gfwemu.wire.parse import parse_packet

V4 = (address_bytes("192.0.2.1"), address_bytes("198.51.100.2"), address_bytes("203.0.113.9"))
V6 = (address_bytes("2001:db8::1"), address_bytes("2001:db8:1::2"), address_bytes("2001:db8:2::9"))

ports = st.integers(0, 65535)
octets = st.integers(0, 255)
words = st.integers(0, 2**32 - 1)
payloads = st.binary(max_size=80)
families = st.sampled_from([V4, V6])


def five_tuple(proto: int, family: tuple[bytes, ...], sport: int = 40000, dport: int = 443) -> FiveTuple:
    return FiveTuple(proto, family[0], sport, family[1], dport)


def parsed(data: bytes) -> Packet:
    packet = parse_packet(data)
    assert isinstance(packet, Packet), packet
    return packet


def rebuilt_by_scapy(data: bytes) -> bytes:
    """The packet with every length and checksum computed anew by scapy."""
    if data[0] >> 4 == 4:
        packet = IP(data)
        del packet.len, packet.chksum, packet.ihl
    else:
        packet = IPv6(data)
        del packet.plen
    for layer in (TCP, UDP, ICMP):
        if layer in packet:
            del packet[layer].chksum
    if TCP in packet:
        del packet[TCP].dataofs
    if UDP in packet:
        del packet[UDP].len
    if ICMPv6DestUnreach in packet:
        del packet[ICMPv6DestUnreach].cksum
    return bytes(packet)


@given(family=families, sport=ports, dport=ports, seq=words, ack=words, flags=octets, window=ports, data=st.data())
def test_tcp_is_what_scapy_builds(
    family: tuple[bytes, ...], sport: int, dport: int, seq: int, ack: int, flags: int, window: int, data: st.DataObject
) -> None:
    ttl, tos, ip_id, urgent = data.draw(octets), data.draw(octets), data.draw(ports), data.draw(ports)
    payload, dont_fragment = data.draw(payloads), data.draw(st.booleans())
    ours = build_tcp(
        five_tuple(6, family, sport, dport),
        seq=seq,
        ack=ack,
        flags=flags,
        window=window,
        payload=payload,
        options=b"\x02\x04\x05\xb4",
        ttl=ttl,
        tos=tos,
        ip_id=ip_id,
        dont_fragment=dont_fragment,
        urgent=urgent,
    )
    tcp = TCP(
        sport=sport, dport=dport, seq=seq, ack=ack, flags=flags, window=window, urgptr=urgent, options=[("MSS", 1460)]
    )
    src, dst = address_text(family[0]), address_text(family[1])
    if family is V4:
        header = IP(src=src, dst=dst, ttl=ttl, tos=tos, id=ip_id, flags="DF" if dont_fragment else "")
    else:
        header = IPv6(src=src, dst=dst, hlim=ttl, tc=tos)
    assert ours == bytes(header / tcp / Raw(payload))
    packet = parsed(ours)
    assert checksum_ok(packet)
    assert (packet.seq, packet.ack, packet.flags, packet.window) == (seq, ack, flags, window)
    assert (packet.payload, packet.tcp_options, packet.data_offset) == (payload, b"\x02\x04\x05\xb4", 6)


@given(family=families, sport=ports, dport=ports, payload=payloads, ttl=octets)
def test_udp_is_what_scapy_builds(family: tuple[bytes, ...], sport: int, dport: int, payload: bytes, ttl: int) -> None:
    ours = build_udp(five_tuple(17, family, sport, dport), payload, ttl=ttl, ip_id=7)
    assert rebuilt_by_scapy(ours) == ours
    packet = parsed(ours)
    assert checksum_ok(packet)
    assert (packet.sport, packet.dport, packet.payload, packet.ttl) == (sport, dport, payload, ttl)


def test_a_udp_checksum_of_zero_goes_out_as_all_ones() -> None:
    # RFC 768: zero means "none". Search the payload that makes it zero.
    base = build_udp(five_tuple(17, V4), b"\0\0")
    missing = int.from_bytes(base[26:28], "big")
    packet = build_udp(five_tuple(17, V4), missing.to_bytes(2, "big"))
    assert packet[26:28] == b"\xff\xff"
    assert checksum_ok(parsed(packet))


@given(family=families, payload=payloads, bit=st.integers(0, 10_000), proto=st.sampled_from([6, 17]))
def test_checksum_ok_sees_every_flipped_bit(family: tuple[bytes, ...], payload: bytes, bit: int, proto: int) -> None:
    if proto == 6:
        good = build_tcp(five_tuple(6, family), seq=1, ack=2, flags=0x18, payload=payload)
    else:
        good = build_udp(five_tuple(17, family), payload)
    packet = parsed(good)
    assert checksum_ok(packet)
    damaged = bytearray(good)
    offset = packet.transport_offset
    position = offset + bit // 8 % (len(good) - offset)
    # Without UDP's length and checksum: a datagram cut elsewhere may sum up by chance, and no checksum is right.
    assume(proto == 6 or not 4 <= position - offset < 8)
    damaged[position] ^= 1 << bit % 8
    assert not checksum_ok(parsed(bytes(damaged)))


def test_udp_without_a_checksum() -> None:
    assert checksum_ok(parsed(build_udp(five_tuple(17, V4), b"x", checksum=0)))
    assert not checksum_ok(parsed(build_udp(five_tuple(17, V6), b"x", checksum=0)))
    assert not checksum_ok(parsed(build_udp(five_tuple(17, V4), b"x", length=90)))


def test_what_cannot_be_checked_counts_as_right() -> None:
    assert checksum_ok(parsed(build_ip(V4[0], V4[1], 17, b"\x01" * 16, more_fragments=True)))
    assert checksum_ok(parsed(build_ip(V4[0], V4[1], 47, b"gre")))


def test_wrong_on_purpose() -> None:
    packet = parsed(
        build_tcp(five_tuple(6, V4), seq=0, ack=0, flags=0x12, payload=b"data", data_offset=3, checksum=0xBEEF)
    )
    assert packet.data_offset == 3
    assert packet.raw[36:38] == b"\xbe\xef"
    assert not checksum_ok(packet)
    wrong = build_ip(V4[0], V4[1], 17, b"12345678", length=999, checksum=1)
    assert wrong[2:4] == (999).to_bytes(2, "big")
    assert wrong[10:12] == b"\0\1"
    assert build_udp(five_tuple(17, V4), b"abc", length=5)[24:26] == b"\0\5"


@pytest.mark.parametrize("family", [V4, V6])
def test_fragments_read_back(family: tuple[bytes, ...]) -> None:
    whole = build_udp(five_tuple(17, family), bytes(range(60)))
    datagram = whole[parsed(whole).transport_offset :]
    pieces = [
        parsed(build_ip(family[0], family[1], 17, datagram[:32], ip_id=77, more_fragments=True)),
        parsed(build_ip(family[0], family[1], 17, datagram[32:], ip_id=77, fragment_offset=32)),
    ]
    assert [(p.ip_id, p.more_fragments, p.fragment_offset) for p in pieces] == [(77, True, 0), (77, False, 32)]
    assert b"".join(p.raw[p.transport_offset :] for p in pieces) == datagram
    if family is V6:
        assert IPv6(pieces[1].raw)[IPv6ExtHdrFragment].offset == 4


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="must both be IPv4 or both be IPv6"):
        build_ip(V4[0], V6[1], 6, b"")
    with pytest.raises(ValueError, match="fragment offset 3 is not a multiple of 8"):
        build_ip(V4[0], V4[1], 6, b"", fragment_offset=3)
    with pytest.raises(ValueError, match="TCP options exceed 40 bytes"):
        build_tcp(five_tuple(6, V4), seq=0, ack=0, flags=0, options=bytes(41))
    with pytest.raises(ValueError, match="IPv4 options exceed 40 bytes"):
        build_ip(V4[0], V4[1], 6, b"", options=bytes(41))
    with pytest.raises(ValueError, match="IPv4 total length 65556 does not fit into 16 bits"):
        build_ip(V4[0], V4[1], 6, bytes(65536))


@pytest.mark.parametrize(
    ("code_name", "code", "code_v6"), [("network", 0, 0), ("host", 1, 3), ("port", 3, 4), ("admin_prohibited", 13, 1)]
)
def test_icmp_unreachable(code_name: str, code: int, code_v6: int) -> None:
    original = build_tcp(five_tuple(6, V4), seq=1, ack=2, flags=2, payload=bytes(1000))
    error = build_icmp_unreachable(parsed(original), V4[2], code_name, ttl=9)
    assert rebuilt_by_scapy(error) == error
    assert len(error) == 576
    read = IP(error)
    assert (read.src, read.dst, read.ttl) == (address_text(V4[2]), address_text(V4[0]), 9)
    assert (read[ICMP].type, read[ICMP].code) == (3, code)
    assert read[IPerror].src == address_text(V4[0])
    assert ICMPerror not in read

    original = build_udp(five_tuple(17, V6), bytes(2000))
    error = build_icmp_unreachable(parsed(original), V6[2], code_name)
    assert rebuilt_by_scapy(error) == error
    assert len(error) == 1280
    assert IPv6(error)[ICMPv6DestUnreach].code == code_v6
    assert error.endswith(original[: 1280 - 48])


@given(
    family=families,
    proto=st.sampled_from([6, 17]),
    payload=payloads,
    sport=st.none() | ports,
    dport=st.none() | ports,
    which=st.sampled_from(["src", "dst", "both", "none"]),
    zero_checksum=st.booleans(),
)
def test_replaced_endpoints_are_what_scapy_builds(
    family: tuple[bytes, ...],
    proto: int,
    payload: bytes,
    sport: int | None,
    dport: int | None,
    which: str,
    zero_checksum: bool,
) -> None:
    checksum = 0 if zero_checksum and proto == 17 and family is V4 else None
    if proto == 6:
        original = build_tcp(five_tuple(6, family), seq=1, ack=2, flags=0x18, payload=payload, options=bytes(4))
    else:
        original = build_udp(five_tuple(17, family), payload, checksum=checksum)
    changed = replace_endpoints(
        parsed(original),
        src=family[2] if which in ("src", "both") else None,
        dst=family[2] if which in ("dst", "both") else None,
        sport=sport,
        dport=dport,
    )
    packet = parsed(changed)
    assert packet.src == (family[2] if which in ("src", "both") else family[0])
    assert packet.dst == (family[2] if which in ("dst", "both") else family[1])
    assert packet.sport == (40000 if sport is None else sport)
    assert packet.dport == (443 if dport is None else dport)
    assert packet.payload == payload
    assert checksum_ok(packet)
    if checksum == 0:
        assert changed[26:28] == b"\0\0"
    else:
        assert rebuilt_by_scapy(changed) == changed


def test_replacing_keeps_a_wrong_checksum_wrong_and_a_fragment_whole() -> None:
    bad = parsed(build_tcp(five_tuple(6, V4), seq=1, ack=2, flags=0x18, payload=b"x", checksum=0x1234))
    assert not checksum_ok(parsed(replace_endpoints(bad, dst=V4[2], dport=8443)))
    whole = build_udp(five_tuple(17, V4), bytes(40))
    datagram = whole[20:]
    first = parsed(build_ip(V4[0], V4[1], 17, datagram[:24], more_fragments=True))
    last = parsed(build_ip(V4[0], V4[1], 17, datagram[24:], fragment_offset=24))
    joined = b"".join(replace_endpoints(piece, dst=V4[2], dport=53)[20:] for piece in (first, last))
    assert checksum_ok(parsed(build_ip(V4[0], V4[2], 17, joined)))
    with pytest.raises(ValueError, match="other IP version"):
        replace_endpoints(first, dst=V6[0])
    tiny = build_ip(V4[0], V4[1], 6, bytes([0x9C, 0x40, 1, 0xBB, 0, 0, 0, 1]), more_fragments=True)
    assert replace_endpoints(parsed(tiny), dport=80)[20:] == bytes([0x9C, 0x40, 0, 80, 0, 0, 0, 1])


def test_a_replaced_udp_checksum_of_zero_goes_out_as_all_ones() -> None:
    packet = parsed(build_udp(five_tuple(17, V4, sport=0), b""))
    missing = int.from_bytes(packet.raw[26:28], "big")
    assert replace_endpoints(packet, sport=missing)[26:28] == b"\xff\xff"


@pytest.mark.parametrize("family", [V4, V6])
def test_to_reset_keeps_everything_but_payload_and_options(family: tuple[bytes, ...]) -> None:
    original = build_tcp(
        five_tuple(6, family),
        seq=1000,
        ack=2000,
        flags=TcpFlags.PSH | TcpFlags.ACK,
        window=512,
        payload=b"hello",
        options=b"\x01" * 4,
        ttl=57,
        ip_id=99,
        dont_fragment=True,
    )
    reset = to_reset(parsed(original))
    assert rebuilt_by_scapy(reset) == reset
    before, after = parsed(original), parsed(reset)
    assert after.flags == TcpFlags.RST | TcpFlags.ACK
    assert (after.payload, after.tcp_options) == (b"", b"")
    for name in ("five_tuple", "seq", "ack", "window", "ttl", "ip_id", "dont_fragment"):
        assert getattr(after, name) == getattr(before, name)
    with pytest.raises(ValueError, match="only a whole TCP segment"):
        to_reset(parsed(build_udp(five_tuple(17, family), b"")))


def test_rfc_1071_example() -> None:
    # RFC 1071 section 3: the sum of this data is ddf2.
    assert ones_complement_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


@given(st.binary(min_size=4, max_size=60), st.binary(min_size=2, max_size=2))
def test_updating_a_checksum_equals_computing_it_anew(data: bytes, new: bytes) -> None:
    changed = new + data[2:]
    updated = updated_checksum(internet_checksum(data), data[:2], new)
    # 0 and 0xFFFF are the same number in one's complement.
    assert updated % 0xFFFF == internet_checksum(changed) % 0xFFFF
