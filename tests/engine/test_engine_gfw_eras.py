"""Published insertion and evasion results against the censor's TCP of their time, as rules/tcp/ has it.

Every row says which share of the tries evades. The sources measured paths, too: what middleboxes did to a packet (their
"failure 1"), and the few per cent in which the censor was overloaded, are not the censor's reading and not here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from rulekit import dns_query, rule, ruleset
from tcp_kit import (
    ACK,
    FAR,
    FIN,
    HELLO,
    JUNK,
    MD5,
    PSH,
    RST,
    RULES,
    SYN,
    URG,
    Script,
    Step,
    Wire,
    above_a_hole,
    after_handshake,
    another_syn_first,
    begins_at_the_isn,
    caught,
    cut_short,
    in_handshake,
    insert,
    old_timestamp,
    only_data,
    overlap,
    plain,
    split,
    without_syn,
    without_synack,
)

from gfwemu.engine.records import RuleHit
from gfwemu.flow.fragments import Complete, Fragments
from gfwemu.flow.options import Resync
from gfwemu.model import FiveTuple, address_bytes
from gfwemu.rules.compiled import EngineOptions, RuleSet
from gfwemu.rules.load import load_rules
from gfwemu.testing.playbook import Playbook
from gfwemu.wire.build import build_ip, build_tcp, build_udp
from gfwemu.wire.packet import Packet
from gfwemu.wire.parse import parse_packet

HOUR = 3600.0
TRIES = 400


@functools.cache
def options(era: str) -> EngineOptions:
    return load_rules([RULES / f"gfw-{era}.yaml"]).options


@functools.cache
def censor(era: str) -> RuleSet:
    base = options(era)
    return ruleset(
        rule("alert", {"tls.sni": "www.blocked.example"}), tcp=base.tcp, fragments=base.fragments, flows=base.flows
    )


def resync_desync(wire: Wire) -> Iterator[Step]:
    """TCB creation + resync/desync (IMC 2017, section 7): a SYN before and after the handshake, a desync packet."""
    yield wire.client(SYN, ahead=5000)
    yield from wire.handshake()
    yield wire.client(SYN, ahead=6000)
    yield wire.client(PSH | ACK, b"x", ahead=FAR)
    yield from wire.request()


def reversal(wire: Wire) -> Iterator[Step]:
    """TCB reversal (IMC 2017, section 5.2): the client's SYN/ACK comes first."""
    yield build_tcp(wire.tuple, seq=5, ack=5, flags=SYN | ACK)
    yield from plain(wire)


def teardown_and_desync(flags: int) -> Script:
    """Improved teardown (IMC 2017, section 7): where the reset makes it resynchronise, then to the desync packet."""
    return after_handshake(lambda wire: wire.client(flags), lambda wire: wire.client(PSH | ACK, b"x", ahead=FAR))


def after_another_syn(*between: bytes | str) -> Script:
    """A SYN puts the censor into resynchronisation; then what may or may not end it, with numbers that are wrong."""

    def script(wire: Wire) -> Iterator[Step]:
        yield from wire.handshake()
        yield wire.client(SYN, ahead=-1)
        for what in between:
            if what == "data":
                yield wire.client(PSH | ACK, b"x", ahead=FAR)
            elif what == "ack":
                yield wire.client(ACK, ahead=FAR)
            elif what == "server data":
                yield wire.server(PSH | ACK, b"x")
            elif what == "synack":
                yield wire.server(SYN | ACK, ack=7)
        yield from wire.request()

    return script


def small_first_segment_opening(wire: Wire) -> Iterator[Step]:
    """In SYN_RECV: the ACK of the handshake is the first segment itself."""
    yield wire.syn()
    yield wire.syn_ack()
    yield from wire.request(8)


def fin_after_data(wire: Wire) -> Iterator[Step]:
    yield from wire.handshake()
    yield wire.to_server(HELLO[:40])
    yield wire.client(FIN | ACK, ahead=0)
    yield wire.to_server(HELLO[40:])


