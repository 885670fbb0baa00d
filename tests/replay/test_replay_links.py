from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.replay.links import LINK_TYPES, ip_packet

V4 = b"\x45" + bytes(39)
V6 = b"\x60" + bytes(59)
MACS = bytes(12)


def ether(ethertype: int) -> bytes:
    return struct.pack("!H", ethertype)


@pytest.mark.parametrize("packet", [V4, V6])
@pytest.mark.parametrize(
    ("link", "header"),
    [
        (0, b"\x02\0\0\0"),
        (0, b"\0\0\0\x1e"),
        (108, b"\0\0\0\x18"),
        (12, b""),
        (14, b""),
        (101, b""),
        (228, b""),
        (229, b""),
    ],
)
def test_links_without_an_ethertype(link: int, header: bytes, packet: bytes) -> None:
    assert ip_packet(link, header + packet) == packet


@pytest.mark.parametrize(("packet", "ethertype"), [(V4, 0x0800), (V6, 0x86DD)])
def test_links_with_an_ethertype(packet: bytes, ethertype: int) -> None:
    tag, outer = ether(0x8100) + b"\0\x07", ether(0x88A8) + b"\0\x01"
    ppp = ether(0x0021 if packet is V4 else 0x0057)
    for link, data in (
        (1, MACS + ether(ethertype) + packet),
        (1, MACS + tag + ether(ethertype) + packet),
        (1, MACS + outer + tag + ether(ethertype) + packet),
        (1, MACS + ether(0x8864) + b"\x11\0\0\x01\0\0" + ppp + packet),
        (113, bytes(14) + ether(ethertype) + packet),
        (113, bytes(14) + tag + ether(ethertype) + packet),
        (276, ether(ethertype) + bytes(18) + packet),
        (276, ether(0x8100) + bytes(18) + b"\0\x07" + ether(ethertype) + packet),
    ):
        assert ip_packet(link, data) == packet, (link, data.hex())


@pytest.mark.parametrize(
    ("link", "data"),
    [
        (1, MACS + ether(0x0806) + bytes(28)),
        (1, MACS + ether(0x8864) + b"\x11\0\0\x01\0\0" + ether(0xC021) + bytes(20)),
        (1, MACS + ether(0x8100) * 30),
        (1, b"short"),
        (113, bytes(14) + ether(0x0806) + bytes(28)),
        (276, ether(0x0806) + bytes(18) + bytes(28)),
        (101, b""),
        (101, b"\x15" + bytes(30)),
        (0, b"\x02\0"),
    ],
)
def test_frames_without_an_ip_packet(link: int, data: bytes) -> None:
    assert ip_packet(link, data) is None


@given(st.sampled_from(sorted(LINK_TYPES)), st.binary(max_size=60))
def test_any_bytes_give_ip_or_nothing(link: int, data: bytes) -> None:
    packet = ip_packet(link, data)
    assert packet is None or (packet[0] >> 4 in (4, 6) and data.endswith(packet))
