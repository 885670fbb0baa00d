"""IP fragments before the real queue: put together, limited, overlapping, or let through unread."""

from __future__ import annotations

import pytest
from dnslib import RCODE, DNSRecord
from live_kit import Client
from live_nodes import packed
from live_tcp import HAND_V4, HAND_V6, HandTcp, Wire
from live_tls import outcome, read_until

from gfwemu.model import FiveTuple
from gfwemu.wire.build import build_ip, build_udp
from gfwemu.wire.packet import Packet
from gfwemu.wire.parse import parse_packet

pytestmark = pytest.mark.kernel

RULE = """rules:
  - {name: word, match: {http.host: blocked.example}, action: reset}
  - {name: query, match: {dns.qname: blocked.example, dns.response: false}, action: poison, with: {rcode: refused}}
"""
RULES = f"version: 1\n{RULE}"
V4, V6 = "203.0.113.10", "2001:db8:f::10"
ADDRESSES = pytest.mark.parametrize("address", [V4, V6])
RESOLVERS = pytest.mark.parametrize("address", ["198.51.100.53", "2001:db8:53::53"])
BLOCKED, INNOCENT = "www.blocked.example", "www.allowed.example"
SHORT = 0.7

_identifications = iter(range(1, 0xFFFF))


def load(client: Client, knobs: str) -> None:
    client.load(f"version: 1\nengine: {{ip: {{fragments: {{{knobs}}}}}}}\n{RULE}")


def cut(data: bytes, size: int, *, decoy: bytes | None = None) -> list[bytes]:
    """A packet in fragments of that size; with a decoy, each but the first once more with the decoy's content."""
    identification = next(_identifications)

    def pieces(whole: bytes) -> list[bytes]:
        packet = parse_packet(whole)
        assert isinstance(packet, Packet)
        content = packet.raw[packet.transport_offset :]
        return [
            build_ip(
                packet.src,
                packet.dst,
                packet.proto,
                content[start : start + size],
                ip_id=identification,
                fragment_offset=start,
                more_fragments=start + size < len(content),
            )
            for start in range(0, len(content), size)
        ]

    made = pieces(data)
    if decoy is None:
        return made
    # The last comes at the end, so that the datagram is not whole before every copy is there.
    return [made[0], *(copy for pair in zip(made[1:-1], pieces(decoy)[1:-1], strict=True) for copy in pair), made[-1]]


def request(name: str) -> bytes:
    # The name lies in a fragment of its own: behind 20 bytes of TCP and 60 of path.
    return f"GET /{'x' * 60} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\nX-Padding: {'y' * 60}\r\n\r\n".encode()


def fetch(wire: Wire, address: str, name: str, size: int, *, decoy: str = "", timeout: float = 5.0) -> str:
    tcp = HandTcp(wire, address, 80, timeout=timeout)

    def work() -> None:
        tcp.connect()
        false = tcp.build(request(decoy)) if decoy else None
        for fragment in cut(tcp.build(request(name)), size, decoy=false):
            tcp.put(fragment)
        tcp.seq += len(request(name))
        read_until(tcp, f"hello from {name}".encode())

    try:
        return outcome(work)
    finally:
        tcp.close()


@ADDRESSES
def test_fragments_are_put_together_and_go_on_as_they_came(client: Client, wire: Wire, address: str) -> None:
    load(client, "reassemble: true")
    for size in (24, 40, 104):
        assert fetch(wire, address, BLOCKED, size) == "reset"
        assert fetch(wire, address, INNOCENT, size) == "ok"


@ADDRESSES
def test_a_censor_that_does_not_reassemble_is_blind(client: Client, wire: Wire, address: str) -> None:
    load(client, "reassemble: false")
    assert fetch(wire, address, BLOCKED, 40) == "ok"
    assert fetch(wire, address, BLOCKED, 1400) == "reset"


@ADDRESSES
def test_more_fragments_than_the_limit_are_dropped(client: Client, wire: Wire, address: str) -> None:
    load(client, "limit: 4")
    length = 20 + len(request(INNOCENT))
    assert fetch(wire, address, INNOCENT, (length // 4 + 8) // 8 * 8) == "ok"
    assert fetch(wire, address, INNOCENT, (length // 5 + 8) // 8 * 8, timeout=SHORT) == "timeout"


# Of two copies of one fragment, Linux keeps the first: the second is for the censor.
@ADDRESSES
@pytest.mark.parametrize(
    ("on_overlap", "name", "decoy", "expected"),
    [
        ("first", BLOCKED, INNOCENT, "reset"),
        ("last", BLOCKED, INNOCENT, "ok"),
        ("first", INNOCENT, BLOCKED, "ok"),
        ("last", INNOCENT, BLOCKED, "reset"),
        ("drop", INNOCENT, INNOCENT, "timeout"),
    ],
)
def test_overlapping_fragments(
    client: Client, wire: Wire, address: str, on_overlap: str, name: str, decoy: str, expected: str
) -> None:
    load(client, f"on_overlap: {on_overlap}")
    assert fetch(wire, address, name, 32, decoy=decoy, timeout=SHORT if expected == "timeout" else 5.0) == expected


def ask(wire: Wire, address: str, name: str, *, pause: float = 0.0, patience: float = 5.0) -> int | None:
    """The response code that comes for a query in fragments, None where none comes. `pause`: before the last."""
    source = HAND_V6 if ":" in address else HAND_V4
    key = FiveTuple(17, packed(source), 30_000 + next(_identifications), packed(address), 53)
    *first, last = cut(build_udp(key, bytes(DNSRecord.question(name).pack())), 16)
    with wire.sniffer() as sniffer:

        def answers() -> list[bytes]:
            return [seen.packet.payload for seen in sniffer.look() if seen.packet.five_tuple == key.reversed()]

        for fragment in first:
            wire.send(fragment)
        assert not sniffer.wait(answers, pause)
        wire.send(last)
        found = sniffer.wait(answers, patience)
    return int(DNSRecord.parse(found[0]).header.rcode) if found else None


@RESOLVERS
def test_datagrams_in_fragments(client: Client, wire: Wire, address: str) -> None:
    load(client, "reassemble: true")
    assert ask(wire, address, BLOCKED) == RCODE.REFUSED
    assert ask(wire, address, INNOCENT) == RCODE.NOERROR
    load(client, "reassemble: false")
    assert ask(wire, address, BLOCKED) == RCODE.NOERROR


def test_fragments_that_wait_too_long_are_dropped(client: Client, wire: Wire) -> None:
    load(client, "timeout: 300ms")
    assert ask(wire, "198.51.100.53", INNOCENT, pause=0.6, patience=SHORT) is None
    load(client, "timeout: 10s")
    assert ask(wire, "198.51.100.53", INNOCENT, pause=0.6) == RCODE.NOERROR