def server_first(*packets: str) -> Script:
    """Strategies of the server (SIGCOMM 2020, Table 1): in the order in which they cross the censor."""

    def script(wire: Wire) -> Iterator[Step]:
        yield wire.syn()
        for what in packets:
            if what == "rst":
                yield wire.server(RST)
            elif what == "load":
                yield wire.server(SYN, b"x" * 10)
            elif what == "syn":
                yield wire.server(SYN)
                yield wire.client(SYN | ACK, ahead=-1)
                wire.server_seq += 1
                yield wire.server(ACK)
            elif what == "corrupt":
                yield wire.server(SYN | ACK, ack=77_000)
            elif what == "synack":
                yield wire.syn_ack()
        if "corrupt" in packets:
            # RFC 9293 section 3.10.7.3: the client's answer to it, which comes after all that the server sent at once.
            yield build_tcp(wire.tuple, seq=77_000, ack=0, flags=RST)
        yield wire.to_server()
        yield from wire.request()

    return script


def ten_bytes_a_segment(wire: Wire) -> Iterator[Step]:
    """TCP Window Reduction (SIGCOMM 2020): the server's window makes the client send ten bytes at a time."""
    yield from split(*range(10, len(HELLO) - 8, 10))(wire)


SR, E = in_handshake, after_handshake

