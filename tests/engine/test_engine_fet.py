"""Fully encrypted traffic: one rule is Algorithm 1 of Wu et al. (USENIX Security 2023), at its edges, on its data."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.model import Side, Verdict
from gfwemu.rules.catalogue import find_profile
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.load import load_rules
from gfwemu.testing.playbook import Playbook, TcpTalk, UdpTalk

DATA = Path(__file__).parents[3] / "shared" / "facts" / "data" / "gfw_fet_vectors.tsv"
CLIENT, SERVER = "192.0.2.10", "203.0.113.7"


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> RuleSet:
    """The shipped rule, but certain."""
    text = (find_profile("china-fet").parent / "china" / "fully-encrypted.yaml").read_text()
    certain = text.replace("probability: 0.263", "probability: 1")
    assert certain != text
    path = tmp_path_factory.mktemp("fet") / "certain.yaml"
    path.write_text(certain)
    return load_rules([path])


def blocked(rules: RuleSet, *payloads: bytes, answered: bool = True, opened_by: Side = Side.INSIDE) -> bool:
    """Whether the client's packets vanish once it has sent these."""
    book = Playbook(rules)
    talk = TcpTalk(CLIENT, SERVER)
    syn, syn_ack, ack = talk.handshake()
    book.packet(syn, came_from=opened_by)
    if answered:
        book.packet(syn_ack, came_from=opened_by.opposite)
    book.packet(ack, came_from=opened_by)
    for payload in payloads:
        assert book.packet(talk.to_server(payload), came_from=opened_by).verdict is Verdict.ACCEPT
    return book.packet(talk.to_server(b"more"), came_from=opened_by).verdict is Verdict.DROP


def with_bits(count: int, length: int) -> bytes:
    """That many one-bits in bytes that are never printable: each is 0x80 to 0xff, or below 0x20."""
    payload = bytearray(length)
    bits = [(index, bit) for bit in (7, 0, 1, 2, 3, 4, 5, 6) for index in range(length)]
    for index, bit in bits[:count]:
        payload[index] |= 1 << bit
    return bytes(payload)


def printables(count: int, length: int, *, start: int = 1) -> bytes:
    """So many printable bytes in a row of four bits each, between others of four bits."""
    assert start + count <= length
    return b"\x87" * start + b"K" * count + b"\x87" * (length - start - count)


RANDOM = bytes(random.Random(1).choices([byte for byte in range(128, 256) if byte.bit_count() == 4], k=50))
ALTERNATING = b"\x87K" * 30

EDGES: list[tuple[str, bytes, bool]] = [
    ("3.40 bits a byte", with_bits(170, 50), False),
    ("3.42 bits a byte", with_bits(171, 50), True),
    ("4.58 bits a byte", with_bits(229, 50), True),
    ("4.60 bits a byte", with_bits(230, 50), False),
    ("half of it printable", ALTERNATING, True),
    ("more than half of it printable", ALTERNATING + b"K", False),
    ("20 printable bytes in a row", printables(20, 60), True),
    ("21 printable bytes in a row", printables(21, 60), False),
    ("5 printable bytes first", printables(5, 60, start=0), True),
    ("6 printable bytes first", printables(6, 60, start=0), False),
    ("handshake record", b"\x16\x03\x00" + b"\x87" * 50, False),
    ("application data record", b"\x17\x03\x09" + b"\x87" * 50, False),
    ("third byte 0a", b"\x16\x03\x0a" + b"\x87" * 50, True),
    ("alert record", b"\x15\x03\x03" + b"\x87" * 50, True),
    ("second byte 02", b"\x16\x02\x03" + b"\x87" * 50, True),
    ("16 03 alone", b"\x16\x03\xff", True),
    ("GET", b"GET " + b"\x87" * 50, False),
    ("PUT", b"PUT " + b"\x87" * 50, False),
    ("POST", b"POST " + b"\x87" * 50, False),
    ("HEAD", b"HEAD " + b"\x87" * 50, False),
    ("get in small letters", b"get " + b"\x87" * 50, True),
    ("no blank behind GET", b"GET\x87" + b"\x87" * 50, True),
    ("DELETE's first letters", b"DELE" + b"\x87" * 50, True),
    ("one byte", b"\x87", True),
]


@pytest.mark.parametrize(("payload", "expected"), [edge[1:] for edge in EDGES], ids=[edge[0] for edge in EDGES])
def test_edges_of_the_exemptions(rules: RuleSet, payload: bytes, expected: bool) -> None:
    assert blocked(rules, payload) == expected


