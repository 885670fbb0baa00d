"""What reset injectors put on the wire: bursts, triples, numbers; and rules that act at every packet that matches."""

from __future__ import annotations

from typing import Any

import pytest
from rulekit import client_hello, rule, ruleset

from gfwemu.engine.records import RuleHit
from gfwemu.model import Direction, Verdict, address_bytes
from gfwemu.rules.compiled import CompiledRule
from gfwemu.testing.playbook import Playbook, TcpTalk
from gfwemu.wire.packet import Packet, TcpFlags

SERVER = "203.0.113.80"
NAME = "www.blocked.example"
RST_ACK = TcpFlags.RST | TcpFlags.ACK
TRIPLE = {
    "flags": "RA",
    "count": 3,
    "ttl": {"increment_from": "60-200"},
    "window": {"increment_from": "0-5000"},
    "towards": "client",
}


def on_flags(*flags: str, **parameters: Any) -> list[CompiledRule]:
    """Alternatives of one rule, one for each combination of flags."""
    return [
        rule("reset", {"ip.server": SERVER, "tcp.flags": one}, placement="on-path", repeat=True, **parameters)
        for one in flags
    ]


def hello(book: Playbook, talk: TcpTalk, name: str = NAME) -> list[Packet]:
    for packet in talk.handshake():
        book.packet(packet)
    return [*book.packet(talk.to_server(client_hello(name))).injected, *book.wait(0.1).injected]


def test_window_and_ttl_of_a_triple_count_up_together_from_bases_that_differ() -> None:
    """net4people/bbs issue 285: windows 4229, 4230, 4231 with TTLs 65, 66, 67; 162, 163, 164 with 191, 192, 193."""
    book = Playbook(ruleset(rule("reset", {"tls.sni": NAME}, placement="on-path", injectors=[TRIPLE])))
    bases = set()
    for number in range(12):
        talk = TcpTalk(client_port=2000 + number)
        packets = hello(book, talk)
        first = packets[0]
        assert [(p.window - first.window, p.ttl - first.ttl) for p in packets] == [(0, 0), (1, 1), (2, 2)]
        assert {(p.seq, p.ack, p.flags) for p in packets} == {(talk.server_seq, talk.client_seq, RST_ACK)}
        assert 60 <= first.ttl <= 200
        bases.add((first.window, first.ttl))
    assert len(bases) > 10


def test_each_end_gets_a_burst_of_its_own() -> None:
    injectors = [{**TRIPLE, "towards": "both"}]
    book = Playbook(ruleset(rule("reset", {"tls.sni": NAME}, placement="on-path", injectors=injectors)))
    packets = hello(book, TcpTalk())
    for dst in (SERVER, "192.0.2.10"):
        windows = [p.window for p in packets if p.dst == address_bytes(dst)]
        assert windows == [windows[0], windows[0] + 1, windows[0] + 2]


def test_jitter_lets_packets_of_a_burst_change_places() -> None:
    injectors = [{**TRIPLE, "delay": "10ms", "jitter": "0-0.2ms"}]
    book = Playbook(ruleset(rule("reset", {"tls.sni": NAME}, placement="on-path", injectors=injectors)))
    orders = set()
    for number in range(20):
        packets = hello(book, TcpTalk(client_port=2000 + number))
        assert len(packets) == 3
        low = min(p.ttl for p in packets)
        orders.add(tuple(p.ttl - low for p in packets))
    assert len(orders) > 2


def test_identical_copies_stay_identical() -> None:
    """The second injector of Wu et al., S&P 2025, Table 4: three duplicates with IP IDs from a range."""
    injectors = [{"flags": "RA", "count": 3, "df": True, "ttl": "39-238", "ip_id": "163-65119", "towards": "client"}]
    book = Playbook(ruleset(rule("reset", {"tls.sni": NAME}, placement="on-path", injectors=injectors)))
    seen = [hello(book, TcpTalk(client_port=2000 + number)) for number in range(8)]
    assert all(len({p.raw for p in packets}) == 1 and len(packets) == 3 for packets in seen)
    assert len({packets[0].ip_id for packets in seen}) > 5


def test_a_syn_and_its_answer_each_set_the_resets_off() -> None:
    """1.1.1.1:443 since 2023-09 (net4people/bbs issue 285), all of TCP/443 on 2025-08-20 (gfw.report)."""
    book, talk = Playbook(ruleset(*on_flags("S", "SA", injectors=[TRIPLE]))), TcpTalk()
    at_syn = book.packet(talk.syn())
    assert at_syn.verdict is Verdict.ACCEPT
    assert {(p.seq, p.ack) for p in at_syn.injected} == {(0, talk.client_seq)}
    at_answer = book.packet(talk.syn_ack())
    assert at_answer.verdict is Verdict.ACCEPT
    assert {(p.seq, p.ack) for p in at_answer.injected} == {(talk.server_seq, talk.client_seq)}
    assert [len(reaction.injected) for reaction in (at_syn, at_answer)] == [3, 3]
    assert all(p.dst == address_bytes("192.0.2.10") for p in (*at_syn.injected, *at_answer.injected))
    # Neither bare ACKs nor data nor the client's own reset do.
    for packet in (talk.to_server(), talk.to_server(b"x"), talk.to_server(flags=int(TcpFlags.RST))):
        assert book.packet(packet).injected == []
    assert book.packet(talk.syn()).injected


