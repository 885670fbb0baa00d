"""How likely a rule acts: by hour, by path, by packet; and the censor's clock that hours run on."""

from __future__ import annotations

import datetime

import pytest
from rulekit import Hours, client_hello, dns_query, rule, ruleset

from gfwemu.engine.records import FlowEnded, RuleHit
from gfwemu.model import Verdict
from gfwemu.rules.odds import Odds, parse_odds
from gfwemu.testing.playbook import Playbook, TcpTalk, UdpTalk
from gfwemu.wire.packet import TcpFlags

NIGHT = datetime.datetime(2024, 11, 20, 5, 0, tzinfo=datetime.timezone(datetime.timedelta(hours=8))).timestamp()
NOON = NIGHT + 7 * 3600
DAY = {"hours": {0: 0.15, 5: 0.72, 12: 0.0, 20: 1.0}, "timezone": "Asia/Shanghai"}


def share(book: Playbook, flows: int = 400) -> float:
    """Of so many flows, those whose query was dropped."""
    query = dns_query("www.blocked.example")
    talks = [UdpTalk(client_port=20_000 + number) for number in range(flows)]
    return sum(book.packet(talk.to_server(query)).verdict is Verdict.DROP for talk in talks) / flows


def at(start: float, odds: Odds) -> float:
    drop = rule("drop", {"dns.qname": "www.blocked.example"}, chance=odds.low, odds=odds)
    return share(Playbook(ruleset(drop), start_time=start, seed=3))


def test_the_rate_follows_the_hour_in_its_time_zone() -> None:
    odds = parse_odds(DAY)
    assert 0.65 < at(NIGHT, odds) < 0.79
    assert at(NOON, odds) == 0.0
    assert at(NOON + 8 * 3600, odds) == 1.0
    # What an hour says lasts until the next one named.
    assert 0.1 < at(NIGHT - 2 * 3600, odds) < 0.2


def test_the_hours_run_on_the_scaled_clock() -> None:
    drop = rule("drop", {"dns.qname": "www.blocked.example"}, chance=0.0, odds=parse_odds(DAY))
    book = Playbook(ruleset(drop), start_time=NOON, time_scale=3600)
    assert share(book, 50) == 0.0
    book.wait(8.5)
    assert share(book, 50) == 1.0


def test_a_schedule_follows_the_clock_that_starts_when_it_is_told() -> None:
    midnight = datetime.datetime(2025, 8, 19, 16, 34, tzinfo=datetime.UTC).timestamp()
    drop = rule("drop", {"dns.qname": "www.blocked.example"}, schedule=Hours(16, 17))
    book = Playbook(ruleset(drop), start_time=midnight, time_scale=60)
    assert share(book, 10) == 1.0
    book.wait(30.0)
    talk = UdpTalk(client_port=60_000)
    assert book.packet(talk.to_server(dns_query("www.blocked.example"))).verdict is Verdict.ACCEPT


def test_times_are_told_by_the_real_clock() -> None:
    book = Playbook(ruleset(rule("alert", {"dns.qname": "a.example"})), start_time=5.0, time_scale=60, start=1_000.0)
    book.packet(UdpTalk().to_server(dns_query("a.example")))
    book.packet(UdpTalk().to_server(dns_query("a.example")), after=0.5)
    (ended,) = book.stop().told(FlowEnded)
    assert isinstance(ended, FlowEnded)
    assert (ended.start, ended.last) == pytest.approx((1_000.0, 1_000.5))


def test_by_endpoints_it_is_all_or_nothing_for_ever() -> None:
    odds = Odds((0.37,), "endpoints")
    drop = rule("drop", {"dns.qname": "www.blocked.example"}, chance=0.37, odds=odds)
    query = dns_query("www.blocked.example")

    def answers(seed: int, minutes: int = 0) -> list[bool]:
        book = Playbook(ruleset(drop, seed=seed), seed=99 + minutes)
        book.wait(minutes * 60.0)
        talks = [UdpTalk(client_port=20_000 + number) for number in range(300)]
        return [book.packet(talk.to_server(query)).verdict is Verdict.DROP for talk in talks]

    first = answers(1)
    assert 0.29 < sum(first) / 300 < 0.45
    assert answers(1, minutes=60) == first
    assert answers(2) != first


def test_endpoints_share_their_fate_over_rules_and_flows_do_not() -> None:
    query = dns_query("www.blocked.example")

    def agreement(per: str) -> int:
        odds = parse_odds({"value": 0.5, "per": per})
        some = [rule("alert", {"dns.qname": "www.blocked.example"}, name=name, chance=0.5, odds=odds) for name in "ab"]
        book = Playbook(ruleset(*some))
        hits = [len(book.packet(UdpTalk(client_port=2000 + n).to_server(query)).told(RuleHit)) for n in range(100)]
        return sum(count != 1 for count in hits)

    assert agreement("endpoints") == 100
    assert agreement("flow") < 70


def test_by_flow_each_message_of_a_flow_has_the_same_fate() -> None:
    odds = parse_odds({"value": 0.5, "per": "flow"})
    book = Playbook(ruleset(rule("alert", {"dns.qname": "www.blocked.example"}, chance=0.5, odds=odds)))
    counts = set()
    for number in range(40):
        talk = UdpTalk(client_port=3000 + number)
        query = talk.to_server(dns_query("www.blocked.example"))
        counts.add(sum(len(book.packet(query).told(RuleHit)) for _ in range(5)))
    assert counts == {0, 5}


def test_by_packet_a_miss_is_not_the_last_word() -> None:
    def hits(per: str) -> int:
        odds = parse_odds({"value": 0.5, "per": per})
        book = Playbook(ruleset(rule("drop", {"transport": "udp", "payload.length": 5}, chance=0.5, odds=odds)))
        talks = [UdpTalk(client_port=4000 + number) for number in range(60)]
        for _ in range(8):
            verdicts = [book.packet(talk.to_server(b"hello")).verdict for talk in talks]
        return sum(verdict is Verdict.DROP for verdict in verdicts)

    assert hits("packet") > 55
    assert 20 <= hits("match") <= 40


def test_loss_follows_the_hour() -> None:
    talk = UdpTalk()

    def lost(start: float) -> int:
        book = Playbook(ruleset(rule("lose", {"transport": "udp"}, probability=DAY)), start_time=start)
        return sum(book.packet(talk.to_client(b"x")).verdict is Verdict.DROP for _ in range(300))

    assert lost(NOON) == 0
    assert lost(NOON + 8 * 3600) == 300
    assert 190 < lost(NIGHT) < 245


def test_an_injector_has_odds_of_its_own() -> None:
    """Three injectors answer one connection, each or not (Wu et al., S&P 2025, Table 4)."""
    injectors = [{"flags": "R", "towards": "client"}, {"flags": "RA", "towards": "client", "probability": 0.4}]
    rules = ruleset(rule("reset", {"tls.sni": "www.blocked.example"}, placement="on-path", injectors=injectors))
    book = Playbook(rules)
    seen = []
    for number in range(60):
        talk = TcpTalk(client_port=5000 + number)
        for packet in talk.handshake():
            book.packet(packet)
        seen.append([p.flags for p in book.packet(talk.to_server(client_hello("www.blocked.example"))).injected])
    both = [TcpFlags.RST, TcpFlags.RST | TcpFlags.ACK]
    assert 12 <= seen.count(both) <= 36
    assert seen.count(both) + seen.count([TcpFlags.RST]) == 60
