"""The kernel plan never changes an answer: the same talk with everything in user space, and with the plan in front."""

from __future__ import annotations

import ipaddress
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_model import PlanModel
from rulekit import Holds, Hours, client_hello, dns_query, rule, ruleset

from gfwemu.flow.options import FlowOptions, Resync, TcpOptions, Teardown
from gfwemu.model import FiveTuple, Side, Verdict, address_bytes
from gfwemu.rules.compiled import CompiledRule, RuleSet
from gfwemu.rules.fields import rule_fields
from gfwemu.rules.matchers import ExactSet, Flag, Numbers, parse_interval
from gfwemu.rules.networks import NetworkSet
from gfwemu.rules.plan import compile_plan
from gfwemu.wire.build import build_icmp_unreachable, build_ip, build_tcp, build_udp
from gfwemu.wire.checksum import internet_checksum
from gfwemu.wire.packet import Packet
from gfwemu.wire.parse import parse_packet

BLOCKED, ALLOWED = client_hello("www.blocked.example"), client_hello("www.allowed.example")
REQUEST = b"GET /%s HTTP/1.1\r\nHost: www.blocked.example\r\n\r\n"
ANSWER = dns_query("b.example").replace(b"\x01\x00", b"\x81\x80", 1)
WORDS = [
    *(BLOCKED, ALLOWED, BLOCKED[:90], BLOCKED[90:]),
    *(REQUEST % b"", REQUEST % b"news", REQUEST[:20], b"forbidden", b"x", b"y" * 700),
    *(dns_query("b.example"), dns_query("c.example"), ANSWER),
]
TALK_OF_NAMES = [dns_query("b.example"), dns_query("c.example"), ANSWER, ANSWER]


def networks(*texts: str) -> NetworkSet:
    return NetworkSet("", [(one.network_address.packed, one.prefixlen) for one in map(ipaddress.ip_network, texts)])


def numbers(*texts: str) -> Numbers:
    return Numbers(tuple(parse_interval(text) for text in texts))


def texts(*some: str) -> ExactSet:
    return ExactSet("", frozenset(some))


ENDPOINTS: list[dict[str, Any]] = [
    *[{}] * 8,
    {"ip.server": networks("203.0.113.80/32", "2001:db8:2::/64")},
    {"ip.client": networks("192.0.2.0/24"), "port.server": numbers("443")},
    {"port.server": numbers("53", "400-450")},
    {"port.client": numbers("1")},
    {"ip.any": networks("192.0.2.11/32", "203.0.113.53/32")},
    {"ip.server": networks("192.0.2.0/24")},
    {"initiator": texts("outside")},
    {"ip.server": networks("203.0.113.0/24"), "port.server": numbers("443"), "transport": texts("tcp")},
    {"transport": texts("udp")},
    {"transport": texts("tcp")},
]
CONTENTS: list[dict[str, Any]] = [
    {},
    *[{"tls.sni": texts("www.blocked.example")}] * 3,
    *[{"http.host": texts("www.blocked.example")}] * 2,
    {"http.path": texts("/news")},
    {"protocol": texts("http")},
    {"payload.contains": Holds(b"forbidden"), "direction": texts("to_server")},
    {"payload.number": numbers(">=3"), "direction": texts("to_server")},
    {"dns.qname": texts("b.example"), "transport": texts("udp")},
    {"dns.qname": texts("b.example"), "transport": texts("udp"), "dns.response": Flag(False)},
    # What asks for more than the client's payload:
    {"dns.qname": texts("b.example")},
    {"dns.response": Flag(True)},
    {"protocol": texts("unknown")},
    {"payload.contains": Holds(b"forbidden")},
    {"payload.contains": Holds(b"forbidden"), "direction": texts("to_client")},
    {"payload.length": numbers(">600")},
    {"packet.length": numbers(">600")},
    {"packet.length": numbers("<100")},
    {"tcp.flags": texts("SA")},
    {"tcp.flags": texts("R", "FA")},
    {"tcp.flags": texts("A")},
    {"tls.sni": texts("www.allowed.example"), "count.packets": numbers(">=6")},
    {"count.bytes.to_client": numbers(">800")},
]
_LOUD_CONTENTS = 13
DEEDS: list[tuple[str, dict[str, Any]]] = [
    ("pass", {}),
    *[("drop", {})] * 3,
    ("drop", {"direction": "to_client"}),
    ("drop", {"direction": "to_server", "trigger": False}),
    ("reset", {"injectors": [{"delay": "3ms"}]}),
    ("rewrite_to_reset", {}),
    ("poison", {"a": ["203.0.113.1"]}),
    ("throttle", {"rate": "80kbit", "burst": 900}),
    ("lose", {"probability": 0.5}),
    ("freeze", {"packets": 2, "payload_only": True}),
    ("alert", {}),
    # What holds packets, or counts all of them:
    ("throttle", {"rate": "80kbit", "burst": 900, "mode": "shape", "limit": 2000}),
    ("freeze", {"packets": 6}),
]
_LOUD_DEEDS = 2
BLOCKS = [
    *[None] * 8,
    {"key": "3tuple", "seconds": 30, "action": "drop"},
    {"key": "2tuple", "seconds": 30, "action": "drop", "direction": "to_server"},
    {"key": "4tuple", "seconds": 150, "refresh": True, "action": "reset"},
    {"key": "server", "seconds": 30, "action": "drop"},
    {"key": "server_port", "seconds": 30, "action": "drop"},
]
TEARDOWNS = [
    *[TcpOptions().teardown] * 3,
    {},
    {"rst": Teardown(by="server")},
    {"rst": Teardown(sequence="in_window"), "fin": Teardown(when="established")},
]
RESYNCS: list[dict[Any, Resync]] = [
    *[{}] * 4,
    {"multiple_syn": Resync()},
    {"rst": Resync(lock_on=("client_data",)), "rst_before_established": Resync()},
    {"server_rst": Resync(), "multiple_synack": Resync(), "synack_wrong_ack": Resync()},
]
# Of a decided flow, the kernel's own connection tracking knows how long it opens or closes, and this model does not.
LIVES = FlowOptions(tcp_opening=480, tcp_established=480, tcp_closing=480, udp=480, other=480)


