"""Probes ordered and judged: who is blocked, for whom, for how long."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from gfwemu.engine.commands import SendProbes
from gfwemu.engine.events import ProbeFinished
from gfwemu.engine.records import ProbeReacted, ResidualHit, RuleHit, ServerBlocked
from gfwemu.model import Verdict, address_bytes
from gfwemu.rules.actions import Reaction
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.load import load_rules
from gfwemu.testing.playbook import Playbook, TcpTalk
from gfwemu.testing.playbook import Reaction as Came

SERVER = "203.0.113.80"
HELLO = bytes(range(200))
RULE = """
  - name: suspect
    {box}
    match: {{transport: tcp, direction: to_server, payload.number: 1, payload.length: 200}}
    action: probe
    with: {{blocks_when: [{{R1: [timeout, reset], NR2: [timeout]}}, {{R3: [data]}}]}}
    residual: {{key: {key}, seconds: 100, action: drop, direction: to_client, refresh: {refresh}}}
"""


def rules(text: str, head: str = "") -> RuleSet:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rules.yaml"
        path.write_text(f"version: 1\n{head}\nrules:\n{text}")
        return load_rules([path])


def suspects(key: str = "server_port", *, refresh: bool = False, box: str = "") -> str:
    return RULE.format(key=key, refresh=str(refresh).lower(), box=box)


def triggered(book: Playbook, port: int = 443, client_port: int = 40000) -> SendProbes:
    talk = TcpTalk(server=SERVER, port=port, client_port=client_port)
    for packet in talk.handshake():
        book.packet(packet)
    came = book.packet(talk.to_server(HELLO))
    assert came.verdict is Verdict.ACCEPT
    assert [hit.residual_seconds for hit in came.told(RuleHit) if isinstance(hit, RuleHit)] == [0.0]
    (order,) = [command for command in came.commands if isinstance(command, SendProbes)]
    return order


def finish(book: Playbook, order: SendProbes, kind: str, reaction: Reaction, *, last: bool = False) -> Came:
    prober = address_bytes("192.0.2.200")
    return book.send(ProbeFinished(order.request_id, kind, reaction, 0.5, 221, prober, 40000, last, book.now))


def convict(book: Playbook, order: SendProbes) -> Came:
    finish(book, order, "R1", "timeout")
    return finish(book, order, "NR2", "timeout", last=True)


def answer_passes(book: Playbook, *, client: str = "192.0.2.77", port: int = 443, after: float = 0.0) -> bool:
    """Whether another client's SYN is answered by the server."""
    talk = TcpTalk(client=client, server=SERVER, port=port, client_port=int(book.now * 10) % 20_000 + 30_000)
    assert book.packet(talk.syn(), after=after).verdict is Verdict.ACCEPT, "only answers are dropped"
    return book.packet(talk.syn_ack()).verdict is Verdict.ACCEPT


def test_a_hit_orders_probes_with_the_first_payload_and_the_flow_goes_on() -> None:
    order = triggered(Playbook(rules(suspects())))
    assert (order.rule, order.server, order.port, order.payload) == ("suspect", address_bytes(SERVER), 443, HELLO)


def test_reactions_convict_the_port_for_all_clients_and_for_a_while() -> None:
    book = Playbook(rules(suspects()))
    order = triggered(book)
    assert answer_passes(book)
    first = finish(book, order, "R1", "timeout")
    assert [type(record) for record in first.records] == [ProbeReacted]
    assert answer_passes(book, after=1)
    (block,) = finish(book, order, "NR2", "timeout", last=True).told(ServerBlocked)
    assert isinstance(block, ServerBlocked)
    assert (block.key, block.seconds) == ("server_port", 100)
    assert block.reactions == (("R1", "timeout"), ("NR2", "timeout"))
    assert not answer_passes(book, after=1)
    assert answer_passes(book, port=8443, after=1)
    assert not answer_passes(book, after=96)
    assert answer_passes(book, after=4)


def test_the_whole_address_is_blocked_where_the_rule_says_so() -> None:
    book = Playbook(rules(suspects("server")))
    convict(book, triggered(book))
    assert not answer_passes(book, port=8443)


