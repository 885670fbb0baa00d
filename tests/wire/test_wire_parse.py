"""The header parser against scapy, and against bytes that no host would send."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.packet import Raw

from gfwemu.model import address_bytes
from gfwemu.wire.packet import Malformed, Packet
from gfwemu.wire.parse import parse_packet

V4 = ("192.0.2.1", "198.51.100.2")
V6 = ("2001:db8::1", "2001:db8:1::2")

ports = st.integers(0, 65535)
payloads = st.binary(max_size=64)
tcp_options = st.lists(
    st.sampled_from([("NOP", None), ("MSS", 1460), ("WScale", 7), ("SAckOK", b""), ("Timestamp", (1, 2)), ("UTO", 3)]),
    max_size=4,
)


def parsed(packet: object) -> Packet:
    result = parse_packet(bytes(packet))  # type: ignore[arg-type]
    assert isinstance(result, Packet), result
    return result


def refused(data: bytes) -> str:
    result = parse_packet(data)
    assert isinstance(result, Malformed)
    return result.reason


@st.composite
def ip_headers(draw: st.DrawFn) -> IP | IPv6:
    if draw(st.booleans()):
        options = draw(st.sampled_from([[], [b"\x01" * 4], [b"\x94\x04\x00\x00"], [b"\x07\x07\x04" + bytes(5)]]))
        return IP(
            src=V4[0],
            dst=V4[1],
            ttl=draw(st.integers(0, 255)),
            id=draw(ports),
            tos=draw(st.integers(0, 255)),
            flags=draw(st.sampled_from(["", "DF"])),
            options=b"".join(options),
        )
    header = IPv6(src=V6[0], dst=V6[1], hlim=draw(st.integers(0, 255)), tc=draw(st.integers(0, 255)))
    for extension in draw(
        st.lists(
            st.sampled_from(
                [
                    IPv6ExtHdrHopByHop(),
                    IPv6ExtHdrDestOpt(),
                    IPv6ExtHdrRouting(addresses=[V6[0]], segleft=0),
                    IPv6ExtHdrFragment(id=7),
                ]
            ),
            max_size=4,
        )
    ):
        header = header / extension.copy()
    return header


def check_ip(packet: Packet, header: IP | IPv6) -> None:
    built = type(header)(bytes(header))
    assert packet.version == built.version
    assert packet.src == address_bytes(header.src)
    assert packet.dst == address_bytes(header.dst)
    assert packet.ttl == (header.ttl if packet.version == 4 else header.hlim)
    assert packet.tos == (header.tos if packet.version == 4 else header.tc)
    assert packet.dont_fragment == (packet.version == 4 and "DF" in header.flags)
    if packet.version == 4:
        assert packet.ip_id == header.id
    assert not packet.is_fragment


@given(header=ip_headers(), sport=ports, dport=ports, data=payloads, options=tcp_options, numbers=st.data())
def test_tcp_reads_as_scapy_reads_it(
    header: IP | IPv6, sport: int, dport: int, data: bytes, options: list[object], numbers: st.DataObject
) -> None:
    word = st.integers(0, 2**32 - 1)
    tcp = TCP(
        sport=sport,
        dport=dport,
        seq=numbers.draw(word),
        ack=numbers.draw(word),
        flags=numbers.draw(st.integers(0, 255)),
        window=numbers.draw(ports),
        urgptr=numbers.draw(ports),
        options=options,
    )
    whole = bytes(header / tcp / Raw(data))
    packet = parsed(whole)
    check_ip(packet, header)
    segment = bytes(tcp)
    assert packet.proto == 6
    assert packet.transport_offset == len(whole) - len(segment) - len(data)
    assert (packet.sport, packet.dport, packet.seq, packet.ack) == (sport, dport, tcp.seq, tcp.ack)
    assert (packet.flags, packet.window, packet.urgent) == (int(tcp.flags), tcp.window, tcp.urgptr)
    assert packet.data_offset == len(segment) // 4
    assert packet.tcp_options == segment[20:]
    assert packet.payload == data


@given(header=ip_headers(), sport=ports, dport=ports, data=payloads)
def test_udp_reads_as_scapy_reads_it(header: IP | IPv6, sport: int, dport: int, data: bytes) -> None:
    packet = parsed(header / UDP(sport=sport, dport=dport) / Raw(data))
    check_ip(packet, header)
    assert (packet.proto, packet.sport, packet.dport, packet.payload) == (17, sport, dport, data)


def test_the_authentication_header_counts_in_words_of_four_bytes() -> None:
    # RFC 4302 section 2.2: its length is in words, minus 2. scapy fills in neither it nor the next header.
    packet = parsed(IPv6(src=V6[0], dst=V6[1]) / AH(nh=17, payloadlen=4, icv=bytes(12)) / UDP(sport=1, dport=2) / b"x")
    assert (packet.proto, packet.transport_offset, packet.sport, packet.payload) == (17, 64, 1, b"x")


def test_icmp_keeps_type_code_and_body() -> None:
    packet = parsed(IP(src=V4[0], dst=V4[1]) / ICMP(type=3, code=13) / b"quoted")
    assert (packet.proto, packet.icmp_type, packet.icmp_code, packet.payload) == (1, 3, 13, b"quoted")
    assert (packet.sport, packet.dport) == (0, 0)
    packet = parsed(IPv6(src=V6[0], dst=V6[1]) / ICMPv6EchoRequest(data=b"ping"))
    assert (packet.proto, packet.icmp_type, packet.payload) == (58, 128, b"ping")


def test_other_protocols_keep_everything_after_the_ip_header() -> None:
    packet = parsed(IP(src=V4[0], dst=V4[1], proto=47) / b"\x00\x00\x08\x00rest")
    assert (packet.proto, packet.payload, packet.transport_offset) == (47, b"\x00\x00\x08\x00rest", 20)
    # ESP hides what follows it, and "no next header" has nothing.
    assert parsed(IPv6(src=V6[0], dst=V6[1], nh=50) / b"spi").payload == b"spi"
    assert parsed(IPv6(src=V6[0], dst=V6[1], nh=59)).payload == b""


@pytest.mark.parametrize("data_offset", [0, 1, 4, 15])
def test_an_impossible_tcp_data_offset_is_kept_and_the_payload_starts_after_twenty_bytes(data_offset: int) -> None:
    packet = parsed(IP(src=V4[0], dst=V4[1]) / TCP(dataofs=data_offset) / b"GET / HTTP/1.1")
    assert packet.data_offset == data_offset
    assert packet.tcp_options == b""
    assert packet.payload == b"GET / HTTP/1.1"


def test_a_large_but_possible_data_offset_takes_payload_as_options() -> None:
    # "data offset = 10 duplicate": the start of the request reads as header (Geneva, CCS'19).
    packet = parsed(IP(src=V4[0], dst=V4[1]) / TCP(dataofs=10) / (b"A" * 20 + b"rest"))
    assert (packet.data_offset, packet.tcp_options, packet.payload) == (10, b"A" * 20, b"rest")


def test_ip_lengths_that_lie() -> None:
    segment = bytes(TCP(sport=1, dport=2)) + b"payload"
    header = IP(src=V4[0], dst=V4[1], proto=6)
    header.len = 20 + len(segment) + 500
    assert parsed(bytes(header) + segment).payload == b"payload"
    header.len = 20 + len(segment) - 4
    shorter = parsed(bytes(header) + segment)
    assert shorter.payload == b"pay"
    assert len(shorter.raw) == header.len
    header.len = 0
    assert parsed(bytes(header) + segment).payload == b"payload"
    header6 = IPv6(src=V6[0], dst=V6[1], nh=6)
    header6.plen = len(segment) - 4
    assert parsed(bytes(header6) + segment).payload == b"pay"
    header6.plen = 0
    assert parsed(bytes(header6) + segment).payload == b"payload"


def test_link_padding_is_not_part_of_the_packet() -> None:
    whole = bytes(IP(src=V4[0], dst=V4[1]) / TCP())
    packet = parsed(whole + bytes(6))
    assert (packet.raw, packet.payload) == (whole, b"")


@pytest.mark.parametrize(
    ("length", "payload"), [(8, b""), (10, b"ab"), (14, b"abcdef"), (900, b"abcdef"), (0, b"abcdef"), (7, b"abcdef")]
)
def test_udp_lengths_that_lie(length: int, payload: bytes) -> None:
    datagram = struct.pack("!HHHH", 1, 2, length, 0) + b"abcdef"
    assert parsed(IP(src=V4[0], dst=V4[1], proto=17) / datagram).payload == payload


def test_ipv4_fragments() -> None:
    datagram = bytes(UDP(sport=1, dport=2) / Raw(bytes(range(40))))
    first = parsed(IP(src=V4[0], dst=V4[1], proto=17, flags="MF", id=5) / datagram[:24])
    assert (first.is_fragment, first.more_fragments, first.fragment_offset) == (True, True, 0)
    assert (first.sport, first.dport, first.payload) == (1, 2, bytes(range(16)))
    last = parsed(IP(src=V4[0], dst=V4[1], proto=17, frag=3, id=5) / datagram[24:])
    assert (last.is_fragment, last.more_fragments, last.fragment_offset) == (True, False, 24)
    assert (last.sport, last.dport, last.payload) == (0, 0, datagram[24:])
    assert last.raw[last.transport_offset :] == datagram[24:]


def test_a_first_fragment_too_short_for_its_header_is_no_error() -> None:
    tiny = parsed(IP(src=V4[0], dst=V4[1], proto=6, flags="MF") / bytes(TCP(sport=9, dport=9))[:8])
    assert (tiny.sport, tiny.dport, len(tiny.payload)) == (0, 0, 8)
    assert refused(bytes(IP(src=V4[0], dst=V4[1], proto=6) / bytes(TCP())[:8])) == "TCP header cut short"


def test_ipv6_fragments() -> None:
    base = IPv6(src=V6[0], dst=V6[1])
    datagram = bytes(UDP(sport=1, dport=2)) + bytes(40)
    first = parsed(base / IPv6ExtHdrFragment(nh=17, m=1, id=0x12345678) / datagram[:24])
    assert (first.ip_id, first.more_fragments, first.fragment_offset, first.sport) == (0x12345678, True, 0, 1)
    last = parsed(base / IPv6ExtHdrFragment(nh=17, offset=3, id=0x12345678) / datagram[24:])
    assert (last.ip_id, last.more_fragments, last.fragment_offset, last.sport) == (0x12345678, False, 24, 0)
    assert last.payload == datagram[24:]


def test_the_walk_ends_at_the_fragment_header_of_a_fragment() -> None:
    # What follows is data to be put together first, so that all fragments tell the same protocol.
    inner = bytes(IPv6ExtHdrDestOpt(nh=17)) + bytes(UDP(sport=1, dport=2)) + bytes(8)
    packet = parsed(IPv6(src=V6[0], dst=V6[1]) / IPv6ExtHdrFragment(nh=60, m=1) / inner)
    assert (packet.proto, packet.sport, packet.payload) == (60, 0, inner)
    atomic = parsed(IPv6(src=V6[0], dst=V6[1]) / IPv6ExtHdrFragment(nh=60, m=0) / inner)
    assert (atomic.proto, atomic.sport, atomic.is_fragment) == (17, 1, False)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty packet"),
        (b"\x50" + bytes(60), "IP version 5"),
        (b"\x45" + bytes(18), "IPv4 header cut short"),
        (b"\x44" + bytes(30), "IPv4 header length below 20"),
        (b"\x4f\x00\x00\x00" + bytes(20), "IPv4 header cut short"),
        (b"\x45\x00\x00\x04" + bytes(20), "IPv4 header cut short"),
        (b"\x60" + bytes(30), "IPv6 header cut short"),
        (b"\x60" + bytes(39), "IPv6 extension header cut short"),
        (b"\x60" + bytes(5) + b"\x2b" + bytes(34) + b"\x06\x02" + bytes(8), "IPv6 extension header cut short"),
        (b"\x60" + bytes(5) + b"\x2c" + bytes(37), "IPv6 fragment header cut short"),
        (b"\x60" + bytes(5) + b"\x33" + bytes(37), "IPv6 extension header cut short"),
        (bytes(IP(src=V4[0], dst=V4[1], proto=17) / b"1234567"), "UDP header cut short"),
        (bytes(IP(src=V4[0], dst=V4[1], proto=1) / b"1234567"), "ICMP header cut short"),
    ],
)
def test_unreadable_packets_say_why(data: bytes, reason: str) -> None:
    assert refused(data) == reason


@given(
    st.one_of(
        st.binary(max_size=120),
        st.builds(
            lambda head, body: bytes([head]) + body, st.sampled_from([0x45, 0x46, 0x4F, 0x60]), st.binary(max_size=120)
        ),
    )
)
@example(b"\x60" + bytes(200))
def test_no_bytes_raise(data: bytes) -> None:
    result = parse_packet(data)
    if isinstance(result, Malformed):
        assert result.reason
        return
    assert data.startswith(result.raw)
    assert result.raw.endswith(result.payload) or result.proto == 17
    assert result.transport_offset <= len(result.raw)
    assert len(result.src) == len(result.dst) == (4 if result.version == 4 else 16)
    assert socket.inet_ntop(socket.AF_INET if result.version == 4 else socket.AF_INET6, result.src)


@given(header=ip_headers(), data=payloads, cut=st.integers(0, 200), flip=st.integers(0, 2000))
def test_no_damage_to_a_real_packet_raises(header: IP | IPv6, data: bytes, cut: int, flip: int) -> None:
    whole = bytearray(bytes(header / TCP(options=[("Timestamp", (1, 2))]) / Raw(data)))
    whole[flip // 8 % len(whole)] ^= 1 << flip % 8
    assert parse_packet(bytes(whole[:cut])) is not None
    assert parse_packet(bytes(whole)) is not None