def rule_set(rng: random.Random) -> RuleSet:
    """Some rules that make sense together; half of the sets ask for nothing but what clients say."""
    quiet = rng.random() < 0.6
    made: list[CompiledRule] = []
    for index in range(rng.randint(1, 4)):
        action, parameters = rng.choice(DEEDS[:-_LOUD_DEEDS] if quiet else DEEDS)
        match = {**rng.choice(ENDPOINTS), **rng.choice(CONTENTS[:-_LOUD_CONTENTS] if quiet else CONTENTS)}
        if action == "poison":
            match["dns.qname"] = texts("b.example")
        if action in ("reset", "rewrite_to_reset"):
            match["transport"] = texts("tcp")
        one = rule(
            action,
            match,
            name=f"{index}-{action}",
            chance=rng.choice([1.0, 1.0, 1.0, 0.5]),
            residual=rng.choice(BLOCKS),
            schedule=None if quiet else rng.choice([*[None] * 9, Hours(0, 1)]),
            **parameters,
        )
        made.append(replace(one, index=index))
    tcp = TcpOptions(
        create_on=rng.choice(["syn", "syn", "syn", "synack", "both", "any"]),  # type: ignore[arg-type]
        handshake=rng.choice(["none", "none", "syn", "full"]),  # type: ignore[arg-type]
        established_by=rng.choice(["ack", "ack", "valid_ack"]),  # type: ignore[arg-type]
        reassembly=rng.choice(["none", "first_segment", "full", "full"]),  # type: ignore[arg-type]
        teardown=rng.choice(TEARDOWNS),
        resync=rng.choice(RESYNCS),
        small_segments=rng.choice([0, 0, 0, 30]),
        inspect=rng.choice([262_144, 1000]),
    )
    known = rule_fields()
    names = {known[one.field].dissector for each in made for one in each.conditions} - {""}
    if any("unknown" in str(one.matcher) for each in made for one in each.conditions):
        names |= {"tls", "http", "dns", "quic", "openvpn", "wireguard"}
    return replace(ruleset(*made, tcp=tcp, flows=LIVES), dissectors=frozenset(names))