def test_the_block_follows_the_censor_s_clock() -> None:
    book = Playbook(rules(suspects()), time_scale=10)
    convict(book, triggered(book))
    assert not answer_passes(book, after=9.5)
    assert answer_passes(book, after=1)


def test_whoever_meets_the_block_renews_it_where_the_rule_says_so() -> None:
    book = Playbook(rules(suspects(refresh=True)))
    convict(book, triggered(book))
    for _ in range(4):
        assert not answer_passes(book, after=90)
    assert answer_passes(book, after=101)


@pytest.mark.parametrize(
    "reactions",
    [
        [("R1", "timeout")],
        [("R1", "timeout"), ("NR2", "reset")],
        [("R1", "data"), ("R1", "timeout"), ("NR2", "timeout")],
        [("R1", "timeout"), ("NR2", "timeout"), ("NR2", "confirmed")][::-1],
        [("R1", "refused"), ("NR2", "timeout")],
    ],
)
def test_other_reactions_do_not(reactions: list[tuple[str, Reaction]]) -> None:
    book = Playbook(rules(suspects()))
    order = triggered(book)
    told = [finish(book, order, kind, reaction).told(ServerBlocked) for kind, reaction in reactions]
    assert not any(told)
    assert answer_passes(book)


def test_one_of_several_sets_of_reactions_is_enough() -> None:
    book = Playbook(rules(suspects()))
    assert finish(book, triggered(book), "R3", "data").told(ServerBlocked)


def test_what_a_server_answered_is_remembered_from_hit_to_hit_but_of_no_other() -> None:
    book = Playbook(rules(suspects()))
    finish(book, triggered(book), "R1", "timeout", last=True)
    assert not finish(book, triggered(book, 8443), "NR2", "timeout", last=True).told(ServerBlocked)
    assert finish(book, triggered(book, client_port=40001), "NR2", "timeout", last=True).told(ServerBlocked)


def test_a_block_that_lasts_is_told_once() -> None:
    book = Playbook(rules(suspects()))
    order = triggered(book)
    finish(book, order, "R1", "timeout")
    assert finish(book, order, "NR2", "timeout").told(ServerBlocked)
    finish(book, order, "R1", "timeout")
    assert finish(book, order, "NR2", "timeout").told(ServerBlocked) == []


def test_a_new_block_takes_new_evidence() -> None:
    book = Playbook(rules(suspects()))
    convict(book, triggered(book))
    book.wait(101)
    assert not finish(book, triggered(book, client_port=40001), "NR2", "timeout").told(ServerBlocked)


def test_nobody_is_blocked_by_a_reaction_that_nobody_waits_for() -> None:
    book = Playbook(rules(suspects()))
    order = triggered(book)
    convict(book, order)
    assert finish(book, order, "R3", "data").records == []
    book.replace_rules(rules("  - {name: other, match: {ip.server: 203.0.113.1}, action: alert}"))
    assert answer_passes(book)


def test_each_box_learns_of_its_own_probes_only() -> None:
    text = suspects(box="box: one") + suspects("server", box="box: two").replace("name: suspect", "name: second")
    book = Playbook(rules(text, head="boxes: {one: {}, two: {}}"))
    talk = TcpTalk(server=SERVER)
    for packet in talk.handshake():
        book.packet(packet)
    came = book.packet(talk.to_server(HELLO))
    orders = {command.rule: command for command in came.commands if isinstance(command, SendProbes)}
    assert set(orders) == {"suspect", "second"}
    told = convict(book, orders["second"]).told(ServerBlocked)
    assert [block.rule for block in told if isinstance(block, ServerBlocked)] == ["second"]
    assert not answer_passes(book, port=8443)


def test_the_block_s_hits_are_told() -> None:
    book = Playbook(rules(suspects()))
    convict(book, triggered(book))
    talk = TcpTalk(client="192.0.2.78", server=SERVER, client_port=41000)
    book.packet(talk.syn())
    (hit,) = book.packet(talk.syn_ack()).told(ResidualHit)
    assert isinstance(hit, ResidualHit)
    assert (hit.rule, hit.action, hit.key) == ("suspect", "drop", "server_port")
