"""How the censor reads TCP and TLS, knob by knob: what slips past one engine is caught by another, and works."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from live_kit import Client
from live_nodes import Node
from live_tcp import ACK, FIN, RST, HandTcp, Wire
from live_tls import Hello, outcome, split_record

from gfwemu.wire.build import build_ip
from gfwemu.wire.parse import parse_packet

pytestmark = pytest.mark.kernel

RULE = "rules:\n  - {name: sni, match: {tls.sni: blocked.example}, action: reset}\n"
RULES = f"version: 1\n{RULE}"
BLOCKED, INNOCENT = "www.blocked.example", "www.allowed.example"
V4, V6 = "203.0.113.10", "2001:db8:f::10"
ADDRESSES = pytest.mark.parametrize("address", [V4, V6])
DOES_NOT_ARRIVE = 3  # The TTL that ends behind the censor: access and censor take one each.

Send = Callable[[HandTcp, Hello], None]


def load(client: Client, engine: str) -> None:
    client.load(f"version: 1\nengine: {{{engine}}}\n{RULE}")


def visit(client: Client, wire: Wire, name: str, send: Send, address: str = V4, *, connect: bool = True) -> str:
    """What becomes of a hand-made connection that sends its ClientHello in that way."""
    tcp = HandTcp(wire, address, 443)
    hello = Hello(client.lab, name)

    def work() -> None:
        if connect:
            tcp.connect()
        send(tcp, hello)
        assert f"hello from {name}".encode() in hello.finish(tcp)

    try:
        return outcome(work)
    finally:
        tcp.close()


def whole(tcp: HandTcp, hello: Hello) -> None:
    tcp.send(hello.record)


def in_two(tcp: HandTcp, hello: Hello) -> None:
    tcp.send(hello.record, in_the_name(hello))


def in_two_backwards(tcp: HandTcp, hello: Hello) -> None:
    tcp.send(hello.record, in_the_name(hello), (1, 0))


def byte_by_byte(tcp: HandTcp, hello: Hello) -> None:
    tcp.send(hello.record, range(len(hello.record)))


def byte_by_byte_backwards(tcp: HandTcp, hello: Hello) -> None:
    tcp.send(hello.record, range(len(hello.record)), range(len(hello.record))[::-1])


def in_two_records(tcp: HandTcp, hello: Hello) -> None:
    tcp.send(split_record(hello.record, [at - 5 for at in in_the_name(hello)]))


def in_records_and_segments(tcp: HandTcp, hello: Hello) -> None:
    data = split_record(hello.record, range(0, len(hello.record), 40))
    tcp.send(data, range(0, len(data), 7), range((len(data) + 6) // 7)[::-1])


def in_the_name(hello: Hello) -> Iterable[int]:
    return [hello.record.index(b"ed.example") - 3]


@ADDRESSES
@pytest.mark.parametrize("send", [whole, in_two, in_two_backwards, byte_by_byte, byte_by_byte_backwards])
def test_full_reassembly_reads_every_cut_and_order(client: Client, wire: Wire, address: str, send: Send) -> None:
    load(client, "tcp: {reassembly: full}")
    assert visit(client, wire, BLOCKED, send, address) == "reset"
    assert visit(client, wire, INNOCENT, send, address) == "ok"


@pytest.mark.parametrize(
    ("engine", "send", "expected"),
    [
        ("tcp: {reassembly: none}", whole, "reset"),
        ("tcp: {reassembly: none}", in_two, "ok"),
        ("tcp: {reassembly: none}", byte_by_byte, "ok"),
        ("tcp: {reassembly: first_segment}", whole, "reset"),
        ("tcp: {reassembly: first_segment}", in_two, "ok"),
        ("tls: {record_reassembly: false}", in_two_records, "ok"),
        ("tls: {record_reassembly: false}", in_records_and_segments, "ok"),
        ("tls: {record_reassembly: true}", in_two_records, "reset"),
        ("tls: {record_reassembly: true}", in_records_and_segments, "reset"),
        ("tls: {record_reassembly: true}", whole, "reset"),
        ("tcp: {inspect: 5000}", in_two, "reset"),
        ("tcp: {inspect: 100}", in_two, "ok"),
        ("tcp: {buffer: 5000}", in_two_backwards, "reset"),
        ("tcp: {buffer: 20}", in_two_backwards, "ok"),
        ("limits: {stream: 5000B}", in_two, "reset"),
        ("limits: {stream: 50B}", in_two, "ok"),
    ],
)
def test_what_the_engine_does_not_put_together_passes_and_works(
    client: Client, wire: Wire, engine: str, send: Send, expected: str
) -> None:
    load(client, engine)
    assert visit(client, wire, BLOCKED, send) == expected
    assert visit(client, wire, INNOCENT, send) == "ok"


# Of two copies of the same bytes, the server's kernel keeps the first; the second is for the censor.
@ADDRESSES
@pytest.mark.parametrize(
    ("overlap", "name", "decoy", "expected"),
    [
        ("first", BLOCKED, INNOCENT, "reset"),
        ("last", BLOCKED, INNOCENT, "ok"),
        ("first", INNOCENT, BLOCKED, "ok"),
        ("last", INNOCENT, BLOCKED, "reset"),
    ],
)
def test_of_overlapping_segments_the_engine_takes_its_copy(
    client: Client, wire: Wire, address: str, overlap: str, name: str, decoy: str, expected: str
) -> None:
    load(client, f"tcp: {{overlap: {overlap}}}")

    def twice(tcp: HandTcp, hello: Hello) -> None:
        false = hello.record.replace(name.encode(), decoy.encode())
        tcp.put(tcp.build(hello.record[5:], offset=5))
        tcp.put(tcp.build(false[5:], offset=5))
        tcp.send(hello.record[:5])
        tcp.seq += len(hello.record) - 5

    assert visit(client, wire, name, twice, address) == expected


def inserted(flags: int, **header: int) -> Send:
    """A segment that the server never takes, then the ClientHello."""

    def send(tcp: HandTcp, hello: Hello) -> None:
        tcp.put(tcp.build(flags=flags, **header))
        tcp.send(hello.record)

    return send


def false_hello(**header: int) -> Send:
    """A ClientHello for an innocent name that the server never takes, then the real one."""

    def send(tcp: HandTcp, hello: Hello) -> None:
        tcp.put(tcp.build(hello.record.replace(BLOCKED.encode(), INNOCENT.encode()), **header))
        tcp.send(hello.record)

    return send


@ADDRESSES
@pytest.mark.parametrize(
    ("engine", "send", "expected"),
    [
        ("tcp: {teardown: [rst, fin]}", inserted(RST, ttl=DOES_NOT_ARRIVE), "ok"),
        ("tcp: {teardown: [rst]}", inserted(RST | ACK, ttl=DOES_NOT_ARRIVE), "ok"),
        ("tcp: {teardown: [fin]}", inserted(RST, ttl=DOES_NOT_ARRIVE), "reset"),
        ("tcp: {teardown: [fin]}", inserted(FIN | ACK, ttl=DOES_NOT_ARRIVE), "ok"),
        ("tcp: {teardown: [rst]}", inserted(FIN | ACK, ttl=DOES_NOT_ARRIVE), "reset"),
        ("tcp: {teardown: []}", inserted(RST, ttl=DOES_NOT_ARRIVE), "reset"),
        ("tcp: {verify_checksum: false}", inserted(RST, checksum=0xBAD), "ok"),
        ("tcp: {verify_checksum: true}", inserted(RST, checksum=0xBAD), "reset"),
        ("tcp: {verify_checksum: false}", false_hello(ttl=DOES_NOT_ARRIVE), "ok"),
        ("tcp: {verify_checksum: false}", false_hello(checksum=0xBAD), "ok"),
        ("tcp: {verify_checksum: true}", false_hello(checksum=0xBAD), "reset"),
        ("tcp: {verify_checksum: true}", whole, "reset"),
    ],
)
def test_inserted_packets_blind_the_engines_that_believe_them(
    client: Client, wire: Wire, address: str, engine: str, send: Send, expected: str
) -> None:
    load(client, engine)
    assert visit(client, wire, BLOCKED, send, address) == expected


@ADDRESSES
@pytest.mark.parametrize(
    ("create_on", "expected"), [("syn", "ok"), ("synack", "reset"), ("both", "reset"), ("any", "reset")]
)
def test_what_creates_the_control_block(
    client: Client, internet_node: Node, wire: Wire, address: str, create_on: str, expected: str
) -> None:
    """The SYN comes in fragments, which this censor does not put together; the server's answer is whole."""
    load(client, f"tcp: {{create_on: {create_on}}}, ip: {{fragments: {{reassemble: false}}}}")

    def send(tcp: HandTcp, hello: Hello) -> None:
        tcp.connect(lambda syn: fragments(syn, 24))
        # Two packets of a connection that the kernel begins to track in the middle may collide, and one is lost.
        assert arrived.wait(lambda: [s for s in arrived.segments(sport=tcp.tuple.sport) if s.packet.flags == ACK])
        tcp.send(hello.record)

    with internet_node.sniffer() as arrived:
        assert visit(client, wire, BLOCKED, send, address, connect=False) == expected
    assert visit(client, wire, BLOCKED, whole, address) == "reset"


def fragments(data: bytes, size: int) -> list[bytes]:
    packet = parse_packet(data)
    content = packet.raw[packet.transport_offset :]  # type: ignore[union-attr]
    return [
        build_ip(
            packet.src,  # type: ignore[union-attr]
            packet.dst,  # type: ignore[union-attr]
            6,
            content[start : start + size],
            ip_id=0x4242,
            fragment_offset=start,
            more_fragments=start + size < len(content),
        )
        for start in range(0, len(content), size)
    ]


def test_a_flow_that_began_unseen_is_read_by_an_engine_that_takes_up_any(client: Client, wire: Wire) -> None:
    """The rules that were in force when it opened read no TCP."""
    for create_on, expected in (("syn", "ok"), ("any", "reset")):
        client.load("version: 1\nrules: [{name: other, match: {quic.sni: blocked.example}, action: drop}]\n")

        def send(tcp: HandTcp, hello: Hello, create_on: str = create_on) -> None:
            tcp.connect()
            load(client, f"tcp: {{create_on: {create_on}}}")
            tcp.send(hello.record)

        assert visit(client, wire, BLOCKED, send, connect=False) == expected