def without_history(rules: RuleSet) -> RuleSet:
    """Only such rules to which it is all the same whether the kernel answered for a flow before: no counts, no dice."""
    kept = tuple(
        one
        for one in rules.rules
        if not any(condition.field.startswith(("count.", "payload.number")) for condition in one.conditions)
        and one.action_name not in ("freeze", "lose")
        and one.probability == 1.0
    )
    return replace(rules, rules=kept)


class Talk:
    """One client and one server; TCP ends answer as real ones do, UDP ends say what they are told."""

    def __init__(self, proto: int, client: str, port: int, server: str, server_port: int) -> None:
        self.tuple = FiveTuple(proto, address_bytes(client), port, address_bytes(server), server_port)
        self.heard = False
        self.answered = False
        self.began = False
        self._seq = [1_000, 500_000]

    def may_say(self, data: bytes, side: Side) -> bool:
        """Nobody answers what never came, and a client does nothing with a connection that did not open."""
        packet = parse_packet(data)
        first = isinstance(packet, Packet) and (packet.proto != 6 or packet.flags == 0x02)
        return self.heard if side is Side.OUTSIDE else first or self.answered

    def told(self, data: bytes, side: Side, arrived: bool) -> None:
        packet = parse_packet(data)
        assert isinstance(packet, Packet)
        if packet.proto != self.tuple.proto or packet.is_fragment:
            return
        if packet.flags == 0x02:
            self.heard, self.answered = arrived, False
        elif side is Side.INSIDE:
            self.heard = self.heard or arrived
        else:
            self.answered = self.answered or arrived

    def packets(self, kind: str, word: bytes) -> list[tuple[bytes, Side]]:
        """What happens, as packets. A server says nothing before it heard something."""
        from_client = kind.startswith("client")
        if not from_client and not self.heard:
            return []
        if self.tuple.proto == 17:
            if not word:
                return []
            return [(build_udp(self._way(from_client), word), self._side(from_client))]
        return self._segments(kind.partition("-")[2], from_client, word)

    def _segments(self, kind: str, from_client: bool, word: bytes) -> list[tuple[bytes, Side]]:
        if kind == "begin":
            return self._opening(whole=False)
        if not self.began and not from_client:
            return []
        before = [] if self.began else self._opening(whole=True)
        match kind:
            case "say":
                said = [self._segment(from_client, 0x18, word), self._segment(not from_client, 0x10, b"")]
            case "again":
                said = [self._segment(from_client, 0x18, word, back=len(word))]
            case "nod":
                said = [self._segment(from_client, 0x10, b"")]
            case _:
                self.began = False
                said = [self._segment(from_client, 0x11 if kind == "fin" else 0x04, b"")]
        return before + said

    def _opening(self, *, whole: bool) -> list[tuple[bytes, Side]]:
        self._seq[0] += 7_000
        self.began = whole
        made = [self._segment(True, 0x02, b"", ack=False)]
        return [*made, self._segment(False, 0x12, b""), self._segment(True, 0x10, b"")] if whole else made

    def _segment(
        self, from_client: bool, flags: int, payload: bytes, *, ack: bool = True, back: int = 0
    ) -> tuple[bytes, Side]:
        own = 0 if from_client else 1
        data = build_tcp(
            self._way(from_client),
            seq=self._seq[own] - back,
            ack=self._seq[1 - own] if ack else 0,
            flags=flags,
            payload=payload,
        )
        if not back:
            self._seq[own] += len(payload) + bool(flags & 0x03)
        return data, self._side(from_client)

    def _way(self, from_client: bool) -> FiveTuple:
        return self.tuple if from_client else self.tuple.reversed()

    @staticmethod
    def _side(from_client: bool) -> Side:
        return Side.INSIDE if from_client else Side.OUTSIDE


KINDS = [
    *["client-say"] * 6,
    *["server-say"] * 5,
    *(
        "client-begin",
        "client-again",
        "client-nod",
        "server-nod",
        "client-fin",
        "server-fin",
        "client-rst",
        "server-rst",
    ),
    *("fragments", "icmp"),
]
PAIRS = [
    (6, "192.0.2.10", 1, "203.0.113.80", 443),
    (6, "192.0.2.10", 2, "203.0.113.80", 80),
    (6, "2001:db8:1::10", 1, "2001:db8:2::80", 443),
    (6, "192.0.2.11", 3, "203.0.113.80", 443),
    (17, "192.0.2.10", 1, "203.0.113.80", 443),
    (17, "192.0.2.10", 2, "203.0.113.53", 53),
    (17, "2001:db8:1::10", 1, "2001:db8:2::80", 53),
]
Step = tuple[int, str, bytes, float]