ROWS: list[tuple[str, str, Script, float]] = [
    # era, source and row, conversation, the share that evades
    ("2013", "TCP1: another SYN first", another_syn_first, 1),
    ("2013", "TCP1: a bare SYN suffices", without_synack, 0),
    ("2013", "a SYN/ACK does not", without_syn, 1),
    ("2013", "TCP5: the original segment", overlap(40, 50, junk_first=True), 1),
    ("2013", "TCP5: the original segment, read", overlap(40, 50, junk_first=False), 0),
    ("2013", "TCP5: a later left-equal segment", overlap(40, 40, junk_first=False), 1),
    ("2013", "TCP5: a later left-equal segment, read", overlap(40, 40, junk_first=True), 0),
    ("2013", "TCP6b: bare FIN", insert(FIN, b""), 1),
    ("2013", "RST", insert(RST, b""), 1),
    ("2013", "TCP9: 1 KB above a hole", above_a_hole(1023), 0),
    ("2013", "TCP9: more than 1 KB above a hole", above_a_hole(1024), 1),
    ("2013", "TCP10: a hole for 59 minutes", above_a_hole(100, 0.98 * HOUR), 0),
    ("2013", "TCP10: a hole for 91 minutes", above_a_hole(100, 1.52 * HOUR), 1),
    ("2013", "TCP10: silent for nearly 10 hours", after_handshake(lambda _: 9.9 * HOUR), 0),
    ("2013", "TCP10: silent for more than 10 hours", after_handshake(lambda _: 10.1 * HOUR), 1),
    ("2017", "Table 1: no strategy", plain, 0),
    ("2017", "Table 1: TCB creation with SYN", another_syn_first, 0),
    ("2017", "Table 1: out-of-order overlap", overlap(40, 40, junk_first=False), 0.37),
    ("2017", "Table 1: in-order overlap, TTL", insert(), 1),
    ("2017", "Table 1: in-order overlap, bad ACK", insert(ack=900_000), 1),
    ("2017", "Table 1: in-order overlap, bad checksum", insert(checksum=1), 1),
    ("2017", "Table 1: in-order overlap, no flag", insert(0), 0.5),
    ("2017", "Table 1: PSH alone is a flag", insert(PSH), 1),
    ("2017", "Table 1: RST, TTL", insert(RST, b""), 0.76),
    ("2017", "Table 1: RST, bad checksum", insert(RST, b"", checksum=1), 0.76),
    ("2017", "Table 1: RST/ACK, TTL", insert(RST | ACK, b""), 0.76),
    ("2017", "Table 1: FIN, TTL", insert(FIN, b""), 0.11),
    ("2017", "Table 1: FIN, bad checksum", insert(FIN, b"", checksum=1), 0.11),
    ("2017", "Table 4: improved teardown", teardown_and_desync(RST), 1),
    ("2017", "Table 4: improved in-order overlap, MD5", insert(options=MD5), 1),
    ("2017", "Table 4: TCB creation + resync/desync", resync_desync, 1),
    ("2017", "Table 4: TCB reversal", reversal, 1),
    ("2017", "NB1: a SYN/ACK suffices", without_syn, 0),
    ("2017", "NB1: a SYN suffices", without_synack, 0),
    ("2017", "NB2: multiple SYN, then data out of window", after_another_syn("data"), 1),
    ("2017", "NB2: a SYN/ACK ends it, too", after_another_syn("synack"), 1),
    ("2017", "NB2: a bare ACK does not count", after_another_syn("ack"), 0),
    ("2017", "NB2: data of the server do not count", after_another_syn("server data"), 0),
    (
        "2017",
        "NB2: multiple SYN/ACK",
        E(lambda wire: wire.server(SYN | ACK), lambda wire: wire.client(PSH | ACK, b"x", ahead=FAR)),
        1,
    ),
    (
        "2017",
        "NB2: SYN/ACK with a wrong ack",
        lambda wire: [
            wire.syn(),
            wire.server(SYN | ACK, ack=7),
            wire.client(PSH | ACK, b"x", ahead=FAR),
            *wire.request(),
        ],
        1,
    ),
    ("2017", "NB2: data out of window alone", insert(payload=b"x", ahead=FAR), 0),
    ("2017", "NB3: RST between SYN/ACK and ACK", SR(lambda wire: wire.client(RST)), 0.5),
    ("2017", "Table 3: IP total length beyond the packet", cut_short, 1),
    ("2017", "Table 3: TCP header length below 20", insert(data_offset=4), 1),
    ("2017", "Table 3: bad checksum", insert(checksum=1), 1),
    ("2017", "Table 3: RST/ACK with wrong ack in SYN_RECV", SR(lambda wire: wire.client(RST | ACK, ack=7)), 0.5),
    ("2017", "Table 3: ACK with wrong ack", insert(ack=7), 1),
    ("2017", "Table 3: unsolicited MD5", insert(options=MD5), 1),
    ("2017", "Table 3: FIN only", insert(FIN), 1),
    ("2017", "Table 3: old timestamp", old_timestamp(PSH | ACK, JUNK), 1),
    ("2017", "a keyword in two halves", split(len(HELLO) // 2), 0),
    ("2019", "Geneva: no strategy", plain, 0),
    ("2019", "Geneva: another SYN first (3 %)", another_syn_first, 0),
    ("2019", "Geneva: RST, bad checksum", insert(RST, b"", checksum=1), 0.95),
    ("2019", "Geneva: RST/ACK, TTL", insert(RST | ACK, b""), 0.95),
    ("2019", "Geneva: RST before the handshake is complete", SR(lambda wire: wire.client(RST)), 0.5),
    ("2019", "Geneva: FRAPUN", insert(FIN | RST | ACK | PSH | URG, b"", options=MD5), 0.95),
    ("2019", "Geneva: data offset 10, duplicated", insert(payload=HELLO, data_offset=10, checksum=1), 1),
    ("2019", "Geneva: split after 8 and 4 bytes", split(8, 12), 1),
    ("2019", "Geneva: halves", split(len(HELLO) // 2), 0),
    ("2019", "SymTCP: bad RST (SR)", SR(lambda wire: wire.client(RST, checksum=1)), 0.5),
    ("2019", "SymTCP: bad RST, MD5 (E)", insert(RST, b"", options=MD5), 0.95),
    ("2019", "SymTCP: bad data, checksum (SR)", SR(lambda wire: wire.client(PSH | ACK, JUNK, checksum=1)), 1),
    ("2019", "SymTCP: bad data, MD5 (E)", insert(options=MD5), 1),
    ("2019", "SymTCP: bad data, timestamp (E)", old_timestamp(PSH | ACK, JUNK), 1),
    ("2019", "SymTCP: data without ACK (SR)", SR(lambda wire: wire.client(PSH, JUNK)), 1),
    ("2019", "SymTCP: data without ACK (E)", insert(URG | FIN), 1),
    ("2019", "SymTCP: SEQ at the ISN", begins_at_the_isn, 1),
    ("2019", "SymTCP: small segment (SR)", small_first_segment_opening, 1),
    ("2019", "SymTCP: FIN with data (SR)", SR(lambda wire: wire.client(FIN, b"x", ahead=FAR)), 1),
    ("2019", "SymTCP: FIN without data", insert(FIN | ACK, b""), 0),
    ("2019", "SymTCP: FIN after data", fin_after_data, 1),
    ("2019", "SymTCP: bad FIN/ACK data", insert(FIN | ACK, b"x", ahead=FAR, checksum=1), 1),
    ("2019", "SymTCP: FIN/ACK data with a bad ack", insert(FIN | ACK, b"x", ahead=FAR, ack=900_000), 1),
    ("2019", "SymTCP: out-of-window SYN with data", SR(lambda wire: wire.client(SYN, b"x", ahead=FAR)), 1),
    ("2019", "SymTCP: retransmitted SYN with data", SR(lambda wire: wire.client(SYN, JUNK, ahead=-1)), 1),
    ("2019", "SymTCP: SYN without data (SR)", SR(lambda wire: wire.client(SYN, ahead=FAR)), 0),
    ("2019", "SymTCP: RST with a bad timestamp", old_timestamp(RST, b""), 0.95),
    ("2019", "SymTCP: RST/ACK with a bad ack (SR)", SR(lambda wire: wire.client(RST | ACK, ack=7)), 0.5),
    ("2019", "SIGCOMM 2020: simultaneous open + RST", server_first("rst", "syn"), 0.5),
    ("2019", "SIGCOMM 2020: simultaneous open + load", server_first("load", "syn"), 0.5),
    ("2019", "SIGCOMM 2020: simultaneous open alone", server_first("syn"), 0),
    ("2019", "SIGCOMM 2020: RST + induced RST", server_first("rst", "corrupt", "synack"), 0.5),
    ("2019", "SIGCOMM 2020: corrupt ack", server_first("corrupt", "synack"), 0),
    ("2019", "SIGCOMM 2020: window reduction", ten_bytes_a_segment, 0),
    ("2019", "SIGCOMM 2020: the client's RST, of the server", after_handshake(lambda wire: wire.server(RST)), 0),
    (
        "2019",
        "SIGCOMM 2020: the client's RST/ACK, of the server",
        after_handshake(lambda wire: wire.server(RST | ACK)),
        0,
    ),
    ("2019", "SIGCOMM 2020: the client's FIN, of the server", after_handshake(lambda wire: wire.server(FIN | ACK)), 0),
    ("2024", "Table 3: the SYN is needed", only_data, 1),
    ("2024", "Table 3: a SYN/ACK is no SYN", without_syn, 1),
    ("2024", "Table 3: the SYN/ACK is not needed", without_synack, 0),
    ("2024", "Table 3: segments are put together", split(8, 12, 60), 0),
    ("2024", "Table 3: TCP options", lambda wire: [*wire.handshake(), wire.client(PSH | ACK, HELLO, stamp=1)], 0),
]


@pytest.mark.parametrize(
    ("era", "script", "share"), [(row[0], *row[2:]) for row in ROWS], ids=[" ".join(row[:2]) for row in ROWS]
)
def test_a_conversation_evades_as_often_as_published(era: str, script: Script, share: float) -> None:
    tries = TRIES if 0 < share < 1 else 8
    evaded = sum(not caught(censor(era), script, seed=seed) for seed in range(tries)) / tries
    # Four standard deviations: with 400 tries 0.76 is told from 0.67, and 0.11 from 0.05.
    assert abs(evaded - share) <= 4 * (share * (1 - share) / tries) ** 0.5


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("another SYN first", another_syn_first),
        ("bare FIN", insert(FIN, b"")),
        ("SYN/ACK alone", without_syn),
        ("RST", insert(RST, b"")),
        ("reversal", reversal),
    ],
)
def test_eras_differ(name: str, script: Script) -> None:
    """Where the sources contradict each other, the date decides."""
    evades = {
        era: sum(not caught(censor(era), script, seed=seed) for seed in range(40)) for era in ("2013", "2017", "2019")
    }
    expected = {
        "another SYN first": (40, 0, 0),
        "bare FIN": (40, 4, 0),
        "SYN/ACK alone": (40, 0, 0),
        "RST": (40, 30, 38),
        "reversal": (0, 40, 40),
    }[name]
    assert all(
        abs(found - wanted) <= (8 if 0 < wanted < 40 else 0)
        for found, wanted in zip(evades.values(), expected, strict=True)
    )


def test_a_corrupt_ack_deceives_the_box_of_ftp_alone() -> None:
    """Bock et al., SIGCOMM 2020: only there a SYN/ACK with a wrong ack is a trigger."""
    base = censor("2019")
    tcp = dataclasses.replace(
        base.options.tcp, resync={**base.options.tcp.resync, "synack_wrong_ack": Resync(lock_on=("client_packet",))}
    )
    ftp = dataclasses.replace(base, options=dataclasses.replace(base.options, tcp=tcp))
    script = server_first("corrupt", "synack")
    assert caught(base, script)
    assert not caught(ftp, script)


# -- IP fragments (Khattak et al., FOCI 2013, IP2) -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "later", "wins"),
    [
        ((2, 4), (2, 4), "original"),
        ((2, 4), (1, 4), "original"),
        ((2, 4), (2, 5), "original"),
        ((2, 4), (1, 3), "original"),
        ((2, 4), (3, 5), "original"),
        ((1, 5), (2, 4), "original"),
        ((2, 4), (1, 5), "later"),
    ],
)
def test_the_original_fragment_wins_unless_the_later_one_is_wider_on_both_sides(
    original: tuple[int, int], later: tuple[int, int], wins: str
) -> None:
    """Pieces as (from, to) in units of 8 bytes."""
    source, destination = address_bytes("192.0.2.1"), address_bytes("203.0.113.1")

    def piece(left: int, right: int, mark: bytes, *, more: bool = True) -> Packet:
        raw = bytearray(build_ip(source, destination, 17, mark * (8 * (right - left)), ip_id=9))
        raw[6:8] = ((0x2000 if more else 0) | left).to_bytes(2, "big")
        packet = parse_packet(bytes(raw))
        assert isinstance(packet, Packet)
        return packet

    fragments = Fragments(options("2013").fragments)
    answers = [fragments.add(1, piece(*original, b"o"), 0.0), fragments.add(2, piece(*later, b"l"), 0.0)]
    low, high = min(original[0], later[0]), max(original[1], later[1])
    answers += [fragments.add(3, piece(0, low, b"-"), 0.0), fragments.add(4, piece(high, 8, b"-", more=False), 0.0)]
    (whole,) = [answer for answer in answers if answer is not None]
    assert isinstance(whole, Complete)
    left, right = max(original[0], later[0]) * 8, min(original[1], later[1]) * 8
    assert set(whole.payload[left:right]) == set(b"o" if wins == "original" else b"l")
    assert len(whole.payload) == 64
    assert set(whole.payload) <= set(b"-ol")


# -- Henan (Wu et al., S&P 2025, Table 3) and ESNI (Bock et al., 2020) ---------------------------------------------


def boxed(tmp_path: Path, tcp: str) -> RuleSet:
    """A national box with the knobs of 2024, and another one beside it."""
    (tmp_path / "r.yaml").write_text(
        f"""
version: 1
include: [{RULES / "gfw-2024.yaml"}]
boxes: {{other: {{tcp: {tcp}}}}}
rules:
  - {{name: national, match: {{tls.sni: www.blocked.example}}, action: alert}}
  - {{name: other, box: other, match: {{tls.sni: www.blocked.example}}, action: alert}}
"""
    )
    return load_rules([tmp_path / "r.yaml"])


def fired(rules: RuleSet, script: Script) -> set[str]:
    book, wire = Playbook(rules), Wire()
    records = [record for step in script(wire) if isinstance(step, bytes) for record in book.packet(step).told(RuleHit)]
    return {record.rule for record in records if isinstance(record, RuleHit)}


HENAN = "{create_on: any, handshake: none, reassembly: none, data_offset: 5, small_segments: 0}"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (plain, {"national", "other"}),
        (only_data, {"other"}),
        (split(60), {"national"}),
        (lambda wire: [*wire.handshake(), wire.client(PSH | ACK, HELLO, stamp=1)], {"national"}),
        (lambda wire: [*wire.handshake(), wire.client(PSH | ACK, HELLO, data_offset=4)], {"national"}),
    ],
    ids=["plain", "a single data packet", "segments", "options", "a wrong data offset"],
)
def test_the_provincial_box_behind_the_national_one(tmp_path: Path, script: Script, expected: set[str]) -> None:
    assert fired(boxed(tmp_path, HENAN), script) == expected


@pytest.mark.parametrize(
    ("script", "expected"),
    [(plain, {"national", "other"}), (without_synack, {"national"})],
    ids=["whole handshake", "no SYN/ACK"],
)
def test_a_box_that_wants_the_whole_handshake(tmp_path: Path, script: Script, expected: set[str]) -> None:
    assert fired(boxed(tmp_path, "{create_on: both, handshake: full}"), script) == expected


def test_other_protocols_are_not_touched_by_the_knobs_of_tcp() -> None:
    base = options("2019")
    book = Playbook(ruleset(rule("alert", {"dns.qname": "b.example"}), tcp=base.tcp))
    key = FiveTuple(17, address_bytes("192.0.2.1"), 1, address_bytes("203.0.113.1"), 53)
    assert book.packet(build_udp(key, dns_query("b.example"))).told(RuleHit)
