"""A capture of ordinary traffic: DNS, then TLS, HTTP and unknown TCP with downloads of many sizes, QUIC-like UDP."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from itertools import chain, count, islice
from pathlib import Path

from benchmarks.workload import allowed_name, client_hello
from gfwemu.model import FiveTuple, Transport
from gfwemu.wire.build import build_tcp, build_udp
from gfwemu.wire.packet import TcpFlags

# pcap (draft-ietf-opsawg-pcap): version 2.4, microseconds, raw IP packets (LINKTYPE_RAW).
_PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)
_START = 1_700_000_000
_STEP_MICROSECONDS = 100
_SEGMENT = 1400
_SYN, _ACK, _PSH, _FIN = TcpFlags.SYN, TcpFlags.ACK, TcpFlags.PSH, TcpFlags.FIN
_SEED = 20
_FLOW_SEGMENTS = (1, 3, 10, 30, 100)
"""Full segments from the server. A guess: most flows are short, most packets belong to long ones."""


def write_capture(path: Path, packets: int) -> None:
    """So many packets, in as many flows as that takes."""
    chooser = random.Random(_SEED)
    hellos = [client_hello(allowed_name(number)) for number in range(50)]
    flows = chain.from_iterable(_visit(number, chooser, hellos) for number in count())
    with path.open("wb") as file:
        file.write(_PCAP_HEADER)
        for number, data in enumerate(islice(flows, packets)):
            seconds, rest = divmod(number * _STEP_MICROSECONDS, 1_000_000)
            file.write(struct.pack("<IIII", _START + seconds, rest, len(data), len(data)) + data)


def _visit(number: int, chooser: random.Random, hellos: list[bytes]) -> Iterator[bytes]:
    """A name is looked up, and its server is talked to."""
    client = bytes([192, 0, 2, 10 + number % 90])
    server = bytes([203, 0, 113, 1 + number % 250])
    name = allowed_name(number)
    port = 20_000 + number % 40_000
    yield from _lookup(FiveTuple(Transport.UDP, client, port, bytes([198, 51, 100, 53]), 53), number, name, server)
    segments = chooser.choice(_FLOW_SEGMENTS)
    if number % 10 == 9:
        yield from _datagrams(FiveTuple(Transport.UDP, client, port, server, 40_000), segments, chooser)
        return
    kind = number % 10
    if kind < 7:
        request, server_port = hellos[number % len(hellos)], 443
    elif kind < 8:
        request, server_port = f"GET /{number} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode(), 80
    else:
        request, server_port = b"\x00\x01" + chooser.randbytes(200), 5222
    yield from _connection(FiveTuple(Transport.TCP, client, port, server, server_port), request, segments, chooser)


def _lookup(forth: FiveTuple, number: int, name: str, address: bytes) -> Iterator[bytes]:
    """RFC 1035 section 4.1."""
    question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0\0\x01\0\x01"
    query_id = number & 0xFFFF
    yield build_udp(forth, struct.pack("!6H", query_id, 0x0100, 1, 0, 0, 0) + question)
    answer = b"\xc0\x0c\0\x01\0\x01" + struct.pack("!IH", 300, 4) + address
    yield build_udp(forth.reversed(), struct.pack("!6H", query_id, 0x8180, 1, 1, 0, 0) + question + answer)


def _datagrams(forth: FiveTuple, exchanges: int, chooser: random.Random) -> Iterator[bytes]:
    for _ in range(exchanges):
        yield build_udp(forth, b"\x80\x60" + chooser.randbytes(180))
        yield build_udp(forth.reversed(), b"\x80\x60" + chooser.randbytes(180))


def _connection(forth: FiveTuple, request: bytes, segments: int, chooser: random.Random) -> Iterator[bytes]:
    back = forth.reversed()
    ours, theirs = chooser.getrandbits(32), chooser.getrandbits(32)
    yield build_tcp(forth, seq=ours, ack=0, flags=_SYN)
    yield build_tcp(back, seq=theirs, ack=ours + 1, flags=_SYN | _ACK)
    ours, theirs = ours + 1, theirs + 1
    yield build_tcp(forth, seq=ours, ack=theirs, flags=_ACK)
    yield build_tcp(forth, seq=ours, ack=theirs, flags=_ACK | _PSH, payload=request)
    ours += len(request)
    for segment in range(segments):
        yield build_tcp(back, seq=theirs, ack=ours, flags=_ACK, payload=chooser.randbytes(_SEGMENT))
        theirs += _SEGMENT
        if segment % 2:
            yield build_tcp(forth, seq=ours, ack=theirs, flags=_ACK)
    yield build_tcp(forth, seq=ours, ack=theirs, flags=_FIN | _ACK)
    yield build_tcp(back, seq=theirs, ack=ours + 1, flags=_FIN | _ACK)
    yield build_tcp(forth, seq=ours + 1, ack=theirs + 1, flags=_ACK)
