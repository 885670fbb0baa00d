"""Which packets count as injected, and which as arrived."""

from __future__ import annotations

import pytest

from gfwemu.conformance.paper import age
from gfwemu.conformance.trace import Trace, seen
from gfwemu.model import FiveTuple, Side, address_bytes
from gfwemu.wire.build import build_tcp
from gfwemu.wire.checksum import checksum_ok, internet_checksum
from gfwemu.wire.packet import Packet
from gfwemu.wire.parse import parse_packet

V4 = FiveTuple(6, address_bytes("192.0.2.64"), 40_000, address_bytes("203.0.113.64"), 443)
V6 = FiveTuple(6, address_bytes("2001:db8:1::7"), 40_000, address_bytes("2001:db8:f::7"), 443)


def segment(seq: int = 1, ttl: int = 64, flow: FiveTuple = V4) -> bytes:
    return build_tcp(flow, seq=seq, ack=0, flags=4, ttl=ttl, ip_id=9)


def trace(*packets: tuple[bytes, Side, bool]) -> Trace:
    found = [seen(data, float(at), side, sent=sent) for at, (data, side, sent) in enumerate(packets)]
    return Trace([one for one in found if one is not None])


def test_what_was_sent_is_not_injected_though_its_ttl_fell() -> None:
    one = trace((segment(), Side.INSIDE, True), (segment(ttl=48), Side.OUTSIDE, False))
    assert one.injected(Side.OUTSIDE) == []
    assert one.arrived(one.packets[0])


def test_a_second_copy_is_injected() -> None:
    one = trace((segment(), Side.INSIDE, True), *[(segment(ttl=48), Side.OUTSIDE, False)] * 3)
    assert one.injected(Side.OUTSIDE) == one.packets[2:]


def test_another_packet_is_injected_and_what_was_sent_is_lost() -> None:
    one = trace((segment(1), Side.INSIDE, True), (segment(2), Side.OUTSIDE, False))
    assert one.injected(Side.OUTSIDE) == one.packets[1:]
    assert not one.arrived(one.packets[0])
    assert one.injected(Side.INSIDE) == []


def test_earlier_ones_are_left_out_but_not_forgotten() -> None:
    one = trace((segment(), Side.INSIDE, True), (segment(), Side.OUTSIDE, False), (segment(), Side.OUTSIDE, False))
    assert one.injected(Side.OUTSIDE, 2) == one.packets[2:]
    assert one.injected(Side.OUTSIDE, 3) == []


def test_a_latecomer_for_who_had_the_address_before_is_not_injected() -> None:
    stranger = V4._replace(dst=address_bytes("203.0.113.65"))
    one = trace((segment(), Side.INSIDE, True), (segment(2, flow=stranger.reversed()), Side.INSIDE, False))
    assert one.injected(Side.INSIDE) == []
    one = trace((segment(), Side.INSIDE, True), (segment(2, flow=V4.reversed()), Side.INSIDE, False))
    assert one.injected(Side.INSIDE) == one.packets[1:]


@pytest.mark.parametrize("flow", [V4, V6])
def test_packets_age_as_routers_age_them(flow: FiveTuple) -> None:
    aged = age(segment(ttl=17, flow=flow), 16)
    assert aged is not None
    packet = parse_packet(aged)
    assert isinstance(packet, Packet)
    assert packet.ttl == 1
    assert checksum_ok(packet)
    assert packet.version == 6 or internet_checksum(aged[:20]) == 0
    assert age(segment(ttl=16, flow=flow), 16) is None
