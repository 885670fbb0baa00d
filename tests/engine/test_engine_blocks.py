"""Residual blocks beyond the plain ones: own resets, forged SYN/ACKs, odds, escalation, blocks of a server for all."""

from __future__ import annotations

from typing import Any

import pytest
from rulekit import client_hello, rule, ruleset

from gfwemu.engine.records import ResidualHit
from gfwemu.flow.residual import Block, ResidualTable, residual_key
from gfwemu.model import FiveTuple, Transport, Verdict, address_bytes
from gfwemu.rules.compiled import RuleSet
from gfwemu.testing.playbook import Playbook, Reaction, TcpTalk
from gfwemu.wire.packet import TcpFlags

NAME = "www.blocked.example"
SYN, ACK, RST, PSH = TcpFlags.SYN, TcpFlags.ACK, TcpFlags.RST, TcpFlags.PSH
CLIENT, OTHER = "192.0.2.10", "192.0.2.11"
# Wang et al., IMC 2017, section 2.1: for 90 seconds a SYN meets a SYN/ACK of a wrong sequence number, all else resets.
WANG = {
    "key": "2tuple",
    "seconds": 90,
    "syn": "forged_synack",
    "action": "reset",
    "injectors": [{"flags": "R"}, {"flags": "RA"}],
}


def rules(placement: str = "on-path", action: str = "reset", **residual: Any) -> RuleSet:
    return ruleset(rule(action, {"tls.sni": NAME}, placement=placement, residual=residual))


def trigger(book: Playbook, *, client: str = CLIENT, port: int = 443, client_port: int = 40_000) -> Reaction:
    talk = TcpTalk(client, port=port, client_port=client_port)
    for packet in talk.handshake():
        book.packet(packet)
    return book.packet(talk.to_server(client_hello(NAME)))


def opened(book: Playbook, *, client: str = CLIENT, port: int = 443, client_port: int = 41_000) -> Verdict | None:
    return book.packet(TcpTalk(client, port=port, client_port=client_port).syn()).verdict


def test_a_syn_meets_a_syn_ack_of_a_wrong_sequence_number_and_all_else_resets() -> None:
    book = Playbook(rules(**WANG))
    trigger(book)
    wrong = set()
    for number in range(5):
        talk = TcpTalk(client_port=41_000 + number)
        at_syn = book.packet(talk.syn())
        (syn_ack,) = at_syn.injected
        assert at_syn.verdict is Verdict.ACCEPT
        assert (syn_ack.flags, syn_ack.ack, syn_ack.dst) == (SYN | ACK, talk.client_seq, address_bytes(CLIENT))
        wrong.add(syn_ack.seq)
        real = book.packet(talk.syn_ack())
        assert real.verdict is Verdict.ACCEPT
        data = book.packet(talk.to_server(b"GET /"))
        for reaction in (real, data):
            assert {packet.flags for packet in reaction.injected} == {RST, RST | ACK}
            assert {packet.dst for packet in reaction.injected} == {address_bytes(a) for a in (CLIENT, "203.0.113.80")}
    assert len(wrong) == 5
    book.wait(90)
    assert book.packet(TcpTalk(client_port=42_000).syn()).injected == []


def test_the_resets_of_a_block_may_go_to_one_end_only() -> None:
    book = Playbook(rules(key="3tuple", towards="client"))
    assert len(trigger(book).injected) == 2
    assert len(book.packet(TcpTalk(client_port=41_000).syn()).injected) == 1


@pytest.mark.parametrize(("per", "mixed"), [("match", False), ("flow", False), ("packet", True)])
def test_a_block_meets_some_flows_or_some_packets(per: str, mixed: bool) -> None:
    book = Playbook(rules("in-path", key="3tuple", probability={"value": 0.5, "per": per}))
    trigger(book)
    fates = []
    for number in range(60):
        talk = TcpTalk(client_port=41_000 + number)
        fates.append({book.packet(talk.syn()).verdict for _ in range(8)})
    assert any(len(fate) == 2 for fate in fates) is mixed
    assert {verdict for fate in fates for verdict in fate} == {Verdict.ACCEPT, Verdict.DROP}


def test_the_odds_of_a_block_follow_the_hour() -> None:
    hours = {"hours": {0: 0.0, 12: 1.0}}
    book = Playbook(rules("in-path", key="3tuple", seconds="1d", probability=hours), start_time=11.9 * 3600)
    trigger(book)
    assert opened(book) is Verdict.ACCEPT
    book.wait(3600)
    assert opened(book, client_port=41_001) is Verdict.DROP