def steps_of(rng: random.Random) -> list[Step]:
    talks = rng.choices(range(len(PAIRS)), k=rng.randint(1, 4))
    waits = rng.choice([[0.0], [0.0, 0.0, 0.0, 0.1, 1.0], [0.0, 0.0, 0.1, 1.0, 100.0, 100.0, 1000.0]])
    words = rng.choice([rng.choices(WORDS, k=4), rng.choices(WORDS, k=4), TALK_OF_NAMES])
    return [
        (rng.choice(talks), rng.choice(KINDS), rng.choice(words), rng.choice(waits)) for _ in range(rng.randint(5, 50))
    ]


def in_pieces(data: bytes) -> list[bytes]:
    """The IPv4 packet as two fragments; as it is where it is too short, or IPv6."""
    packet = parse_packet(data)
    if not isinstance(packet, Packet) or packet.version == 6 or len(data) < 60:
        return [data]
    body = data[packet.transport_offset :]
    cut = len(body) // 2 // 8 * 8
    pieces = []
    for offset, part, more in ((0, body[:cut], 0x2000), (cut, body[cut:], 0)):
        raw = bytearray(build_ip(packet.src, packet.dst, packet.proto, part, ip_id=77))
        raw[6:8] = (more | offset // 8).to_bytes(2, "big")
        raw[10:12] = b"\0\0"
        raw[10:12] = internet_checksum(bytes(raw[:20])).to_bytes(2, "big")
        pieces.append(bytes(raw))
    return pieces


def refusal(data: bytes) -> bytes:
    packet = parse_packet(data)
    assert isinstance(packet, Packet)
    return build_icmp_unreachable(packet, packet.dst, "port")


def compare(rules: RuleSet, steps: list[Step], later: RuleSet | None) -> tuple[int, int]:
    """Plays both; returns how many packets entered user space, without and with the plan."""
    plain, planned = PlanModel(rules, None), PlanModel(rules, compile_plan(rules))
    talks = [Talk(*pair) for pair in PAIRS]
    number = 0
    for place, (which, kind, word, after) in enumerate(steps):
        if later is not None and place == len(steps) // 2:
            plain.replace(later)
            planned.replace(later)
            if compile_plan(rules).unseen or compile_plan(rules).rules:
                # Of flows that passed unseen the engine knows nothing; in their place others begin.
                talks = [Talk(pair[0], pair[1], pair[2] + 10, *pair[3:]) for pair in PAIRS]
        talk = talks[which]
        if after > LIVES.udp or (later is not None and place == len(steps) // 2):
            # Of a UDP flow that is new to it, user space takes who speaks first for the client.
            for one in talks:
                one.heard = one.heard and one.tuple.proto == 6
        if kind in ("fragments", "icmp"):
            spoken = talk.packets("client-say", word)[:1] if talk.began or talk.tuple.proto == 17 else []
            said = [(piece, side) for data, side in spoken for piece in in_pieces(data)]
            if kind == "icmp":
                said = [(refusal(data), Side.OUTSIDE) for data, _ in spoken if talk.heard]
        else:
            said = talk.packets(kind, word)
        for data, side in said:
            if not talk.may_say(data, side):
                continue
            plain.packet(number, data, after, side)
            planned.packet(number, data, after, side)
            fate = plain.outcome.fates.get(number)
            assert planned.outcome.fates.get(number) == fate, (place, kind, word[:20], rules.rules, compile_plan(rules))
            talk.told(data, side, fate is not None and fate[0] is Verdict.ACCEPT)
            number, after = number + 1, 0.0
    ends = plain.stop(), planned.stop()
    assert ends[0].fates == ends[1].fates
    assert ends[0].sent == ends[1].sent
    in_kernel = {one.name for one in compile_plan(rules).rules}
    told = [hit for hit in plain.hits if hit[0] not in in_kernel]
    assert later is not None or told == [hit for hit in planned.hits if hit[0] not in in_kernel]
    return ends[0].queued, ends[1].queued


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1 << 32))
def test_a_plan_never_changes_what_arrives_and_which_rules_fire(seed: int) -> None:
    rng = random.Random(seed)
    everything, queued = compare(rule_set(rng), steps_of(rng), None)
    assert queued <= everything


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 32))
def test_nor_does_it_where_rules_are_reloaded_meanwhile(seed: int) -> None:
    rng = random.Random(seed)
    compare(rule_set(rng), steps_of(rng), without_history(rule_set(rng)))


