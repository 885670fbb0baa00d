"""How rules act together: alternatives, order, dice, schedules, modifiers, residual blocks and reloads."""

from __future__ import annotations

from typing import Any

import pytest
from rulekit import AtMost, Holds, Hours, client_hello, dns_query, rule, ruleset

from gfwemu.engine.records import ResidualHit, RuleHit
from gfwemu.flow.options import FlowOptions
from gfwemu.model import Side, Verdict
from gfwemu.rules.compiled import RuleSet, Subscriber
from gfwemu.testing.playbook import Playbook, Reaction, TcpTalk, UdpTalk

BLOCKED = {"tls.sni": "www.blocked.example"}
HELLO = client_hello("www.blocked.example")
HOUR = 3600.0
ANY_UDP: dict[str, Any] = {"transport": "udp"}


def connected(book: Playbook, talk: TcpTalk) -> None:
    for packet in talk.handshake():
        book.packet(packet)


def hits(reaction: Reaction) -> list[str]:
    return [record.rule for record in reaction.told(RuleHit) if isinstance(record, RuleHit)]


# -- alternatives of one rule --------------------------------------------------------------------------------------


def test_alternatives_throw_their_dice_once() -> None:
    both = [rule("drop", match, name="maybe", chance=0.5) for match in (ANY_UDP, {"port.server": 53})]
    book = Playbook(ruleset(*both), seed=5)
    flows = [UdpTalk(client_port=port) for port in range(1, 1001)]
    dropped = sum(book.packet(talk.to_server(b"x")).verdict is Verdict.DROP for talk in flows)
    assert 440 < dropped < 560


def test_alternatives_on_names_throw_their_dice_once_a_message() -> None:
    matches = ({"dns.qname": "b.example"}, {"dns.qtype": "A"})
    both = [rule("drop", match, name="maybe", chance=0.5) for match in matches]
    book = Playbook(ruleset(*both), seed=5)
    flows = [UdpTalk(client_port=port) for port in range(1, 401)]
    dropped = sum(book.packet(talk.to_server(dns_query("b.example"))).verdict is Verdict.DROP for talk in flows)
    assert 160 < dropped < 240


@pytest.mark.parametrize("per", ["flow", "rule"])
def test_alternatives_throttle_once(per: str) -> None:
    matches: tuple[dict[str, Any], ...] = (ANY_UDP, {"port.server": 53})
    both = [rule("throttle", match, name="slow", rate="80kbit", burst=100, per=per) for match in matches]
    book, talk = Playbook(ruleset(*both)), UdpTalk()
    verdicts = [book.packet(talk.to_server(b"x" * 72), after=0.01).verdict for _ in range(50)]
    assert verdicts == [Verdict.ACCEPT] * 50


# -- once a flow, or once a message --------------------------------------------------------------------------------


def test_an_alert_about_packets_is_raised_once_a_flow() -> None:
    for match in ({"payload.contains": Holds(b"x")}, {"tls.sni": "www.blocked.example", "direction": "to_server"}):
        book, talk = Playbook(ruleset(rule("alert", match))), TcpTalk()
        connected(book, talk)
        told = [len(hits(book.packet(talk.to_server(data)))) for data in (HELLO + b"x", b"x", b"x")]
        assert told == [1, 0, 0]


def test_an_alert_about_messages_is_raised_at_each() -> None:
    for match in ({"dns.qname": "b.example"}, {"dns.qname": "b.example", "direction": "to_server"}):
        book, talk = Playbook(ruleset(rule("alert", match))), UdpTalk()
        names = ("b.example", "a.example", "b.example")
        assert [len(hits(book.packet(talk.to_server(dns_query(name))))) for name in names] == [1, 0, 1]


def test_a_scheduled_alert_about_addresses_is_raised_once_a_flow() -> None:
    book = Playbook(ruleset(rule("alert", ANY_UDP, schedule=Hours(0, 12))), start=0.0)
    talk = UdpTalk()
    assert [len(hits(book.packet(talk.to_server(b"x")))) for _ in range(3)] == [1, 0, 0]


@pytest.mark.parametrize("match", [{"dns.qname": "b.example"}, {"dns.qname": "b.example", "direction": "to_server"}])
def test_each_query_is_poisoned_and_no_answer(match: dict[str, Any]) -> None:
    book, talk = Playbook(ruleset(rule("poison", match, placement="on-path", a=["203.0.113.1"]))), UdpTalk()
    query = dns_query("b.example")
    answer = query[:2] + b"\x81\x80" + query[4:]
    for packet, forged in ((talk.to_server(query), 1), (talk.to_client(answer), 0), (talk.to_server(query), 1)):
        reaction = book.packet(packet)
        assert (len(reaction.injected), len(hits(reaction))) == (forged, forged)


