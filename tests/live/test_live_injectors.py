"""Injectors in the shapes that were measured in China, on the wire: DNS answers, resets, SYN/ACKs, redirects."""

from __future__ import annotations

import pytest
from dnslib import DNSHeader, DNSQuestion, DNSRecord
from live_kit import Client
from live_nodes import Node, Seen, packed
from live_tls import Hello, outcome

from gfwemu.netlab.internet.plan import Site

pytestmark = pytest.mark.kernel

POOL = ("203.0.113.250", "203.0.113.251", "203.0.113.252")
RULES = f"""version: 1
defaults: {{seed: 9}}
rules:
  - name: dns-1
    match: {{dns.qname: google.example, dns.response: false, transport: udp, port.server: 53}}
    action: poison
    placement: on-path
    with:
      a: [{POOL[0]}]
      other_types: a
      injectors: [{{ttl: increment, answer_ttl: 60, dns_flags: 0x8580, dns_flags_no_rd: 0x8480}}]
  - name: dns-2
    match: {{dns.qname: [google.example, listed.example], dns.response: false, transport: udp, port.server: 53}}
    action: poison
    placement: on-path
    with:
      a: [{POOL[1]}, {POOL[2]}]
      aaaa: teredo
      other_types: a
      injectors: [{{ttl: 100-200, df: true, answer_ttl: 61-300, delay: 0.1ms}}]
  - name: dns-3
    match: {{dns.qname: [google.example, listed.example], dns.response: false, transport: udp, port.server: 53}}
    action: poison
    placement: on-path
    with:
      a: [{POOL[2]}]
      aaaa: ["2001:db8:f130:83:face:b00c:0:25de"]
      other_types: a
      injectors: [{{ttl: mirror, ip_id: 0, answer_ttl: 61-300, delay: 0.2ms, dns_flags_no_rd: 0x8400}}]
  - {{name: dns-tcp, match: {{dns.qname: listed.example, transport: tcp}}, action: reset, placement: on-path}}
  - name: handshake
    match: {{ip.server: [203.0.113.101, "2001:db8:f::101"], port.server: 443, tcp.flags: [S, SA]}}
    action: reset
    placement: on-path
    repeat: true
    with:
      towards: client
      injectors: [{{count: 3, ttl: {{increment_from: 60-200}}, window: {{increment_from: 0-5000}}, ip_id: 0}}]
  - name: wrong
    match: {{tls.sni: wrong.example}}
    action: reset
    placement: on-path
    residual:
      key: 3tuple
      seconds: 20
      syn: forged_synack
      action: reset
      injectors: [{{flags: R, window: 1000}}, {{flags: RA, window: 1001}}]
  - name: racing
    match: {{http.host: racing.example}}
    action: redirect
    placement: on-path
    with:
      location: http://www.allowed.example/
      injectors: [{{flags: PAF, ttl: 251, ip_id: 0x4c57, towards: client}}]
"""
NAMES = ("handshake", "wrong", "racing")
SITES = [
    Site(names=(f"{name}.example",), v4=(f"203.0.113.{number}",), v6=(f"2001:db8:f::{number}",))
    for number, name in enumerate(NAMES, 101)
]
LAB = {"extra_sites": SITES}
RESOLVERS = {4: "198.51.100.53", 6: "2001:db8:53::53"}
VERSIONS = pytest.mark.parametrize("version", [4, 6])
A, AAAA, MX = 1, 28, 15
FORGED_ENDS = {*(packed(address) for address in POOL), packed("2001:db8:f130:83:face:b00c:0:25de")[-4:]}


def address_of(name: str, version: int) -> str:
    number = 101 + NAMES.index(name)
    return f"203.0.113.{number}" if version == 4 else f"2001:db8:f::{number}"


def ask(node: Node, version: int, name: str, qtype: int, *, count: int, rd: int = 1) -> list[tuple[Seen, DNSRecord]]:
    """So many answers to one query: the forged ones as they arrive, then the resolver's, whoever wins the race."""
    query = DNSRecord(DNSHeader(id=0x4711, rd=rd), q=DNSQuestion(name, qtype))
    with node.sniffer() as sniffer, node.datagrams(RESOLVERS[version], 53) as udp:
        port = udp.getsockname()[1]
        udp.send(bytes(query.pack()))

        def answers() -> list[Seen]:
            return [seen for seen in sniffer.look() if seen.packet.proto == 17 and seen.packet.five_tuple.dport == port]

        sniffer.wait(lambda: len(answers()) == count)
        # Nothing comes after the last.
        sniffer.look(0.05)
        read = [(seen, DNSRecord.parse(seen.packet.payload)) for seen in answers()]
    return sorted(read, key=lambda one: not is_forged(one[1]))


def is_forged(answer: DNSRecord) -> bool:
    return len(answer.rr) == 1 and bytes(answer.rr[0].rdata.data)[-4:] in FORGED_ENDS


@VERSIONS
def test_three_injectors_answer_one_query_and_then_the_resolver(client_node: Node, version: int) -> None:
    answers = ask(client_node, version, "google.example", A, count=4)
    flags = [int.from_bytes(seen.packet.payload[2:4], "big") for seen, _ in answers]
    assert flags[:3] == [0x8580, 0x8180, 0x8180]
    assert [str(answer.rr[0].rdata) for _, answer in answers[:1]] == [POOL[0]]
    assert str(answers[2][1].rr[0].rdata) == POOL[2]
    assert all(len(answer.rr) == 1 and not answer.auth and not answer.ar for _, answer in answers[:3])
    first, second, third = (seen.packet for seen, _ in answers[:3])
    assert 99 <= second.ttl <= 199
    # The query passes the access router and the censor's own hop, the answer the access router.
    assert third.ttl == 64 - 3
    if version == 4:
        assert (second.dont_fragment, third.dont_fragment, third.ip_id) == (True, False, 0)
    assert 1 <= first.ttl <= 254