def test_a_server_is_blocked_for_all_clients() -> None:
    book = Playbook(rules("in-path", "drop", key="server", seconds=60))
    reaction = trigger(book)
    (watch,) = reaction.watches
    assert (watch.client, watch.server, watch.server_port, watch.proto) == (b"", address_bytes("203.0.113.80"), None, 0)
    assert opened(book, client=OTHER) is Verdict.DROP
    assert opened(book, client=OTHER, port=22) is Verdict.DROP
    assert book.packet(TcpTalk(OTHER, "203.0.113.81").syn()).verdict is Verdict.ACCEPT
    book.wait(60)
    assert opened(book, client=OTHER, client_port=41_005) is Verdict.ACCEPT


def test_a_port_of_a_server_is_blocked_for_all_clients() -> None:
    book = Playbook(rules("in-path", "drop", key="server_port", direction="to_client"))
    (watch,) = trigger(book).watches
    assert (watch.client, watch.server_port, watch.proto) == (b"", 443, Transport.TCP)
    talk = TcpTalk(OTHER, client_port=41_000)
    assert book.packet(talk.syn()).verdict is Verdict.ACCEPT
    assert book.packet(talk.syn_ack()).verdict is Verdict.DROP
    other = TcpTalk(OTHER, client_port=41_000, port=22)
    assert [book.packet(packet).verdict for packet in other.handshake()] == [Verdict.ACCEPT] * 3


def test_a_block_that_is_renewed_on_use_lasts_as_long_as_it_is_used() -> None:
    """Tor bridges, 2018: whole address, 12 hours, renewed (Dunna et al., FOCI 2018)."""
    book = Playbook(rules("in-path", "drop", key="server", seconds="12h", refresh=True))
    trigger(book)
    for number in range(10):
        book.wait(11.9 * 3600)
        assert opened(book, client=OTHER, client_port=41_000 + number) is Verdict.DROP
    book.wait(12.1 * 3600)
    assert opened(book, client=OTHER, client_port=42_000) is Verdict.ACCEPT


@pytest.mark.parametrize("wide", ["2tuple", "server"])
def test_a_second_port_costs_a_server_its_address(wide: str) -> None:
    """net4people/bbs issue 129: the port first, the whole address when it changes."""
    residual = {"key": "3tuple", "seconds": 1200, "escalate": {"key": wide, "seconds": 86_400}}
    book = Playbook(rules("in-path", "drop", **residual))
    trigger(book)
    assert opened(book, port=22) is Verdict.ACCEPT
    reaction = trigger(book, port=8443, client_port=40_001)
    assert [watch.server_port for watch in reaction.watches] == [8443, None]
    assert opened(book, port=22, client_port=41_001) is Verdict.DROP
    assert (opened(book, client=OTHER) is Verdict.DROP) is (wide == "server")
    book.wait(80_000)
    talk = TcpTalk(client_port=41_002, port=22)
    met = book.packet(talk.syn())
    assert met.verdict is Verdict.DROP
    (hit,) = met.told(ResidualHit)
    assert isinstance(hit, ResidualHit)
    assert hit.key == wide


def test_the_same_port_again_and_a_port_after_the_block_do_not_widen_it() -> None:
    book = Playbook(rules("on-path", key="4tuple", seconds=100, escalate={"ports": 2}))
    trigger(book)
    trigger(book, client_port=40_001)
    assert book.packet(TcpTalk(client_port=41_000, port=22).syn()).injected == []
    book.wait(101)
    trigger(book, client_port=40_002, port=8443)
    assert book.packet(TcpTalk(client_port=41_001, port=22).syn()).injected == []
    trigger(book, client_port=40_003, port=9443)
    assert book.packet(TcpTalk(client_port=41_002, port=22).syn()).injected


def test_a_trigger_that_does_not_renew_its_block_does_not_keep_the_port_in_mind() -> None:
    book = Playbook(rules("on-path", key="3tuple", seconds=100, probability=0.0001, escalate={"ports": 2}))
    trigger(book)
    book.wait(90)
    # The first block spares nearly all flows, so the rule may fire again while it lasts.
    trigger(book, client_port=40_001)
    book.wait(20)
    assert [watch.server_port for watch in trigger(book, client_port=40_002, port=8443).watches] == [8443]


def test_what_is_noted_of_ports_is_bounded() -> None:
    table = ResidualTable(limit=10)
    one = rule("drop", {}, name="one")
    for number in range(100):
        flow = FiveTuple(Transport.TCP, number.to_bytes(4, "big"), 1, b"\1\1\1\1", 443)
        block = Block("3tuple", residual_key("3tuple", flow), one, 0.0, 10.0, 10.0)
        assert table.ports_blocked(block, flow, 0.0) == 1
    assert len(table._ports) == 10


def test_a_faster_clock_ends_a_block_and_its_watch_sooner() -> None:
    book = Playbook(rules("in-path", key="server", seconds=180), time_scale=60)
    (watch,) = trigger(book).watches
    assert watch.seconds == pytest.approx(3.0)
    book.wait(2.9)
    assert opened(book) is Verdict.DROP
    book.wait(0.2)
    assert opened(book, client_port=41_001) is Verdict.ACCEPT