def test_an_answer_goes_to_who_asked() -> None:
    """Where the server's late datagram opened the flow anew, its client asks in what counts as the other direction."""
    book, talk = Playbook(ruleset(rule("poison", {"dns.qname": "b.example"}, a=["203.0.113.1"]))), UdpTalk()
    book.packet(talk.to_client(dns_query("a.example")[:2] + b"\x81\x80" + dns_query("a.example")[4:]))
    (forged,) = book.packet(talk.to_server(dns_query("b.example"))).injected
    assert forged.five_tuple == talk.tuple.reversed()


def test_the_list_of_rules_that_a_flow_met_does_not_grow() -> None:
    book, talk = Playbook(ruleset(rule("alert", {"dns.qname": "b.example"}))), UdpTalk()
    for _ in range(50):
        book.packet(talk.to_server(dns_query("b.example")))
    (flow,) = book.engine._flows.table
    assert flow.rules == ("alert",)


def test_a_count_after_a_name_lets_other_flows_go() -> None:
    """The rule asks for a name and a count: a flow of another name need not be counted on."""
    freeze = rule("drop", {"tls.sni": "www.blocked.example", "count.packets": AtMost(100)})
    book, talk = Playbook(ruleset(freeze)), TcpTalk()
    connected(book, talk)
    own = book.packet(talk.to_server(client_hello("www.allowed.example"))).own
    assert own is not None
    assert own.offload


# -- schedules -----------------------------------------------------------------------------------------------------


def test_a_throttle_rests_outside_its_hours() -> None:
    slow = rule("throttle", ANY_UDP, schedule=Hours(0, 1), rate="8kbit", burst=100)
    book, talk = Playbook(ruleset(slow, flows=FlowOptions(udp=86_400)), start=0.0), UdpTalk()
    data = talk.to_server(b"x" * 72)
    verdicts = [book.packet(data, after=after).verdict for after in (0, 0, HOUR, 0, 23 * HOUR, 0)]
    accept, drop = Verdict.ACCEPT, Verdict.DROP
    assert verdicts == [accept, drop, accept, accept, accept, drop]


def test_a_rule_on_addresses_takes_force_in_an_open_flow() -> None:
    book, talk = Playbook(ruleset(rule("drop", ANY_UDP, schedule=Hours(1, 2))), start=HOUR - 30.0), UdpTalk()
    assert book.packet(talk.to_server(b"x")).verdict is Verdict.ACCEPT
    assert book.packet(talk.to_server(b"x"), after=29.0).verdict is Verdict.ACCEPT
    assert book.packet(talk.to_server(b"x"), after=2.0).verdict is Verdict.DROP


# -- subscribers ---------------------------------------------------------------------------------------------------


def test_a_subscriber_is_the_inside_end_and_has_one_bucket_for_all_addresses() -> None:
    alice = Subscriber("alice", ((bytes((192, 0, 2, 0)), 24), (bytes.fromhex("20010db8") + bytes(12), 64)))
    slow = rule("throttle", ANY_UDP, rate="8kbit", burst=130, per="subscriber")
    inside = [UdpTalk(client_port=1), UdpTalk("192.0.2.11", client_port=2), UdpTalk("2001:db8::1", "2001:db8:1::1")]
    outside = [UdpTalk(f"203.0.113.{number}", "192.0.2.77") for number in (1, 2)]
    for subscribers, talks, came_from, passing in (
        ((alice,), inside, Side.INSIDE, 1),
        ((), inside, Side.INSIDE, 3),
        ((), outside, Side.OUTSIDE, 1),
    ):
        book = Playbook(ruleset(slow, subscribers=subscribers))
        verdicts = [book.packet(talk.to_server(b"x" * 60), came_from=came_from).verdict for talk in talks]
        assert verdicts.count(Verdict.ACCEPT) == passing


# -- residual blocks -----------------------------------------------------------------------------------------------


def block_of(action: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"key": kind, "seconds": 100, "action": action, **more}


def test_a_block_that_spares_a_packet_does_not_shield_from_a_narrower_one() -> None:
    rules = [
        rule("drop", BLOCKED, name="wide", residual=block_of("drop", "3tuple", direction="to_client")),
        rule("drop", {"dns.qname": "b.example"}, name="narrow", residual=block_of("drop", "4tuple")),
    ]
    book, talk = Playbook(ruleset(*rules)), TcpTalk(port=53)
    connected(book, talk)
    query = dns_query("b.example")
    assert book.packet(talk.to_server(len(query).to_bytes(2, "big") + query)).verdict is Verdict.DROP
    other = TcpTalk(port=53, client_port=40001)
    connected(book, other)
    assert book.packet(other.to_server(HELLO)).verdict is Verdict.DROP
    again = TcpTalk(port=53)
    again.client_seq = 77_000
    reaction = book.packet(again.syn())
    assert reaction.verdict is Verdict.DROP
    assert [record.rule for record in reaction.told(ResidualHit) if isinstance(record, ResidualHit)] == ["narrow"]


