"""DNS as injector 3 of China's firewall reads it (Fan et al., "Wallbleed", NDSS 2025)."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from flow_kit import TO_CLIENT, TO_SERVER, cut_events, play
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.dissect.dns import DNS_TCP, DNS_UDP, DnsUdpSession
from gfwemu.dissect.dns_answer import build_answer
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import Confirm, Message, NeedMore, Outcome, Reject

FLAT = DissectOptions(dns_header="ignored", dns_names="flat")


def wire_name(*labels: bytes) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def query(
    name: bytes, *, flags: int = 0x0100, counts: tuple[int, ...] = (1, 0, 0, 0), tail: bytes = b"\0\1\0\1"
) -> bytes:
    return struct.pack("!HHHHHH", 0xABCD, flags, *counts) + name + tail


def dissect(datagram: bytes, options: DissectOptions = FLAT) -> Outcome:
    return DnsUdpSession(options).feed(TO_SERVER, datagram)


def read(datagram: bytes, options: DissectOptions = FLAT) -> Message:
    outcome = dissect(datagram, options)
    assert isinstance(outcome, Confirm), outcome
    return outcome.messages[0]


def name_of(datagram: bytes, options: DissectOptions = FLAT) -> object:
    return read(datagram, options).facts["dns.qname"]


def test_an_ordinary_query_reads_as_by_the_rfc() -> None:
    datagram = query(wire_name(b"WWW", b"blocked", b"example"), tail=b"\0\x1c\0\1")
    assert dict(read(datagram).facts) == dict(read(datagram, DissectOptions()).facts)
    assert read(datagram).query == read(datagram, DissectOptions()).query


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (wire_name(b"www.blocked", b"example"), "www.blocked.example"),
        (wire_name(b"blocked.example\0anything"), "blocked.example"),
        (wire_name(b"blocked", b"exam\0ple", b"com"), "blocked.exam"),
        (wire_name(b"a\\b", b"\xe4 "), "a\\b.\\228\\032"),
        (wire_name(b"x" * 100, b"blocked.example"), "x" * 100 + ".blocked.example"),
        (wire_name(b"x" * 120, b"blocked.example"), "x" * 120 + ".bloc"),
        (wire_name(b"x" * 200), "x" * 125),
        (b"\x07blocked\xc0\x0c" + b"\0" * 4, "blocked.\\012"),
        (b"\x07blocked\x50exam", "blocked.exam"),
        (b"\0", "."),
    ],
)
def test_labels_become_one_string(name: bytes, text: str) -> None:
    assert name_of(query(name)) == text


def test_the_buffer_is_a_knob() -> None:
    options = DissectOptions(dns_names="flat", dns_name_buffer=8)
    assert name_of(query(wire_name(b"blocked", b"example")), options) == "blocked"
    assert name_of(query(wire_name(b"blocked", b"example")), replace(options, dns_name_buffer=12)) == "blocked.exa"


def test_where_the_buffer_is_full_the_name_ends() -> None:
    message = read(query(wire_name(b"x" * 124 + b"ab\0\x1c\0\x01")))
    assert message.facts["dns.qname"] == "x" * 124 + "a"
    assert message.facts["dns.qtype"] == f"TYPE{0x6200}"
    exact = read(query(wire_name(b"x" * 125), tail=b"\0\x1c\0\1"))
    assert (exact.facts["dns.qtype"], exact.facts["dns.qclass"]) == ("AAAA", "IN")


def test_a_label_beyond_the_message_is_followed_by_zeros() -> None:
    message = read(query(b"\x07blocked\x07example\x40", tail=b""))
    assert message.facts["dns.qname"] == "blocked.example."
    assert (message.facts["dns.qtype"], message.facts["dns.qclass"]) == ("TYPE0", "CLASS0")
    assert message.query is not None
    question = b"\x07blocked\x07example\x40" + bytes(64 + 1 + 4)
    assert message.query.question_bytes == question
    answer = build_answer(message.query, [bytes(4)], ttl=60)
    assert answer[12 : 12 + len(question)] == question


@pytest.mark.parametrize("flags", [0, 0x0100, 0x7AFF])
@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (2, 0, 0, 0), (65_535, 9, 65_535, 1)])
def test_the_header_is_not_looked_at(flags: int, counts: tuple[int, ...]) -> None:
    message = read(query(wire_name(b"blocked", b"example"), flags=flags, counts=counts))
    assert message.facts["dns.qname"] == "blocked.example"
    assert message.facts["dns.questions"] == counts[0]


def test_with_a_plausible_header_counts_still_decide() -> None:
    options = DissectOptions(dns_names="flat")
    assert isinstance(dissect(query(wire_name(b"a"), counts=(0, 0, 0, 0)), options), Reject)
    assert isinstance(dissect(query(wire_name(b"a"), flags=0x0800), options), Reject)


def test_responses_and_short_datagrams_are_not_queries() -> None:
    assert dissect(query(wire_name(b"a"), flags=0x8180)) == Reject("DNS header: a response")
    assert dissect(bytes(11)) == Reject("DNS message: 6 bytes wanted, 5 left")
    assert name_of(bytes(12)) == "."


def test_a_connection_is_read_alike_however_it_is_cut() -> None:
    message = query(b"\x07blocked\xc0\x0c", tail=b"")
    stream = len(message).to_bytes(2, "big") + message
    whole = play(DNS_TCP, [(TO_SERVER, stream * 2)], FLAT)
    assert [message.facts["dns.qname"] for message in whole.messages] == ["blocked.\\012"] * 2
    for place in range(len(stream)):
        assert play(DNS_TCP, cut_events([(TO_SERVER, stream * 2)], [place, len(stream)]), FLAT) == whole


@given(st.binary(max_size=300), st.integers(2, 300), st.sampled_from(["plausible", "ignored"]))
def test_any_datagram_has_one_of_three_outcomes(data: bytes, buffer: int, header: str) -> None:
    options = DissectOptions(dns_names="flat", dns_header=header, dns_name_buffer=buffer)  # type: ignore[arg-type]
    outcome = dissect(data, options)
    assert isinstance(outcome, NeedMore | Reject | Confirm)
    if isinstance(outcome, Confirm):
        message = outcome.messages[0]
        assert message.query is not None
        # A label of 255 bytes behind the last byte that fits.
        assert len(message.query.question_bytes) <= buffer + 5 + len(data)
        assert len(str(message.facts["dns.qname"])) <= max(1, 4 * (buffer - 1))


@given(st.lists(st.binary(max_size=60), max_size=4), st.lists(st.integers(0, 200), max_size=4))
def test_any_stream_has_one_of_three_outcomes(pieces: list[bytes], cuts: list[int]) -> None:
    events = [((TO_SERVER, TO_CLIENT)[number % 2], piece) for number, piece in enumerate(pieces)]
    assert play(DNS_TCP, cut_events(events, cuts), FLAT).kind in ("need_more", "reject", "confirm")
    assert play(DNS_UDP, events, FLAT).kind in ("need_more", "reject", "confirm")