INNOCENT = REQUEST.replace(b"blocked", b"allowed") % b""


@pytest.mark.parametrize(
    ("some", "tcp", "talk", "dropped"),
    [
        (
            rule("drop", {"payload.contains": Holds(b"forbidden"), "direction": texts("to_client")}),
            TcpOptions(),
            [(0, "client-say", b"x"), (0, "server-say", b"forbidden")],
            [5, 6],
        ),
        (
            rule("drop", {"http.host": texts("www.blocked.example"), "transport": texts("tcp")}),
            TcpOptions(inspect=1000),
            [(0, "client-say", INNOCENT), *[(0, "server-say", b"y" * 700)] * 2, (0, "client-say", REQUEST % b"")],
            [9, 10],
        ),
        (
            rule(
                "drop",
                {"tls.sni": texts("www.blocked.example"), "port.server": numbers("443")},
                residual={"key": "2tuple", "seconds": 30, "action": "drop"},
            ),
            TcpOptions(),
            [(1, "client-say", b"x"), (0, "client-say", BLOCKED), (1, "client-say", b"x"), (1, "server-say", b"x")],
            [8, 9, 10, 11, 12, 13],
        ),
    ],
    ids=["the server's payload", "what the server says does not tire the censor", "a block on another port"],
)
def test_a_plan_lets_user_space_see(
    some: CompiledRule, tcp: TcpOptions, talk: list[tuple[int, str, bytes]], dropped: list[int]
) -> None:
    names = frozenset({rule_fields()[one.field].dissector for one in some.conditions} - {""})
    rules = replace(ruleset(some, tcp=tcp, flows=LIVES), dissectors=names)
    compare(rules, [(*step, 0.0) for step in talk], None)
    model = PlanModel(rules, compile_plan(rules))
    talks, number = [Talk(*pair) for pair in PAIRS], 0
    for which, kind, word in talk:
        for data, side in talks[which].packets(kind, word) if kind != "server-say" or talks[which].began else []:
            model.packet(number, data, 0.0, side)
            talks[which].heard = True
            number += 1
    fates = model.stop().fates
    assert [number for number, fate in fates.items() if fate[0] is Verdict.DROP] == dropped


def test_a_flow_that_the_kernel_answers_for_keeps_its_client() -> None:
    block = {"key": "2tuple", "seconds": 30, "action": "drop", "direction": "to_server"}
    blocking = rule("alert", {"transport": texts("icmp")}, residual=block)
    passing = replace(rule("pass", {"port.server": numbers("53")}), index=1)
    rules = replace(ruleset(blocking, passing, flows=LIVES), dissectors=frozenset())
    talk = [(5, "client-say", b"x", 0.0), *[(5, "server-say", b"x", 50.0)] * 20]
    everything, queued = compare(rules, [*talk, (5, "icmp", b"x", 50.0), (5, "server-say", b"x", 0.1)], None)
    assert queued < everything


def test_a_connection_met_in_the_middle_is_judged_by_its_endpoints_before_its_words() -> None:
    words = rule("pass", {"tls.sni": texts("www.blocked.example")})
    endpoints = replace(rule("drop", {"transport": texts("tcp")}, direction="to_client"), index=1)
    later = replace(ruleset(words, endpoints, flows=LIVES), dissectors=frozenset({"tls"}))
    first, rest = (0, "client-say", BLOCKED[:90], 0.0), (0, "client-say", BLOCKED[90:], 0.0)
    none = replace(ruleset(flows=LIVES, tcp=TcpOptions(create_on="any")), dissectors=frozenset({"tls"}))
    watching = replace(none, rules=(rule("alert", {"tls.sni": texts("www.allowed.example")}),))
    nods = [(0, "client-nod", b"", 0.0), (0, "server-nod", b"", 0.0)]
    compare(watching, [first, *nods, rest, (0, "server-say", b"x", 0.0)], later)
