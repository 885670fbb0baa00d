"""The laws of the engine, for random scripts: one verdict a packet, and on-path mechanisms never drop."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rulekit import AtMost, Holds, client_hello, dns_query, rule, ruleset

from gfwemu.engine.commands import SetVerdict
from gfwemu.flow.options import FlowOptions, FragmentOptions, TcpOptions
from gfwemu.model import FiveTuple, Verdict, address_bytes
from gfwemu.rules.actions import REPEATABLE
from gfwemu.rules.compiled import CompiledRule
from gfwemu.rules.odds import Odds
from gfwemu.testing.playbook import Playbook
from gfwemu.wire.build import build_ip, build_tcp, build_udp

CLIENT, SERVER = address_bytes("192.0.2.10"), address_bytes("203.0.113.80")
HELLO = client_hello("www.blocked.example")
PAYLOADS = [b"", b"x", b"forbidden", HELLO, HELLO[:100], HELLO[100:], dns_query("b.example"), b"GET / HTTP/1.1\r\n"]
MATCHES: list[dict[str, Any]] = [
    {"ip.server": "203.0.113.80"},
    {"transport": "udp"},
    {"tls.sni": "www.blocked.example"},
    {"dns.qname": "b.example"},
    {"protocol": "unknown"},
    {"payload.contains": Holds(b"forbidden")},
    {"count.packets": AtMost(3)},
    {"port.server": 443, "direction": ("not", "to_server")},
]
ACTIONS: list[tuple[str, dict[str, Any]]] = [
    ("pass", {}),
    ("drop", {}),
    ("drop", {"after": "5ms", "trigger": False, "direction": "to_server"}),
    ("reset", {"injectors": [{"delay": "3ms"}]}),
    ("reset", {"injectors": [{"count": 3, "ttl": {"increment_from": "250-252"}, "jitter": "0-1ms"}]}),
    ("fin", {}),
    ("rewrite_to_reset", {}),
    ("poison", {"a": ["203.0.113.1"]}),
    ("poison", {"a": ["203.0.113.1"], "aaaa": "teredo", "other_types": "a"}),
    ("blockpage", {}),
    ("redirect", {"location": "http://stub.example/"}),
    ("redirect", {"address": ["203.0.113.99"]}),
    ("tls_alert", {}),
    ("throttle", {"rate": "8kbit", "burst": 200}),
    ("throttle", {"rate": "8kbit", "burst": 200, "mode": "shape", "limit": 2000}),
    ("delay", {"time": "1ms-20ms"}),
    ("lose", {"probability": 0.5}),
    ("freeze", {"packets": 3}),
    ("icmp_unreachable", {}),
    ("alert", {}),
]
RESIDUALS: list[dict[str, Any] | None] = [
    None,
    {"seconds": 1, "key": "2tuple"},
    {"seconds": 1, "refresh": True, "probability": 0.5},
    {"seconds": 1, "key": "server", "action": "reset", "syn": "forged_synack", "injectors": [{"flags": "R"}]},
    {"seconds": 1, "probability": {"value": 0.5, "per": "packet"}, "escalate": {"ports": 2, "key": "server"}},
]
ODDS = [None, Odds((0.5,), "packet"), Odds((0.5,), "endpoints"), Odds((0.2, 0.8) * 12)]


@st.composite
def rules(draw: st.DrawFn, *, on_path: bool = False) -> CompiledRule:
    able = [entry for entry in ACTIONS if entry[0] in ("reset", "fin", "poison", "blockpage", "tls_alert", "alert")]
    action, parameters = draw(st.sampled_from(able if on_path else ACTIONS))
    residual, odds = draw(st.sampled_from(RESIDUALS)), draw(st.sampled_from(ODDS))
    return rule(
        action,
        draw(st.sampled_from(MATCHES)),
        name=f"{action}-{draw(st.integers(0, 99))}",
        placement="on-path" if on_path else "in-path",
        chance=draw(st.sampled_from([1.0, 0.5])) if odds is None else odds.low,
        odds=odds,
        repeat=action in REPEATABLE and draw(st.booleans()),
        residual={**residual, "action": "reset"} if on_path and residual else residual,
        **parameters,
    )


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["tcp", "udp", "fragment", "garbage"]))
    if kind == "garbage":
        return draw(st.binary(max_size=80))
    forward = FiveTuple(
        17 if kind != "tcp" else 6, CLIENT, draw(st.integers(1, 2)), SERVER, draw(st.sampled_from([53, 443]))
    )
    key = forward if draw(st.booleans()) else forward.reversed()
    payload = draw(st.sampled_from(PAYLOADS))
    if kind == "tcp":
        flags = draw(st.sampled_from([0x02, 0x12, 0x10, 0x18, 0x04, 0x11, 0x00, 0xFF]))
        return build_tcp(
            key, seq=draw(st.integers(0, 300)), ack=draw(st.integers(0, 300)), flags=flags, payload=payload
        )
    if kind == "udp":
        return build_udp(key, payload)
    raw = bytearray(build_ip(key.src, key.dst, 17, payload + bytes(-len(payload) % 8), ip_id=draw(st.integers(0, 2))))
    raw[6:8] = (draw(st.sampled_from([0, 0x2000])) | draw(st.integers(0, 3))).to_bytes(2, "big")
    return bytes(raw)


SCRIPTS = st.lists(st.tuples(packets(), st.floats(0, 2)), max_size=30)
SMALL = {
    "flows": FlowOptions(limit=3, udp=3, tcp_opening=3, residual_limit=2),
    "fragments": FragmentOptions(limit=3, timeout=1.0, datagrams=2),
}


@settings(max_examples=300)
@given(st.lists(rules(), max_size=4), SCRIPTS, st.sampled_from(["none", "first_segment", "full"]), st.booleans())
def test_every_packet_gets_exactly_one_verdict(
    some: list[CompiledRule], script: list[tuple[bytes, float]], reassembly: Any, verify: bool
) -> None:
    book = Playbook(ruleset(*some, tcp=TcpOptions(reassembly=reassembly, verify_checksum=verify), **SMALL))
    for number, (data, after) in enumerate(script):
        own = book.packet(data, after=after).own
        assert own is None or own.verdict is Verdict.ACCEPT or own.data is None
        assert book.engine.flow_count <= 3
        if number == 15:
            book.replace_rules(ruleset(*some[:1], **SMALL))
    book.stop()
    assert book.engine.held_count == 0
    assert book.engine.flow_count == 0


@settings(max_examples=200)
@given(st.lists(rules(on_path=True), max_size=4), SCRIPTS)
def test_on_path_mechanisms_never_drop_hold_or_rewrite(
    some: list[CompiledRule], script: list[tuple[bytes, float]]
) -> None:
    book = Playbook(ruleset(*some))
    for data, after in script:
        reaction = book.packet(data, after=after)
        if data and data[:1] and len(data) > 20 and not int.from_bytes(data[6:8], "big") & 0x3FFF:
            assert reaction.own is not None
            assert reaction.own.verdict is Verdict.ACCEPT
            assert reaction.own.data is None


@settings(max_examples=150)
@given(st.lists(rules(), max_size=4), SCRIPTS, st.integers(0, 3))
def test_the_same_seed_gives_the_same_commands(
    some: list[CompiledRule], script: list[tuple[bytes, float]], seed: int
) -> None:
    runs = []
    for _ in range(2):
        book = Playbook(ruleset(*some), seed=seed)
        runs.append([book.packet(data, after=after).commands for data, after in script])
    assert runs[0] == runs[1]


@settings(max_examples=200)
@given(st.lists(rules(), max_size=4), SCRIPTS)
def test_offload_never_changes_an_answer(some: list[CompiledRule], script: list[tuple[bytes, float]]) -> None:
    """Once a verdict says offload, the engine itself would have given the same one to every later packet."""
    plain = [entry for entry in some if entry.probability == 1.0 and entry.residual is None]
    book = Playbook(ruleset(*plain))
    promised: dict[frozenset[Any], Verdict] = {}
    for data, after in script:
        reaction = book.packet(data, after=min(after, 0.05))
        own = reaction.own
        if own is None or len(data) < 28 or data[9] not in (6, 17) or int.from_bytes(data[6:8], "big") & 0x3FFF:
            continue
        key = frozenset({(data[12:16], data[20:22]), (data[16:20], data[22:24]), (data[9],)})
        begins = data[9] == 6 and data[33] & 0x12 == 0x02
        if key in promised and not begins:
            assert own.verdict is promised[key]
        if own.offload:
            promised[key] = own.verdict
        elif begins:
            promised.pop(key, None)


def test_stopping_ends_every_wait() -> None:
    book = Playbook(ruleset(rule("delay", {"transport": "udp"}, time="10s")))
    key = FiveTuple(17, CLIENT, 1, SERVER, 53)
    assert book.packet(build_udp(key, b"x")).held
    stopped = book.stop()
    assert [command.verdict for command in stopped.commands if isinstance(command, SetVerdict)] == [Verdict.ACCEPT]