def test_a_repeating_rule_ends_nothing() -> None:
    rules = ruleset(*on_flags("S", name="syn"), rule("drop", {"tls.sni": NAME}, name="sni"))
    book, talk = Playbook(rules), TcpTalk()
    for packet in talk.handshake():
        own = book.packet(packet).own
        assert own is not None
        assert not own.offload
    reaction = book.packet(talk.to_server(client_hello(NAME)))
    assert reaction.verdict is Verdict.DROP
    assert [hit.rule for hit in reaction.told(RuleHit) if isinstance(hit, RuleHit)] == ["sni"]


def test_a_repeating_rule_on_addresses_acts_at_every_packet() -> None:
    rules = ruleset(rule("reset", {"ip.server": SERVER}, placement="on-path", repeat=True, towards="client"))
    book, talk = Playbook(rules), TcpTalk()
    for packet in (*talk.handshake(), talk.to_server(b"a"), talk.to_client(b"b")):
        reaction = book.packet(packet)
        assert reaction.verdict is Verdict.ACCEPT
        assert len(reaction.injected) == 1


def test_in_path_a_repeating_rule_takes_the_packets_that_match_and_no_more() -> None:
    match = {"payload.length": 3}
    rules = ruleset(rule("reset", match, repeat=True, towards="client"))
    book, talk = Playbook(rules), TcpTalk()
    assert [book.packet(talk.to_server(data)).verdict for data in (b"one", b"three", b"two")] == [
        Verdict.DROP,
        Verdict.ACCEPT,
        Verdict.DROP,
    ]


def test_a_repeating_rule_on_names_acts_at_each_message() -> None:
    rules = ruleset(rule("reset", {"http.host": "blocked.example"}, placement="on-path", repeat=True))
    book, talk = Playbook(rules), TcpTalk(port=80)
    for packet in talk.handshake():
        book.packet(packet)
    request = b"GET / HTTP/1.1\r\nHost: blocked.example\r\n\r\n"
    assert [len(book.packet(talk.to_server(request)).injected) for _ in range(2)] == [2, 2]


def test_the_first_data_of_a_connection_to_an_address_and_port_is_reset() -> None:
    """ooni/data issue 139: handshake completes, the first data segment of any content is reset."""
    match = {"ip.server": SERVER, "port.server": 443, "direction": "to_server", "payload.number": 1}
    book, talk = Playbook(ruleset(rule("reset", match, placement="on-path"))), TcpTalk()
    for packet in talk.handshake():
        assert book.packet(packet).injected == []
    before = talk.client_seq
    resets = book.packet(talk.to_server(b"anything")).injected
    assert [p.ack for p in resets if p.dst == address_bytes("192.0.2.10")] == [before + 8]


@pytest.mark.parametrize(("flags", "expected"), [("PA", 0x18), ("PAF", 0x19)])
def test_a_racing_redirect_is_one_segment_with_its_own_flags(flags: str, expected: int) -> None:
    """1.1.1.1:80 from 2023-10: 301 with PSH+ACK, 302 with PSH+ACK+FIN, fixed IP IDs; the real reply still arrives."""
    injectors = [{"flags": flags, "ip_id": 0x4C57, "ttl": 251, "towards": "client"}]
    parameters = {"location": "http://203.0.113.250/", "status": 302, "injectors": injectors}
    book = Playbook(ruleset(rule("redirect", {"http.method": "GET"}, placement="on-path", **parameters)))
    talk = TcpTalk(port=80)
    for packet in talk.handshake():
        book.packet(packet)
    reaction = book.packet(talk.to_server(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"))
    (packet,) = reaction.injected
    assert reaction.verdict is Verdict.ACCEPT
    assert (packet.flags, packet.ip_id, packet.ttl, packet.seq) == (expected, 0x4C57, 251, talk.server_seq)
    assert packet.payload.startswith(b"HTTP/1.1 302 Found\r\n")
    assert b"Location: http://203.0.113.250/\r\n" in packet.payload
    assert book.packet(talk.to_client(b"HTTP/1.1 200 OK\r\n\r\n")).verdict is Verdict.ACCEPT


def test_a_null_route_in_one_direction_lets_requests_through() -> None:
    """Server to client only (Alice et al., IMC 2020, section 6): the SYN arrives, its answer does not."""
    match = {"ip.server": SERVER, "port.server": 443}
    book, talk = Playbook(ruleset(rule("drop", match, direction=Direction.TO_CLIENT.value))), TcpTalk()
    assert book.packet(talk.syn()).verdict is Verdict.ACCEPT
    assert book.packet(talk.syn_ack()).verdict is Verdict.DROP
    assert book.packet(talk.syn()).verdict is Verdict.ACCEPT
