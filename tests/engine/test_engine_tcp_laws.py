"""Laws whatever the knobs of `tcp:`: one verdict a packet, chance from the seed, nothing left unseen that counts."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rulekit import client_hello, rule, ruleset
from tcp_kit import MD5
from test_engine_laws import SCRIPTS, SMALL, rules

from gfwemu.engine.records import RuleHit
from gfwemu.flow.options import LockOn, Resync, ResyncTrigger, TcpOptions, Teardown, TeardownFlag
from gfwemu.model import FiveTuple, address_bytes
from gfwemu.rules.compiled import CompiledRule, RuleSet
from gfwemu.rules.needs import find_needs
from gfwemu.testing.playbook import Playbook
from gfwemu.wire.build import build_tcp
from gfwemu.wire.packet import Packet
from gfwemu.wire.parse import parse_packet

CHANCES = st.sampled_from([0.0, 0.5, 1.0])
TEARDOWNS = st.builds(
    Teardown,
    probability=CHANCES,
    when=st.sampled_from(["always", "opening", "established", "before_data", "after_data"]),
    by=st.sampled_from(["any", "client", "server"]),
    sequence=st.sampled_from(["any", "in_window", "exact"]),
)
RESYNCS = st.builds(
    Resync,
    probability=CHANCES,
    lock_on=st.lists(st.sampled_from(get_args(LockOn)), min_size=1, max_size=2).map(tuple),
)
KNOBS: dict[str, st.SearchStrategy[Any]] = {
    "create_on": st.sampled_from(["syn", "synack", "both", "any"]),
    "handshake": st.sampled_from(["none", "syn", "full"]),
    "established_by": st.sampled_from(["ack", "valid_ack"]),
    "reassembly": st.sampled_from(["none", "first_segment", "full"]),
    "overlap": st.sampled_from(["first", "last", "left_equal_last", {"first": 0.5, "last": 0.5}]),
    "verify_checksum": st.booleans(),
    "verify_ip_checksum": st.booleans(),
    "teardown": st.dictionaries(st.sampled_from(get_args(TeardownFlag)), TEARDOWNS),
    "resync": st.dictionaries(st.sampled_from(get_args(ResyncTrigger)), RESYNCS),
    "simultaneous_open": st.sampled_from(["advance", "off_by_one"]),
    "md5_option": CHANCES,
    "old_timestamp": CHANCES,
    "bad_ack": CHANCES,
    "data_without_ack": CHANCES,
    "no_flags": CHANCES,
    "odd_flags": CHANCES,
    "bad_ip_length": CHANCES,
    "bad_data_offset": st.sampled_from(["accept", "ignore", "read_header_as_payload"]),
    "data_offset": st.sampled_from([None, 5]),
    "seq_before_isn": st.sampled_from(["trim", "ignore"]),
    "small_segments": st.sampled_from([0, 8]),
    "small_segments_when": st.sampled_from(["opening", "always"]),
    "out_of_window": st.sampled_from(["ignore", "follow"]),
    "buffer": st.sampled_from([20, 65_536]),
    "on_overflow": st.sampled_from(["trim", "forget"]),
    "hole_lifetime": st.sampled_from([None, (1.0, 2.0)]),
    "inspect": st.sampled_from([40, 262_144]),
}
TCP = st.builds(TcpOptions, **KNOBS)

HELLO = client_hello("www.blocked.example")
CUTS = [HELLO, HELLO[:8], HELLO[8:], HELLO[:60], HELLO[60:], b"\0" * 60, b"\0"]
CLIENT, SERVER = address_bytes("192.0.2.10"), address_bytes("203.0.113.80")
FORWARD = FiveTuple(6, CLIENT, 40_000, SERVER, 443)
CLIENT_ISN, SERVER_ISN = 1000, 5000


@st.composite
def segments(draw: st.DrawFn) -> bytes:
    """Packets of one connection, most of them near to what a real one holds."""
    from_client = draw(st.booleans())
    isn, other = (CLIENT_ISN, SERVER_ISN) if from_client else (SERVER_ISN, CLIENT_ISN)
    flags = draw(st.sampled_from([0x02, 0x12, 0x10, 0x10, 0x18, 0x18, 0x04, 0x14, 0x01, 0x11, 0x00, 0x08, 0x3F]))
    return build_tcp(
        FORWARD if from_client else FORWARD.reversed(),
        seq=isn + (0 if flags & 2 else draw(st.sampled_from([0, 1, 1, 1, 1, 9, 61, 100_000]))),
        ack=other + draw(st.sampled_from([1, 1, 1, 7])),
        flags=flags,
        payload=draw(st.sampled_from(CUTS)) if flags & 8 or draw(st.integers(0, 9)) == 0 else b"",
        options=draw(st.sampled_from([b"", b"", MD5, bytes((1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0))])),
        data_offset=draw(st.sampled_from([None, None, None, 4, 15])),
        checksum=draw(st.sampled_from([None, None, None, 1])),
    )


def made(flags: int, payload: bytes = b"", *, server: bool = False, after: int = 0) -> bytes:
    isn, other = (SERVER_ISN, CLIENT_ISN) if server else (CLIENT_ISN, SERVER_ISN)
    seq = isn + (0 if flags & 2 else 1 + after)
    return build_tcp(FORWARD.reversed() if server else FORWARD, seq=seq, ack=other + 1, flags=flags, payload=payload)


PLAIN = [
    made(0x12, server=True),
    made(0x10),
    made(0x18, HELLO[:60]),
    made(0x18, HELLO[60:], after=60),
    made(0x18, b"220 ready", server=True),
    made(0x14),
    made(0x11),
    made(0x14, server=True, after=9),
    made(0x04, server=True),
]
"""What a connection consists of, by both ends, in some order."""

TALKS = st.one_of(st.lists(segments(), max_size=20), st.permutations(PLAIN))


def test_the_strategies_know_every_knob() -> None:
    assert set(KNOBS) == set(TcpOptions.__dataclass_fields__)


@settings(max_examples=200)
@given(st.lists(rules(), max_size=3), TCP, SCRIPTS, st.lists(segments(), max_size=20))
def test_every_packet_gets_one_verdict_whatever_the_knobs(
    some: list[CompiledRule], tcp: TcpOptions, script: list[tuple[bytes, float]], more: list[bytes]
) -> None:
    book = Playbook(ruleset(*some, tcp=tcp, **SMALL))
    for data, after in [*script, *((data, 0.1) for data in more)]:
        book.packet(data, after=after)
    book.stop()
    assert book.engine.held_count == 0


def hits(rule_set: RuleSet, script: list[bytes], seed: int) -> list[bytes]:
    """The packets at which a rule fires."""
    book = Playbook(rule_set, seed=seed)
    return [data for data in script if book.packet(data).told(RuleHit)]


SNI = rule("alert", {"tls.sni": "www.blocked.example"})


@settings(max_examples=200)
@given(TCP, st.lists(segments(), max_size=20), st.integers(0, 3))
def test_the_same_seed_reads_the_same(tcp: TcpOptions, script: list[bytes], seed: int) -> None:
    assert hits(ruleset(SNI, tcp=tcp), script, seed) == hits(ruleset(SNI, tcp=tcp), script, seed)


def sure(tcp: TcpOptions) -> bool:
    """Whether nothing is left to chance, so that a packet that is not seen throws no dice."""
    chances = [tcp.md5_option, tcp.old_timestamp, tcp.bad_ack, tcp.data_without_ack, tcp.no_flags, tcp.odd_flags]
    chances += [tcp.bad_ip_length, *(entry.probability for entry in tcp.teardown.values())]
    return isinstance(tcp.overlap, str) and 0.5 not in [*chances, *(entry.probability for entry in tcp.resync.values())]


LIGHT = {
    **{name: st.just(getattr(TcpOptions(), name)) for name in ("established_by", "resync", "bad_ack", "old_timestamp")},
}


def unseen_changes_nothing(tcp: TcpOptions, script: list[bytes]) -> bool:
    """Whether a censor that gets only what the kernel plan says it needs fires at the same packets."""
    rule_set = ruleset(SNI, tcp=tcp)
    needs = find_needs(rule_set)
    acknowledged = False

    def needed(data: bytes) -> bool:
        nonlocal acknowledged
        packet = parse_packet(data)
        assert isinstance(packet, Packet)
        first = not acknowledged and packet.src == CLIENT and packet.flags & 0x16 == 0x10
        acknowledged = acknowledged or first
        if needs.every_packet or first:
            return True
        if packet.flags & 0x07:
            return packet.flags & 0x17 != 0x12 or bool(needs.handshake)
        return bool(packet.payload) and (packet.src == CLIENT or bool(needs.server_payload))

    return hits(rule_set, script, 0) == hits(rule_set, [data for data in script if needed(data)], 0)


@settings(max_examples=150)
@given(st.builds(TcpOptions, **{**KNOBS, **LIGHT}).filter(sure), TALKS)
def test_what_the_kernel_plan_leaves_out_changes_nothing_that_is_read(tcp: TcpOptions, script: list[bytes]) -> None:
    assert unseen_changes_nothing(tcp, [made(0x02), *script])


@pytest.mark.parametrize(
    ("entry", "script"),
    [
        (Teardown(when="opening"), [made(0x10), made(0x04), made(0x18, HELLO)]),
        (Teardown(when="established"), [made(0x10), made(0x04), made(0x18, HELLO)]),
        (
            Teardown(sequence="exact"),
            [
                made(0x12, server=True),
                made(0x18, b"hi", server=True),
                made(0x04, server=True, after=2),
                made(0x18, HELLO),
            ],
        ),
    ],
)
def test_a_teardown_that_depends_on_bare_packets_gets_them(entry: Teardown, script: list[bytes]) -> None:
    tcp = TcpOptions(create_on="both", teardown={"rst": entry})
    assert unseen_changes_nothing(tcp, [made(0x02), *script])
