"""Where the censor's idea of the server's stream begins."""

from __future__ import annotations

import random

import pytest

from gfwemu.flow.options import Resync, TcpOptions, Teardown
from gfwemu.flow.tcb import Tcb
from gfwemu.model import Direction, FiveTuple, Transport, address_bytes
from gfwemu.wire.build import build_tcp
from gfwemu.wire.packet import Packet, TcpFlags
from gfwemu.wire.parse import parse_packet

FORTH = FiveTuple(Transport.TCP, address_bytes("192.0.2.1"), 1024, address_bytes("203.0.113.1"), 25)
SYN, ACK, PSH = TcpFlags.SYN, TcpFlags.ACK, TcpFlags.PSH
TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
OPENING = [(TO_SERVER, SYN, 100, 0, b""), (TO_CLIENT, SYN | ACK, 500, 101, b""), (TO_SERVER, ACK, 101, 501, b"")]

FOLLOWING = [
    TcpOptions(hole_lifetime=(60.0, 90.0)),
    TcpOptions(teardown={"rst": Teardown(sequence="exact")}),
    TcpOptions(resync={"rst": Resync()}),
    TcpOptions(create_on="both"),
    TcpOptions(bad_ack=0.5),
]


def read(tcb: Tcb, direction: Direction, flags: int, seq: int, ack: int, payload: bytes) -> bytes:
    way = FORTH if direction is TO_SERVER else FORTH.reversed()
    packet = parse_packet(build_tcp(way, seq=seq, ack=ack, flags=flags, payload=payload))
    assert isinstance(packet, Packet)
    return tcb.read(packet, direction)


def opened(options: TcpOptions) -> Tcb:
    tcb = Tcb(options, random.Random(1))
    for step in OPENING:
        read(tcb, *step)
    return tcb


def test_the_first_payload_of_the_client_says_where_the_server_begins() -> None:
    tcb = opened(TcpOptions())
    assert read(tcb, TO_SERVER, ACK | PSH, 101, 501, b"ask") == b"ask"
    assert read(tcb, TO_CLIENT, ACK | PSH, 503, 104, b"swer") == b""
    assert read(tcb, TO_CLIENT, ACK | PSH, 501, 104, b"an") == b"answer"


def test_a_server_that_speaks_first_begins_with_its_first_segment() -> None:
    tcb = opened(TcpOptions())
    assert read(tcb, TO_CLIENT, ACK | PSH, 503, 101, b"0 mail") == b"0 mail"
    assert read(tcb, TO_SERVER, ACK | PSH, 101, 509, b"EHLO") == b"EHLO"
    assert read(tcb, TO_CLIENT, ACK | PSH, 509, 105, b"250") == b"250"


@pytest.mark.parametrize("options", FOLLOWING, ids=["hole", "teardown", "resync", "create", "ack"])
def test_where_the_numbers_count_the_synack_says_it(options: TcpOptions) -> None:
    tcb = opened(options)
    assert read(tcb, TO_CLIENT, ACK | PSH, 503, 101, b"0 mail") == b""
    assert read(tcb, TO_CLIENT, ACK | PSH, 501, 101, b"22") == b"220 mail"
