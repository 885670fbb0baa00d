"""DNS messages over UDP and TCP: against dnslib and scapy, odd ones, broken ones."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from dnslib import DNSHeader, DNSLabel, DNSQuestion, DNSRecord
from flow_kit import CAPTURES, TO_CLIENT, TO_SERVER, Event, captured_flows, cut_events, play
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRROPT, dnsqtypes

from gfwemu.dissect.dns import DNS_TCP, DNS_UDP
from gfwemu.dissect.dns_message import QTYPES, Query, parse_query, read_header, read_question
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import Confirm, Reject, Span
from gfwemu.dissect.reader import MalformedBytes, Reader
from gfwemu.model import Transport


def wire_name(*labels: bytes) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def query(
    question: bytes = wire_name(b"www", b"example", b"com") + b"\0\1\0\1",
    *,
    ident: int = 0x1234,
    flags: int = 0x0100,
    counts: tuple[int, int, int, int] = (1, 0, 0, 0),
    tail: bytes = b"",
) -> bytes:
    return struct.pack("!HHHHHH", ident, flags, *counts) + question + tail


def over_tcp(*messages: bytes) -> bytes:
    return b"".join(struct.pack("!H", len(message)) + message for message in messages)


def udp_facts(payload: bytes) -> dict[str, object]:
    played = play(DNS_UDP, [(TO_SERVER, payload)])
    assert played.kind == "confirm", played.reason
    assert not played.final
    (facts,) = played.facts
    return facts


def udp_reason(payload: bytes) -> str:
    outcome = DNS_UDP.open(DissectOptions()).feed(TO_SERVER, payload)
    assert isinstance(outcome, Reject), outcome
    return outcome.reason


def test_a_query_over_udp() -> None:
    outcome = DNS_UDP.open(DissectOptions()).feed(TO_SERVER, query())
    assert isinstance(outcome, Confirm)
    assert not outcome.final
    (message,) = outcome.messages
    assert dict(message.facts) == {
        "dns.qname": "www.example.com",
        "dns.qtype": "A",
        "dns.qclass": "IN",
        "dns.rd": True,
        "dns.response": False,
        "dns.questions": 1,
    }
    assert set(message.facts) == {field.name for field in DNS_UDP.fields}
    assert message.spans == {"dns.qname": Span(12, 17), "dns.qtype": Span(29, 2), "dns.qclass": Span(31, 2)}


@pytest.mark.parametrize(
    ("number", "text"), [(1, "A"), (28, "AAAA"), (65, "HTTPS"), (255, "ANY"), (65280, "TYPE65280"), (0, "TYPE0")]
)
def test_record_types(number: int, text: str) -> None:
    assert udp_facts(query(wire_name(b"a") + struct.pack("!HH", number, 1)))["dns.qtype"] == text


@pytest.mark.parametrize(("number", "text"), [(1, "IN"), (3, "CH"), (255, "ANY"), (7, "CLASS7"), (0, "CLASS0")])
def test_classes(number: int, text: str) -> None:
    assert udp_facts(query(wire_name(b"a") + struct.pack("!HH", 1, number)))["dns.qclass"] == text


def test_types_are_named_as_scapy_names_them() -> None:
    differing = {name: dnsqtypes[number] for number, name in QTYPES.items() if dnsqtypes.get(number, name) != name}
    assert differing == {"ANY": "ALL"}


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ((), "."),
        ((b"WWW", b"ExAmPlE", b"CoM"), "www.example.com"),
        ((b"xn--fiqs8s",), "xn--fiqs8s"),
        ((b"_dns", b"a*b"), "_dns.a*b"),
        ((b"a.b", b"c"), "a\\.b.c"),
        ((b"a\\b",), "a\\\\b"),
        ((b"\0\x07 \x7f\xff",), "\\000\\007\\032\\127\\255"),
        ((b"a" * 63,), "a" * 63),
        ((b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 61), ".".join(("a" * 63, "b" * 63, "c" * 63, "d" * 61))),
    ],
)
def test_names(labels: tuple[bytes, ...], text: str) -> None:
    assert udp_facts(query(wire_name(*labels) + b"\0\1\0\1"))["dns.qname"] == text


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "DNS message: 2 bytes wanted, 0 left"),
        (query()[:11], "DNS message: 2 bytes wanted, 1 left"),
        (query(flags=0x2800), "DNS header: not a standard query"),
        (query(flags=0x0140), "DNS header: not a standard query"),
        (query(flags=0x0103), "DNS header: a query with a response code"),
        (query(counts=(0, 0, 0, 0)), "DNS header: implausible number of questions"),
        (query(counts=(256, 0, 0, 0)), "DNS header: implausible number of questions"),
        (query(counts=(1, 256, 0, 0)), "DNS header: implausible number of records"),
        (query(counts=(1, 0, 0, 256)), "DNS header: implausible number of records"),
        (query(b"\x40a\0\0\1\0\1"), "DNS name: reserved label type"),
        (query(b"\x80a\0\0\1\0\1"), "DNS name: reserved label type"),
        (query(wire_name(b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 62) + b"\0\1\0\1"), "DNS name: longer than 255 bytes"),
        (query(b"\xc0\x0c\0\1\0\1"), "DNS name: pointers go in circles"),
        (query(b"\xff\xff\0\1\0\1"), "DNS name: 1 bytes wanted, -16365 left"),
        (query(b"\x05abc"), "DNS message: 5 bytes wanted, 3 left"),
        (query(wire_name(b"a") + b"\0\1\0"), "DNS message: 2 bytes wanted, 1 left"),
    ],
)
def test_what_is_rejected(payload: bytes, reason: str) -> None:
    assert udp_reason(payload) == reason


def test_a_label_that_points_backward_into_the_header() -> None:
    assert udp_facts(query(b"\xc0\x00\0\1\0\1", ident=0x0161, flags=0x0000))["dns.qname"] == "a"


def test_a_name_that_points_forward_behind_the_question() -> None:
    """Compression with a raised QDCOUNT, an evasion that resolvers answer (Harrity et al., CCS 2022)."""
    question = b"\x03www\xc0\x18\0\1\0\1"
    tail = b"\0\0" + wire_name(b"example", b"com")
    assert len(query(question)) == 22
    facts = udp_facts(query(question, counts=(2, 0, 0, 0), tail=tail))
    assert facts["dns.qname"] == "www.example.com"
    assert facts["dns.questions"] == 2


def test_of_several_questions_the_first_counts() -> None:
    second = wire_name(b"other", b"example") + b"\0\1\0\1"
    facts = udp_facts(query(counts=(2, 0, 0, 0), tail=second))
    assert (facts["dns.qname"], facts["dns.questions"]) == ("www.example.com", 2)


@pytest.mark.parametrize("counts", [(2, 0, 0, 0), (1, 32, 0, 0), (1, 0, 0, 1)])
def test_counts_that_lie_are_read(counts: tuple[int, int, int, int]) -> None:
    assert udp_facts(query(counts=counts))["dns.qname"] == "www.example.com"


def test_edns_is_passed_over() -> None:
    payload = bytes(DNS(rd=0, qd=DNSQR(qname="www.example.com", qtype="AAAA"), ar=DNSRROPT(rclass=1232)))
    facts = udp_facts(payload)
    assert (facts["dns.qname"], facts["dns.qtype"], facts["dns.rd"]) == ("www.example.com", "AAAA", False)


def test_every_message_of_a_udp_flow_is_told() -> None:
    answer = bytes(DNSRecord.parse(query()).reply().pack())
    played = play(DNS_UDP, [(TO_SERVER, query()), (TO_CLIENT, answer), (TO_SERVER, b"junk"), (TO_SERVER, query())])
    assert played.kind == "confirm"
    assert not played.final
    assert [facts["dns.response"] for facts in played.facts] == [False, True, False]


def test_several_messages_on_a_connection() -> None:
    one, two = query(), query(wire_name(b"two", b"example") + b"\0\x1c\0\1")
    played = play(DNS_TCP, [(TO_SERVER, over_tcp(one, two)), (TO_CLIENT, over_tcp(query(flags=0x8180)))])
    assert [facts["dns.qname"] for facts in played.facts] == ["www.example.com", "two.example", "www.example.com"]
    assert [message.spans["dns.qname"] for message in played.messages] == [Span(14, 17), Span(49, 13), Span(14, 17)]
    assert not played.final


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"\0\x10" + query(), "DNS over TCP: implausible length"),
        (b"\xff\xff" + query(flags=0x2800), "DNS header: not a standard query"),
        (b"\xff\xff\x12\x34\x28\x00", "DNS header: not a standard query"),
        (b"\0\x11" + query(), "DNS message: 7 bytes wanted, 0 left"),
        (b"GET / HTTP/1.1\r\n", "DNS header: not a standard query"),
    ],
)
def test_what_is_rejected_on_a_connection(stream: bytes, reason: str) -> None:
    played = play(DNS_TCP, [(TO_SERVER, stream)])
    assert (played.kind, played.reason) == ("reject", reason)


def test_the_stream_limit_bounds_a_message() -> None:
    session = DNS_TCP.open(DissectOptions(stream_limit=512))
    assert session.feed(TO_SERVER, over_tcp(query(tail=bytes(512)))) == Reject("DNS over TCP: implausible length")


def test_a_broken_message_behind_a_query_ends_the_session() -> None:
    events = [(TO_SERVER, over_tcp(query()) + b"\0\x01")]
    for pieces in (events, cut_events(events, [35])):
        played = play(DNS_TCP, pieces)
        assert (played.kind, played.final, len(played.messages)) == ("confirm", True, 1)


def test_dig() -> None:
    udp, tcp = [], []
    for flow in captured_flows(CAPTURES / "dns-dig.pcap"):
        entry, found = (DNS_UDP, udp) if flow.transport == Transport.UDP else (DNS_TCP, tcp)
        found += [
            (facts["dns.qname"], facts["dns.qtype"], facts["dns.qclass"], facts["dns.rd"], facts["dns.response"])
            for facts in play(entry, flow.events).facts
        ]
    assert [entry for entry in udp if not entry[4]] == [
        ("www.example.test", "A", "IN", True, False),
        ("www.example.test", "AAAA", "IN", False, False),
        ("www.example.test", "HTTPS", "IN", True, False),
        ("_xmpp._tcp.example.test", "TYPE65280", "CH", True, False),
    ]
    # dnslib answers one query a connection, and dig asks again.
    assert [entry for entry in tcp if not entry[4]] == [
        ("one.example.test", "A", "IN", True, False),
        ("two.example.test", "AAAA", "IN", True, False),
        ("two.example.test", "AAAA", "IN", True, False),
    ]
    assert [entry[:4] for entry in udp if entry[4]] == [entry[:4] for entry in udp if not entry[4]]


printable_labels = st.lists(
    st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", min_size=1, max_size=30), max_size=8
)


@given(printable_labels, st.integers(0, 65535), st.integers(0, 65535), st.booleans(), st.integers(0, 65535))
def test_as_dnslib_reads_it(labels: list[str], qtype: int, qclass: int, rd: bool, ident: int) -> None:
    question = DNSQuestion(DNSLabel([label.encode() for label in labels]), qtype, qclass)
    payload = bytes(DNSRecord(DNSHeader(id=ident, rd=rd), q=question).pack())
    found = parse_query(payload)
    assert found.id == ident
    assert found.flags_rd == rd
    assert found.qname == (".".join(labels).lower() or ".")
    assert (found.qtype_number, found.qclass) == (qtype, qclass)
    assert found.question_bytes == payload[12:]


@given(st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=6))
def test_escapes_can_be_read_back(labels: list[bytes]) -> None:
    text = parse_query(query(wire_name(*labels) + b"\0\1\0\1")).qname
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text
    read, label, position = [], b"", 0
    while position < len(text):
        character = text[position]
        if character == ".":
            read.append(label)
            label = b""
        elif character == "\\":
            digits = text[position + 1 : position + 4]
            label += bytes([int(digits)]) if digits.isdigit() else digits[:1].encode()
            position += 3 if digits.isdigit() else 1
        else:
            label += character.encode()
        position += 1
    assert [*read, label] == [label.lower() for label in labels]


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_are_malformed(payload: bytes) -> None:
    try:
        question = parse_query(payload).question_bytes
    except MalformedBytes:
        assert play(DNS_UDP, [(TO_SERVER, payload)]).kind == "reject"
    else:
        assert payload[12:].startswith(question)


def read_with_care(payload: bytes) -> Query:
    reader, options = Reader(payload, "DNS message"), DissectOptions()
    return read_question(reader, payload, read_header(reader, options), options)


def outcome_of(read: Callable[[bytes], Query], payload: bytes) -> Query | str:
    try:
        return read(payload)
    except MalformedBytes as malformed:
        return str(malformed)


labels_of_any_kind = st.one_of(
    st.binary(min_size=1, max_size=70), st.from_regex(rb"[a-zA-Z0-9_.-]{1,70}", fullmatch=True)
)
counts_of_any_kind = st.sampled_from([0, 1, 2, 255, 256])


@given(
    st.lists(labels_of_any_kind, max_size=6),
    st.tuples(counts_of_any_kind, counts_of_any_kind, counts_of_any_kind, counts_of_any_kind),
    st.sampled_from([0x0000, 0x0100, 0x8180, 0x8183, 0x0003, 0x0140, 0x2800]),
    st.sampled_from([b"\0\0\1\0\1", b"\0\0\1", b"\xc0\x0c\0\1\0\1", b"\0\xff\xff\x12\x34rest"]),
)
def test_usual_messages_are_read_as_with_care(
    labels: list[bytes], counts: tuple[int, int, int, int], flags: int, rest: bytes
) -> None:
    question = b"".join(bytes([len(label)]) + label for label in labels) + rest
    payload = query(question, flags=flags, counts=counts)
    assert outcome_of(parse_query, payload) == outcome_of(read_with_care, payload)


@given(st.binary(max_size=40), st.integers(0, 40))
def test_question_of_any_bytes(question: bytes, cut: int) -> None:
    events: list[Event] = [(TO_SERVER, query(question)[: 12 + cut])]
    assert play(DNS_UDP, events).kind in ("confirm", "reject")