def exempt(payload: bytes) -> bool:
    """Algorithm 1, written out."""
    bits = sum(byte.bit_count() for byte in payload)
    printable = [0x20 <= byte <= 0x7E for byte in payload]
    run = longest = 0
    for one in printable:
        run = run + 1 if one else 0
        longest = max(longest, run)
    return (
        10 * bits <= 34 * len(payload)
        or 10 * bits >= 46 * len(payload)
        or (len(payload) >= 6 and all(printable[:6]))
        or 2 * sum(printable) > len(payload)
        or longest > 20
        or (payload[0] in (0x16, 0x17) and payload[1:2] == b"\x03" and payload[2:3] in {bytes([n]) for n in range(10)})
        or payload.startswith((b"GET ", b"PUT ", b"POST ", b"HEAD "))
    )


@given(
    st.sampled_from([b"", b"\x16\x03\x01", b"\x17\x03", b"GET ", b"POST", b"printa", b"\x87"]),
    st.binary(max_size=60) | st.text(max_size=60).map(str.encode),
    st.binary(max_size=20),
)
def test_the_rule_is_the_algorithm(rules: RuleSet, start: bytes, middle: bytes, end: bytes) -> None:
    payload = start + middle + end
    if payload:
        assert blocked(rules, payload) == (not exempt(payload))


def test_only_the_clients_first_data_counts(rules: RuleSet) -> None:
    assert blocked(rules, RANDOM)
    assert not blocked(rules, b"GET / HTTP/1.1\r\n\r\n", RANDOM)
    assert not blocked(rules, RANDOM, answered=False), "no server answered"
    assert not blocked(rules, RANDOM, opened_by=Side.OUTSIDE)


def test_what_the_server_says_is_not_looked_at(rules: RuleSet) -> None:
    book = Playbook(rules)
    talk = TcpTalk(CLIENT, SERVER)
    for packet, side in zip(talk.handshake(), (Side.INSIDE, Side.OUTSIDE, Side.INSIDE), strict=True):
        book.packet(packet, came_from=side)
    book.packet(talk.to_client(RANDOM), came_from=Side.OUTSIDE)
    book.packet(talk.to_server(b"GET / HTTP/1.1\r\n\r\n"), came_from=Side.INSIDE)
    assert book.packet(talk.to_server(b"more"), came_from=Side.INSIDE).verdict is Verdict.ACCEPT


def test_udp_is_not_met(rules: RuleSet) -> None:
    book = Playbook(rules)
    talk = UdpTalk(CLIENT, SERVER)
    book.packet(talk.to_server(b"first"), came_from=Side.INSIDE)
    book.packet(talk.to_client(b"answer"), came_from=Side.OUTSIDE)
    for _ in range(3):
        assert book.packet(talk.to_server(RANDOM), came_from=Side.INSIDE).verdict is Verdict.ACCEPT


def test_the_port_vanishes_for_three_minutes(rules: RuleSet) -> None:
    book = Playbook(rules)
    talk = TcpTalk(CLIENT, SERVER, client_port=40_000)
    for packet, side in zip(talk.handshake(), (Side.INSIDE, Side.OUTSIDE, Side.INSIDE), strict=True):
        book.packet(packet, came_from=side)
    assert book.packet(talk.to_server(RANDOM), came_from=Side.INSIDE).verdict is Verdict.ACCEPT
    same_port, other_port = (
        TcpTalk(CLIENT, SERVER, client_port=40_001),
        TcpTalk(CLIENT, SERVER, client_port=40_002, port=8443),
    )
    assert book.packet(same_port.syn(), came_from=Side.INSIDE, after=100).verdict is Verdict.DROP
    assert book.packet(other_port.syn(), came_from=Side.INSIDE).verdict is Verdict.ACCEPT
    assert book.packet(same_port.syn(), came_from=Side.INSIDE, after=79).verdict is Verdict.DROP
    assert book.packet(same_port.syn(), came_from=Side.INSIDE, after=2).verdict is Verdict.ACCEPT


def test_about_one_connection_in_four_is_met() -> None:
    shipped = load_rules([find_profile("china-fet")])
    met = 0
    for seed in range(600):
        book = Playbook(shipped, seed=seed)
        talk = TcpTalk(CLIENT, SERVER)
        for packet, side in zip(talk.handshake(), (Side.INSIDE, Side.OUTSIDE, Side.INSIDE), strict=True):
            book.packet(packet, came_from=side)
        book.packet(talk.to_server(RANDOM), came_from=Side.INSIDE)
        met += book.packet(talk.to_server(b"more"), came_from=Side.INSIDE).verdict is Verdict.DROP
    assert 0.263 - 3 * 0.018 < met / 600 < 0.263 + 3 * 0.018


@pytest.mark.skipif(not DATA.exists(), reason="needs the published payloads beside the checkout")
def test_the_published_payloads_come_out_as_they_did(rules: RuleSet) -> None:
    with DATA.open(newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    assert len(rows) == 500
    wrong = [
        row["hex"] for row in rows if blocked(rules, bytes.fromhex(row["hex"])) != (row["blocked_by_gfw"] == "true")
    ]
    assert wrong == []
