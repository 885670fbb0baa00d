"""What must not change an answer: how a stream is cut, and whether the kernel answers for decided flows."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_model import KernelModel, Outcome
from rulekit import client_hello, dns_query, rule, ruleset
from test_engine_laws import SCRIPTS, rules

from gfwemu.engine.engine import Engine
from gfwemu.engine.records import FlowEnded, RuleHit
from gfwemu.flow.options import FlowOptions, TcpOptions
from gfwemu.model import Verdict
from gfwemu.rules.compiled import CompiledRule, RuleSet
from gfwemu.testing.playbook import Playbook, TcpTalk, UdpTalk

QUERY = dns_query("b.example")
REQUEST = b"GET /?q=word HTTP/1.1\r\nHost: www.blocked.example\r\n\r\n"
STREAMS = {
    "tls": client_hello("www.blocked.example"),
    "innocent": client_hello("www.allowed.example"),
    "http": REQUEST + REQUEST.replace(b"word", b"news"),
    "dns": len(QUERY).to_bytes(2, "big") + QUERY,
    "unknown": b"\x8f" * 90,
    "empty": b"",
}
DECIDERS = [
    rule("alert", {"tls.sni": "www.allowed.example"}, name="notice"),
    rule("drop", {"tls.sni": "www.blocked.example"}, name="sni"),
    rule("drop", {"http.path": "/?q=news"}, name="second-request", direction="to_client"),
    rule("drop", {"dns.qname": "b.example"}, name="name"),
    rule("drop", {"protocol": "unknown"}, name="unknown", direction="to_server"),
]


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[tuple[int, int]]:
    """Pieces that cover a stream of that length, perhaps some twice or overlapping, in any order."""
    inside = draw(st.sets(st.integers(1, max(1, length - 1)), max_size=8))
    points = sorted({0, length} | {point for point in inside if point < length})
    pieces = list(itertools.pairwise(points))
    pieces += draw(st.lists(st.sampled_from(pieces), max_size=3)) if pieces else []
    for start in draw(st.lists(st.integers(0, length), max_size=3)):
        pieces.append((start, min(length, start + draw(st.integers(1, 600)))))
    return draw(st.permutations([piece for piece in pieces if piece[0] < piece[1]]))


def outcome(stream: bytes, pieces: list[tuple[int, int]], inspect: int = 65_536) -> Any:
    """Which rules fired on what, and what becomes of the flow."""
    book = Playbook(ruleset(*DECIDERS, tcp=TcpOptions(reassembly="full", inspect=inspect)))
    talk = TcpTalk()
    for packet in talk.handshake():
        book.packet(packet)
    base, found = talk.client_seq, []
    for start, end in pieces:
        reaction = book.packet(talk.to_server(stream[start:end], seq=base + start))
        found += [
            (hit.rule, [(one.field, one.value, one.entry, one.offset, one.length, one.excerpt) for one in hit.evidence])
            for hit in reaction.told(RuleHit)
            if isinstance(hit, RuleHit)
        ]
    talk.client_seq = base + len(stream)
    fates = [book.packet(packet).verdict for packet in (talk.to_server(), talk.to_client(b"x"), talk.to_client())]
    (ended,) = book.stop().told(FlowEnded)
    assert isinstance(ended, FlowEnded)
    return found, fates, ended.rules, dict(ended.facts), ended.flow.protocol


@settings(max_examples=400)
@given(st.data(), st.sampled_from(sorted(STREAMS)), st.sampled_from([65_536, 0, 20, 80, 517]))
def test_cutting_a_stream_differently_never_changes_the_outcome(data: st.DataObject, name: str, inspect: int) -> None:
    stream = STREAMS[name]
    whole = [(0, len(stream))] if stream else []
    assert outcome(stream, data.draw(cuts(len(stream))), inspect) == outcome(stream, whole, inspect)


def test_the_streams_of_that_law_come_to_different_outcomes() -> None:
    seen = {name: outcome(stream, [(0, len(stream))]) for name, stream in STREAMS.items()}
    fired = {name: [rule_name for rule_name, _ in result[0]] for name, result in seen.items()}
    assert fired == {
        "tls": ["sni"],
        "innocent": ["notice"],
        "http": ["second-request"],
        "dns": ["name"],
        "unknown": ["unknown"],
        "empty": [],
    }


# -- offload -------------------------------------------------------------------------------------------------------


LASTING = FlowOptions(tcp_opening=1e6, tcp_established=1e6, tcp_closing=1e6, udp=1e6, other=1e6)


def played(script: list[tuple[bytes, float]], rule_set: RuleSet, later: RuleSet | None, offload: bool) -> Outcome:
    model = KernelModel(Engine(rule_set, seed=4, offload=offload))
    for number, (data, after) in enumerate(script):
        if later is not None and number == len(script) // 2:
            model.replace(later)
        model.packet(number, data, after)
    return model.stop()


@settings(max_examples=400)
@given(st.lists(rules(), min_size=1, max_size=4), SCRIPTS, st.booleans())
def test_the_kernel_gives_every_packet_the_engines_own_verdict(
    some: list[CompiledRule], script: list[tuple[bytes, float]], reload: bool
) -> None:
    """Residual blocks and what they have the kernel watch included: verdicts, rewritten bytes and injections agree."""
    rule_set = ruleset(*some, flows=LASTING)
    # Counts go on at zero for a flow that the kernel answered for: rules on counts are left out of the reload.
    countless = [one for one in some if not any(condition.field.startswith("count") for condition in one.conditions)]
    later = ruleset(*countless, flows=LASTING) if reload and "freeze" not in str(countless) else None
    with_offload = played(script, rule_set, later, offload=True)
    without = played(script, rule_set, later, offload=False)
    assert with_offload.fates == without.fates
    assert with_offload.sent == without.sent


@st.composite
def blocks(draw: st.DrawFn) -> CompiledRule:
    residual = {
        "key": draw(st.sampled_from(["2tuple", "3tuple", "4tuple", "server", "server_port"])),
        "seconds": draw(st.sampled_from([1, "1-3"])),
        "refresh": draw(st.booleans()),
        "action": "drop",
        "direction": draw(st.sampled_from(["both", "to_server", "to_client"])),
        "probability": draw(st.sampled_from([1.0, {"value": 0.5, "per": "endpoints"}, 0.5])),
        "after": draw(st.sampled_from([0, 0.4])),
    }
    action, parameters = draw(st.sampled_from([("drop", {}), ("drop", {"direction": "to_server"}), ("poison", {})]))
    return rule(action, {"dns.qname": "b.example"}, residual=residual, **parameters)


ENDS = [UdpTalk(client_port=1), UdpTalk(client_port=2), UdpTalk(client_port=2, port=54), UdpTalk("192.0.2.11")]
CALLS = st.tuples(
    st.sampled_from(
        [way(payload) for talk in ENDS for way in (talk.to_server, talk.to_client) for payload in (b"x", QUERY)]
    ),
    st.sampled_from([0.0, 0.1, 0.5, 1.1]),
)


@settings(max_examples=400)
@given(blocks(), st.lists(CALLS, max_size=40))
def test_a_residual_block_calls_back_what_the_kernel_answered_for(
    block: CompiledRule, script: list[tuple[bytes, float]]
) -> None:
    rule_set = ruleset(block, flows=LASTING)
    with_offload = played(script, rule_set, None, offload=True)
    without = played(script, rule_set, None, offload=False)
    assert with_offload.fates == without.fates
    assert with_offload.sent == without.sent


def test_the_kernel_model_answers_for_decided_flows_and_not_during_a_block() -> None:
    """The law above is not empty: offloads happen, and a residual block calls an offloaded flow back."""
    book = ruleset(
        rule("drop", {"tls.sni": "www.blocked.example"}, residual={"key": "2tuple", "seconds": 5, "action": "drop"})
    )
    model = KernelModel(Engine(book, seed=0))
    free, guilty = TcpTalk(client_port=1), TcpTalk(client_port=2)
    packets = [*free.handshake(), free.to_server(STREAMS["innocent"]), free.to_client(b"a")]
    packets += [*guilty.handshake(), guilty.to_server(STREAMS["tls"]), free.to_client(b"b")]
    for number, data in enumerate(packets):
        model.packet(number, data, 0.0)
    model.packet(100, free.to_client(b"c"), 5.1)
    model.packet(101, free.to_client(b"d"), 0.0)
    fates = {number: fate[0] for number, fate in model.stop().fates.items()}
    # The kernel answers for packet 4 and for 101; 100 is queued because the block had taken back what was promised.
    assert model.outcome.queued == len(packets)
    assert [fates[number] for number in (4, 8, 9)] == [Verdict.ACCEPT, Verdict.DROP, Verdict.DROP]
    assert fates[100] is fates[101] is Verdict.ACCEPT
