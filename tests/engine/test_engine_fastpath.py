"""Packets that are only booked: nothing but the engine's own work becomes less."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rulekit import AtMost, client_hello, rule, ruleset
from test_engine_laws import SCRIPTS, rules

from gfwemu.engine.commands import Command, Report, SetVerdict
from gfwemu.engine.engine import Engine
from gfwemu.engine.events import PacketArrived, RulesReplaced, Stopping, TimerFired
from gfwemu.engine.records import FlowEnded
from gfwemu.flow.options import FlowOptions
from gfwemu.model import Verdict
from gfwemu.rules.compiled import CompiledRule, RuleSet
from gfwemu.testing.playbook import TcpTalk, UdpTalk

START = 1_767_323_045.0
BLOCKED, ALLOWED = client_hello("www.blocked.example"), client_hello("www.allowed.example")
TALKS = [TcpTalk(client_port=1), TcpTalk(client_port=2), TcpTalk("2001:db8::10", "2001:db8:1::80")]
SOUND = UdpTalk(port=4000)
ORDINARY = st.one_of(
    st.builds(
        lambda talk, way, payload, flags: getattr(talk, way)(payload, flags=flags),
        st.sampled_from(TALKS),
        st.sampled_from(["to_server", "to_client"]),
        st.sampled_from([b"", b"x", b"x" * 600, ALLOWED, BLOCKED]),
        st.sampled_from([None, None, None, 0x02, 0x12, 0x11, 0x14]),
    ),
    st.builds(
        lambda way, payload: getattr(SOUND, way)(payload),
        st.sampled_from(["to_server", "to_client"]),
        st.sampled_from([b"y" * 50, b"y"]),
    ),
)
STEPS = st.sampled_from([0.0, 0.01, 0.01, 0.6, 4.0])


class Pair:
    """Two engines under the same rules, one of which books what its fast path takes."""

    def __init__(self, rule_set: RuleSet, time_scale: float = 1.0) -> None:
        self.plain = Engine(rule_set, seed=4, offload=False, time_scale=time_scale)
        self.quick = Engine(rule_set, seed=4, offload=False, time_scale=time_scale)
        assert self.quick.fast_path is not None
        self._takes = self.quick.fast_path.takes
        self._number = 0
        self.now = START

    def packet(self, data: bytes, after: float = 0.0) -> bool:
        """Whether the fast path took the packet. Raises AssertionError where that changed anything that is told."""
        self.now += after
        self._number += 1
        event = PacketArrived(self._number, data, self.now)
        commands = self.plain.handle(event)
        if self._takes(data, self.now):
            assert commands == [SetVerdict(self._number, Verdict.ACCEPT)]
            return True
        assert self.quick.handle(event) == commands
        return False

    def both(self, event: TimerFired | RulesReplaced | Stopping) -> Sequence[Command]:
        commands = self.plain.handle(event)
        assert self.quick.handle(event) == commands
        return commands


@settings(max_examples=300)
@given(st.lists(rules(), max_size=3), SCRIPTS, st.lists(st.tuples(ORDINARY, STEPS), max_size=30), st.booleans())
def test_nothing_that_is_told_changes(
    some: list[CompiledRule], script: list[tuple[bytes, float]], ordinary: list[tuple[bytes, float]], small: bool
) -> None:
    flows = FlowOptions(limit=3, udp=3, tcp_opening=3) if small else FlowOptions(tcp_established=5, tcp_closing=2)
    pair = Pair(ruleset(*some, flows=flows))
    for number, (data, after) in enumerate([*ordinary, *script, *ordinary]):
        pair.packet(data, after)
        if number == 25:
            pair.both(RulesReplaced(ruleset(*some[:1], flows=flows), pair.now))
    pair.both(TimerFired(pair.now + 1))
    pair.both(Stopping(pair.now + 30))


@pytest.mark.parametrize("talk", TALKS[1:])
def test_what_follows_an_allowed_hello_is_booked_until_the_connection_closes(talk: TcpTalk) -> None:
    pair = Pair(ruleset(rule("drop", {"tls.sni": "www.blocked.example"})))
    opening = [pair.packet(data) for data in [*talk.handshake(), talk.to_server(ALLOWED)]]
    assert opening == [False] * 4
    pair.packet(talk.to_client(b"first"))
    later = [pair.packet(data) for data in (talk.to_client(b"a" * 900), talk.to_server(), talk.to_client())]
    assert later == [True] * 3
    assert not pair.packet(talk.to_server(flags=0x11))
    pair.both(Stopping(pair.now))


def test_undecided_and_dropped_flows_and_those_that_timed_out_are_not() -> None:
    undecided = Pair(ruleset(rule("drop", {"count.packets": AtMost(9), "payload.length": 1})))
    assert not any(undecided.packet(SOUND.to_server(b"y" * 40)) for _ in range(5))
    dropped = Pair(ruleset(rule("drop", {"transport": "udp"})))
    assert not any(dropped.packet(SOUND.to_server(b"y" * 40)) for _ in range(5))
    idle = Pair(ruleset(flows=FlowOptions(udp=3)))
    assert [idle.packet(SOUND.to_server(b"y" * 40), after) for after in (0, 0, 0, 3.5, 0, 0)] == [
        *(False, False, True),
        *(False, False, True),
    ]


def test_nothing_is_booked_while_a_residual_block_may_meet_it() -> None:
    block = rule("drop", {"tls.sni": "www.blocked.example"}, residual={"key": "2tuple", "seconds": 5})
    pair = Pair(ruleset(block))
    free, guilty = TcpTalk(client_port=1), TcpTalk(client_port=2)
    for data in [*free.handshake(), free.to_server(ALLOWED), free.to_client(b"a")]:
        pair.packet(data)
    assert pair.packet(free.to_client(b"b"))
    for data in [*guilty.handshake(), guilty.to_server(BLOCKED)]:
        pair.packet(data)
    assert not pair.packet(free.to_client(b"c"))


def test_a_connection_that_no_rule_concerns_is_opened_by_what_the_engine_sees() -> None:
    pair, talk = Pair(ruleset()), TcpTalk()
    opening = [pair.packet(data) for data in (*talk.handshake(), talk.to_client(b"a" * 40))]
    assert opening == [False, False, False, True]
    (ended,) = pair.both(Stopping(pair.now))
    assert isinstance(ended, Report)
    assert isinstance(ended.record, FlowEnded)
    assert ended.record.state == "established"


def test_what_is_due_comes_first() -> None:
    late = rule("reset", {"tls.sni": "www.blocked.example"}, injectors=[{"delay": "5ms"}])
    pair = Pair(ruleset(late))
    free, guilty = TcpTalk(client_port=1), TcpTalk(client_port=2)
    for data in [*free.handshake(), free.to_server(ALLOWED), free.to_client(b"a")]:
        pair.packet(data)
    for data in [*guilty.handshake(), guilty.to_server(BLOCKED)]:
        pair.packet(data)
    assert pair.packet(free.to_client(b"b"), after=0.001)
    assert not pair.packet(free.to_client(b"c"), after=0.1)
    assert pair.packet(free.to_client(b"d"))


def test_what_was_used_last_is_evicted_last() -> None:
    pair = Pair(ruleset(flows=FlowOptions(limit=2)))
    first, second, third = (UdpTalk(client_port=number) for number in (1, 2, 3))
    for talk in (first, first, second):
        pair.packet(talk.to_server(b"y" * 40), after=0.1)
    assert pair.packet(first.to_server(b"y" * 40), after=0.1)
    pair.packet(third.to_server(b"y" * 40))
    assert pair.packet(first.to_server(b"y" * 40))


def test_an_engine_with_a_kernel_has_none() -> None:
    assert Engine(ruleset()).fast_path is None