def test_renewing_a_block_leaves_no_gap() -> None:
    residual = block_of("drop", "3tuple", refresh=True, after="5s", direction="to_client")
    drop = rule("drop", BLOCKED, residual=residual, direction="to_client")
    book, first, second = Playbook(ruleset(drop)), TcpTalk(), TcpTalk(client_port=40001)
    connected(book, first)
    book.packet(first.to_server(HELLO))
    book.packet(second.syn(), after=6.0)
    assert book.packet(second.syn_ack()).verdict is Verdict.DROP
    assert hits(book.packet(second.to_server(HELLO))) == ["drop"]
    assert book.packet(TcpTalk(client_port=40002).to_client()).verdict is Verdict.DROP


def test_the_flow_that_began_a_block_renews_it() -> None:
    """The victim's own retransmissions extend the block of Iran and Kazakhstan (Bock et al., WOOT 2021)."""
    drop = rule("drop", BLOCKED, residual=block_of("drop", "4tuple", refresh=True))
    book, talk = Playbook(ruleset(drop)), TcpTalk()
    connected(book, talk)
    book.packet(talk.to_server(HELLO))
    book.packet(talk.to_server(HELLO, seq=talk.client_seq), after=90.0)
    book.packet(talk.to_client(flags=0x04))
    again = TcpTalk()
    again.client_seq = 77_000
    assert book.packet(again.syn(), after=90.0).verdict is Verdict.DROP
    assert book.packet(again.syn(), after=101.0).verdict is Verdict.ACCEPT


def test_the_kernel_is_told_of_few_renewals_and_always_in_time() -> None:
    drop = rule("drop", BLOCKED, residual={"key": "3tuple", "seconds": 60, "refresh": True, "action": "drop"})
    book, talk = Playbook(ruleset(drop)), TcpTalk()
    connected(book, talk)
    watches = [(book.now, watch.seconds) for watch in book.packet(talk.to_server(HELLO)).watches]
    for _ in range(600):
        watches += [(book.now, watch.seconds) for watch in book.packet(talk.to_server(b"x"), after=0.1).watches]
        assert watches[-1][0] + watches[-1][1] >= book.now + 60 - 1e-6
    assert len(watches) <= 10


def test_a_packet_that_met_a_block_promises_nothing_to_the_kernel() -> None:
    reset = rule("reset", BLOCKED, placement="on-path", residual={"seconds": 50})
    book = Playbook(ruleset(reset))
    first = TcpTalk()
    connected(book, first)
    own = book.packet(first.to_server(HELLO)).own
    assert own is not None
    reaction = book.packet(first.to_server(b"x"))
    assert len(reaction.injected) == 2
    assert reaction.own is not None
    assert not reaction.own.offload
    after = book.packet(first.to_server(b"x"), after=51.0)
    assert after.injected == []
    assert after.own is not None
    assert after.own.offload


def test_blocks_follow_their_rule_through_a_reload() -> None:
    def rules(residual: dict[str, Any] | None) -> RuleSet:
        return ruleset(rule("drop", BLOCKED, name="r", residual=residual))

    for new, verdict, forged in (
        (block_of("drop", "3tuple"), Verdict.DROP, 0),
        (block_of("reset", "3tuple"), Verdict.DROP, 2),
        (None, Verdict.ACCEPT, 0),
    ):
        book, talk = Playbook(rules(block_of("drop", "3tuple"))), TcpTalk()
        connected(book, talk)
        book.packet(talk.to_server(HELLO))
        book.replace_rules(rules(new))
        reaction = book.packet(TcpTalk(client_port=40001).syn())
        assert (reaction.verdict, len(reaction.injected)) == (verdict, forged)


def test_a_smaller_table_after_a_reload_is_reached() -> None:
    book = Playbook(ruleset(rule("alert", ANY_UDP)))
    for port in range(1, 41):
        book.packet(UdpTalk(client_port=port).to_server(b"x"))
    book.replace_rules(ruleset(rule("alert", ANY_UDP), flows=FlowOptions(limit=4)))
    for port in range(100, 110):
        book.packet(UdpTalk(client_port=port).to_server(b"x"))
    assert book.engine.flow_count == 4
