"""The short way to read a packet against the parser that reads all of it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfwemu.model import FiveTuple, address_bytes
from gfwemu.wire.build import build_tcp, build_udp
from gfwemu.wire.midflow import ends_of, midflow_packet
from gfwemu.wire.packet import Packet
from gfwemu.wire.parse import parse_packet

V4 = (address_bytes("192.0.2.1"), address_bytes("198.51.100.2"))
V6 = (address_bytes("2001:db8::1"), address_bytes("2001:db8:1::2"))
TELLING = {V4[0]: [0, 2, 3, 6, 7, 9, 25, 32, 33], V6[0]: [0, 4, 5, 6, 45, 52, 53]}
"""Offsets of lengths, fragments, protocol and flags."""
FIN_SYN_RST = 0x07

ports = st.integers(0, 65535)


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """TCP and UDP, some of them cut, padded, or with a byte changed."""
    src, dst = draw(st.sampled_from([V4, V6]))
    payload = draw(st.binary(max_size=40))
    if draw(st.booleans()):
        flags = draw(st.sampled_from([0x10, 0x18, 0x00, 0x02, 0x11, 0x14]))
        data = build_tcp(FiveTuple(6, src, draw(ports), dst, draw(ports)), seq=7, ack=9, flags=flags, payload=payload)
    else:
        data = build_udp(FiveTuple(17, src, draw(ports), dst, draw(ports)), payload)
    if draw(st.booleans()):
        changed = bytearray(data)
        place = draw(st.sampled_from(TELLING[src]) | st.integers(0, len(data) - 1))
        changed[min(place, len(data) - 1)] = draw(st.integers(0, 40) | st.integers(0, 255))
        data = bytes(changed)
    data += draw(st.sampled_from([b"", bytes(6)]))
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


@settings(max_examples=1000)
@given(st.one_of(packets(), st.binary(max_size=80)))
def test_what_it_tells_is_what_the_parser_tells(data: bytes) -> None:
    told = midflow_packet(data)
    packet = parse_packet(data)
    if told is None:
        return
    assert isinstance(packet, Packet)
    assert told == (ends_of(packet.five_tuple), len(packet.raw), bool(packet.payload))
    assert packet.proto in (6, 17)
    assert not packet.is_fragment
    assert not packet.flags & FIN_SYN_RST


@pytest.mark.parametrize(("src", "dst"), [V4, V6])
@pytest.mark.parametrize("payload", [b"", b"x" * 100])
@pytest.mark.parametrize("padding", [b"", bytes(6)])
def test_ordinary_packets_are_told(src: bytes, dst: bytes, payload: bytes, padding: bytes) -> None:
    key = FiveTuple(6, src, 1025, dst, 443)
    data = build_tcp(key, seq=1, ack=2, flags=0x10, payload=payload)
    assert midflow_packet(data + padding) == (ends_of(key), len(data), bool(payload))
    datagram = build_udp(key._replace(proto=17), b"y" * 12 + payload)
    assert midflow_packet(datagram + padding) == (ends_of(key._replace(proto=17)), len(datagram), True)


@pytest.mark.parametrize("size", [12, 13, 16, 40])
def test_lengths_that_lie_are_read_as_the_parser_reads_them(size: int) -> None:
    segment = build_tcp(FiveTuple(6, V4[0], 1, V4[1], 2), seq=1, ack=2, flags=0x10, payload=bytes(size - 12))
    datagram = build_udp(FiveTuple(17, V4[0], 1, V4[1], 2), bytes(size))
    lies = [segment[:32] + bytes([words << 4]) + segment[33:] for words in range(16)]
    lies += [datagram[:24] + struct.pack("!H", length) + datagram[26:] for length in (0, 7, 8, 9, 20, 900)]
    lies += [whole[:2] + struct.pack("!H", length) + whole[4:] for whole in lies for length in (0, 39, 40, 41, 900)]
    for data in lies:
        told, packet = midflow_packet(data), parse_packet(data)
        if told is not None:
            assert isinstance(packet, Packet)
            assert told[1:] == (len(packet.raw), bool(packet.payload)), data.hex()


@pytest.mark.parametrize("flags", [0x02, 0x12, 0x11, 0x04, 0x14])
def test_packets_that_open_or_close_are_not(flags: int) -> None:
    assert midflow_packet(build_tcp(FiveTuple(6, V4[0], 1, V4[1], 2), seq=1, ack=2, flags=flags)) is None


def test_fragments_and_ip_options_are_not() -> None:
    data = build_udp(FiveTuple(17, V4[0], 1, V4[1], 2), bytes(40))
    assert midflow_packet(data[:6] + struct.pack("!H", 0x2000) + data[8:]) is None
    assert midflow_packet(data[:6] + struct.pack("!H", 0x0001) + data[8:]) is None
    assert midflow_packet(b"\x46" + data[1:]) is None
    data6 = build_udp(FiveTuple(17, V6[0], 1, V6[1], 2), bytes(40))
    assert midflow_packet(data6[:6] + b"\x3c" + data6[7:]) is None