@VERSIONS
def test_only_the_injectors_that_list_the_name_answer(client_node: Node, version: int) -> None:
    answers = ask(client_node, version, "listed.example", A, count=3)
    assert [str(answer.rr[0].rdata) in POOL[1:] for _, answer in answers] == [True, True, False]


def test_types_and_flags_of_forged_answers(client_node: Node) -> None:
    two, three, _ = ask(client_node, 4, "listed.example", MX, count=3)
    assert [answer.rr[0].rtype for _, answer in (two, three)] == [A, A]
    assert [answer.questions[0].qtype for _, answer in (two, three)] == [MX, MX]
    two, three, _ = ask(client_node, 4, "listed.example", AAAA, count=3)
    teredo, fixed = (bytes(answer.rr[0].rdata.data) for _, answer in (two, three))
    assert teredo[:12] == bytes.fromhex("20010000") + bytes(8)
    assert teredo[12:] in {packed(address) for address in POOL[1:]}
    assert fixed == packed("2001:db8:f130:83:face:b00c:0:25de")
    answers = ask(client_node, 4, "listed.example", A, count=3, rd=0)
    assert int.from_bytes(answers[1][0].packet.payload[2:4], "big") == 0x8400


def test_dns_over_tcp_is_reset(client_node: Node) -> None:
    query = bytes(DNSRecord.question("listed.example").pack())
    with client_node.sniffer() as sniffer, client_node.connect(RESOLVERS[4], 53) as tcp:
        tcp.sendall(len(query).to_bytes(2, "big") + query)
        assert sniffer.wait(lambda: [s for s in sniffer.segments(sport=53, sent=False) if s.packet.flags & 4])


@VERSIONS
def test_a_syn_and_its_answer_each_bring_a_triple(client_node: Node, version: int) -> None:
    """As net4people/bbs issue 285 saw it: the client gives up at the SYN's, the server's answer brings three more."""
    with client_node.sniffer() as sniffer:
        assert outcome(lambda: client_node.connect(address_of("handshake", version), 443, timeout=3)) == "refused"

        def resets() -> list[Seen]:
            return [seen for seen in sniffer.segments(sport=443, sent=False) if seen.packet.flags & 4]

        assert sniffer.wait(lambda: len(resets()) == 6)
        packets = [seen.packet for seen in resets()]
        answer = next(s.packet for s in sniffer.segments(sport=443, sent=False) if s.packet.flags & 0x12 == 0x12)
    for triple in (packets[:3], packets[3:]):
        first = triple[0]
        assert [(p.window - first.window, p.ttl - first.ttl) for p in triple] == [(0, 0), (1, 1), (2, 2)]
    assert {p.seq for p in packets[:3]} == {0}
    assert {p.seq for p in packets[3:]} == {answer.seq + 1}
    assert {p.ack for p in packets} == {answer.ack}


@VERSIONS
def test_the_port_beside_it_is_untouched(client_node: Node, version: int) -> None:
    client_node.connect(address_of("handshake", version), 80).close()


@VERSIONS
def test_in_the_residual_time_a_syn_meets_a_wrong_syn_ack(client: Client, client_node: Node, version: int) -> None:
    address = address_of("wrong", version)
    with client_node.connect(address, 443) as tcp:
        tcp.sendall(Hello(client.lab, "wrong.example").record)
        assert outcome(lambda: tcp.recv(1)) == "reset"
    with client_node.sniffer() as sniffer:
        outcome(lambda: client_node.connect(address, 443, timeout=1).close())

        def syn_acks() -> list[Seen]:
            return [s for s in sniffer.segments(sport=443, sent=False) if s.packet.flags & 0x12 == 0x12]

        assert sniffer.wait(lambda: len(syn_acks()) >= 2)
        forged, real = syn_acks()[:2]
        assert forged.packet.seq != real.packet.seq
        assert (forged.packet.ack, forged.packet.window) == (real.packet.ack, 1000)

        def kinds() -> set[int]:
            return {s.packet.flags for s in sniffer.segments(sport=443, sent=False)}

        assert sniffer.wait(lambda: kinds() >= {0x04, 0x14})


def test_a_redirect_races_the_page(client_node: Node) -> None:
    """Which of them wins depends on the machine; both are sent."""
    with client_node.sniffer() as sniffer, client_node.connect(address_of("racing", 4), 80) as tcp:
        tcp.sendall(b"GET / HTTP/1.1\r\nHost: racing.example\r\n\r\n")

        def replies(start: bytes) -> list[Seen]:
            return [s for s in sniffer.segments(sport=80, sent=False) if s.packet.payload.startswith(start)]

        assert sniffer.wait(lambda: replies(b"HTTP/1.1 302 Found\r\n") and replies(b"HTTP/1.1 200"))
        forged, real = (replies(start)[0].packet for start in (b"HTTP/1.1 302", b"HTTP/1.1 200"))
    assert (forged.flags, forged.ip_id, forged.ttl) == (0x19, 0x4C57, 250)
    assert forged.seq == real.seq
    assert b"\r\nLocation: http://www.allowed.example/\r\n" in forged.payload
