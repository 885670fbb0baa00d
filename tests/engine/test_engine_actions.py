"""Each action: the expected happens to the traffic it names, and nothing happens to the rest."""

from __future__ import annotations

import pytest
from rulekit import Holds, client_hello, dns_query, rule, ruleset

from gfwemu.engine.records import Evidence, PacketDropped, ResidualHit, RuleHit
from gfwemu.model import Direction, Verdict, address_bytes
from gfwemu.rules.compiled import TcpOptions
from gfwemu.testing.playbook import Playbook, Reaction, TcpTalk, UdpTalk
from gfwemu.wire.packet import Packet, TcpFlags

BLOCKED = {"tls.sni": "www.blocked.example"}
RST, FIN, ACK, PSH = TcpFlags.RST, TcpFlags.FIN, TcpFlags.ACK, TcpFlags.PSH


def connected(book: Playbook, talk: TcpTalk) -> None:
    for packet in talk.handshake():
        assert book.packet(packet).verdict is Verdict.ACCEPT


def hello(book: Playbook, talk: TcpTalk, name: str = "www.blocked.example") -> Reaction:
    connected(book, talk)
    return book.packet(talk.to_server(client_hello(name)))


def towards(packets: list[Packet], address: str) -> list[Packet]:
    return [packet for packet in packets if packet.dst == address_bytes(address)]


def only_hit(reaction: Reaction) -> RuleHit:
    hits = reaction.told(RuleHit)
    assert len(hits) == 1
    assert isinstance(hits[0], RuleHit)
    return hits[0]


@pytest.mark.parametrize("seen", [(0,), (0, 1, 2)])
def test_a_hit_counts_the_handshake_though_its_end_passes_unseen(seen: tuple[int, ...]) -> None:
    book, talk = Playbook(ruleset(rule("drop", BLOCKED))), TcpTalk()
    handshake = list(talk.handshake())
    for place in seen:
        book.packet(handshake[place])
    hit = only_hit(book.packet(talk.to_server(client_hello("www.blocked.example"))))
    assert hit.packet_number == 4


def test_sni_drop_silences_the_flow_and_no_other() -> None:
    book, talk = Playbook(ruleset(rule("drop", BLOCKED))), TcpTalk()
    reaction = hello(book, talk)
    assert reaction.verdict is Verdict.DROP
    assert reaction.injected == []
    hit = only_hit(reaction)
    assert (hit.rule, hit.packet_number, hit.direction) == ("drop", 4, Direction.TO_SERVER)
    assert hit.evidence[0].value == "www.blocked.example"
    assert b"www.blocked.example" in hit.evidence[0].excerpt
    assert book.packet(talk.to_client(b"x")).verdict is Verdict.DROP
    other = TcpTalk(client_port=40001)
    assert hello(book, other, "www.allowed.example").verdict is Verdict.ACCEPT
    assert book.packet(other.to_client(b"x")).verdict is Verdict.ACCEPT


def test_a_passing_flow_is_offloaded_once_no_rule_can_fire() -> None:
    book, talk = Playbook(ruleset(rule("drop", BLOCKED))), TcpTalk()
    for packet in talk.handshake():
        own = book.packet(packet).own
        assert own is not None
        assert not own.offload
    own = book.packet(talk.to_server(client_hello("www.allowed.example"))).own
    assert own is not None
    assert own.offload
    assert own.verdict is Verdict.ACCEPT


@pytest.mark.parametrize("placement", ["on-path", "in-path"])
def test_reset_hits_both_ends_with_numbers_they_honour(placement: str) -> None:
    book, talk = Playbook(ruleset(rule("reset", BLOCKED, placement=placement))), TcpTalk()
    connected(book, talk)
    payload = client_hello("www.blocked.example")
    before = talk.client_seq
    reaction = book.packet(talk.to_server(payload))
    assert reaction.verdict is (Verdict.ACCEPT if placement == "on-path" else Verdict.DROP)
    (to_client,) = towards(reaction.injected, "192.0.2.10")
    (to_server,) = towards(reaction.injected, "203.0.113.80")
    assert to_client.flags == to_server.flags == RST | ACK
    assert (to_client.seq, to_client.ack) == (talk.server_seq, before + len(payload))
    assert to_server.seq == (before + len(payload) if placement == "on-path" else before)
    assert to_server.ack == talk.server_seq


def test_injectors_shape_their_packets() -> None:
    injectors = [
        {"flags": "R", "ttl": "55-118", "ip_id": 0, "towards": "client"},
        {"flags": "RA", "count": 3, "df": True, "ttl": "mirror", "window": "100-200", "towards": "client"},
        {"flags": "RA", "ttl": 58, "ip_id": 1, "payload": "01 02 03", "seq_offsets": [0, 1460], "towards": "client"},
    ]
    book, talk = Playbook(ruleset(rule("reset", BLOCKED, placement="on-path", injectors=injectors))), TcpTalk()
    first, *rest = hello(book, talk).injected
    assert first.flags == RST
    assert 55 <= first.ttl <= 118
    assert (first.ip_id, first.ack, first.dont_fragment) == (0, 0, False)
    triple, henan = rest[:3], rest[3:]
    assert [packet.raw for packet in triple] == [triple[0].raw] * 3
    assert triple[0].ttl == 64
    assert triple[0].dont_fragment
    assert 100 <= triple[0].window <= 200
    assert [packet.seq - talk.server_seq for packet in henan] == [0, 1460]
    assert all((packet.payload, packet.ip_id, packet.ttl) == (b"\x01\x02\x03", 1, 58) for packet in henan)


def test_a_delayed_injection_leaves_after_its_delay() -> None:
    injectors = [{"delay": "15ms"}]
    book, talk = Playbook(ruleset(rule("reset", BLOCKED, placement="on-path", injectors=injectors))), TcpTalk()
    reaction = hello(book, talk)
    assert reaction.verdict is Verdict.ACCEPT
    assert reaction.injected == []
    assert book.wait(0.0149).injected == []
    assert len(book.wait(0.0002).injected) == 2


def test_reset_of_a_syn_is_accepted_by_the_client() -> None:
    book, talk = Playbook(ruleset(rule("reset", {"ip.server": "203.0.113.80"}, towards="client"))), TcpTalk()
    reaction = book.packet(talk.syn())
    assert reaction.verdict is Verdict.DROP
    (reset,) = reaction.injected
    assert (reset.seq, reset.ack, reset.flags) == (0, talk.client_seq, RST | ACK)


def test_fin_closes_in_order() -> None:
    book, talk = Playbook(ruleset(rule("fin", BLOCKED))), TcpTalk()
    reaction = hello(book, talk)
    assert {packet.flags for packet in reaction.injected} == {FIN | ACK}
    assert len(reaction.injected) == 2


def test_rewrite_to_reset_turns_server_packets_into_resets() -> None:
    book, talk = Playbook(ruleset(rule("rewrite_to_reset", BLOCKED))), TcpTalk()
    reaction = hello(book, talk)
    assert reaction.verdict is Verdict.ACCEPT
    assert reaction.own is not None
    assert reaction.own.data is None
    seq = talk.server_seq
    answer = book.packet(talk.to_client(b"server hello")).own
    assert answer is not None
    assert answer.verdict is Verdict.ACCEPT
    assert answer.data is not None
    from gfwemu.wire.parse import parse_packet

    rewritten = parse_packet(answer.data)
    assert isinstance(rewritten, Packet)
    assert (rewritten.flags, rewritten.seq, rewritten.payload) == (RST | ACK, seq, b"")


@pytest.mark.parametrize(
    ("parameters", "qtype", "answer"),
    [
        ({"a": ["203.0.113.1"]}, 1, b"\xcb\x00\x71\x01"),
        ({"aaaa": ["2001:db8::1"]}, 28, bytes.fromhex("20010db8000000000000000000000001")),
        ({"rcode": "nxdomain"}, 1, b""),
        ({"a": ["203.0.113.1"]}, 28, b""),
    ],
)
def test_poison_answers_what_was_asked(parameters: dict[str, object], qtype: int, answer: bytes) -> None:
    poison = rule("poison", {"dns.qname": "www.blocked.example"}, placement="on-path", **parameters)
    book, talk = Playbook(ruleset(poison)), UdpTalk()
    reaction = book.packet(talk.to_server(dns_query("www.blocked.example", qtype)))
    assert reaction.verdict is Verdict.ACCEPT
    (forged,) = reaction.injected
    assert forged.src == address_bytes("203.0.113.53")
    assert (forged.sport, forged.dport) == (53, 50000)
    assert forged.payload[:2] == b"\x12\x34"
    assert forged.payload[2] & 0x80
    rcode = forged.payload[3] & 0x0F
    assert rcode == (3 if parameters.get("rcode") == "nxdomain" else 0)
    assert forged.payload[6:8] == (b"\x00\x01" if answer else b"\x00\x00")
    if answer:
        assert forged.payload.endswith(answer)
    again = book.packet(talk.to_server(dns_query("www.blocked.example", qtype)))
    assert len(again.injected) == 1
    innocent = book.packet(talk.to_server(dns_query("www.allowed.example", qtype)))
    assert innocent.verdict is Verdict.ACCEPT
    assert innocent.injected == []


def test_in_path_poison_takes_the_query_and_leaves_the_flow() -> None:
    book, talk = Playbook(ruleset(rule("poison", {"dns.qname": "b.example"}, a=["203.0.113.1"]))), UdpTalk()
    assert book.packet(talk.to_server(dns_query("b.example"))).verdict is Verdict.DROP
    assert book.packet(talk.to_server(dns_query("a.example"))).verdict is Verdict.ACCEPT


def test_pools_are_cycled_and_the_header_may_mirror() -> None:
    pool = ["203.0.113.1", "203.0.113.2"]
    poison = rule("poison", {"dns.qname": "b.example"}, a=pool, injectors=[{"ttl": "mirror", "authoritative": True}])
    book, talk = Playbook(ruleset(poison)), UdpTalk()
    answers = [book.packet(talk.to_server(dns_query("b.example"), ttl=9)).injected[0] for _ in range(3)]
    assert [answer.payload[-4:].hex() for answer in answers] == ["cb007101", "cb007102", "cb007101"]
    assert {answer.ttl for answer in answers} == {9}
    assert all(answer.payload[2] & 0x04 for answer in answers)


REQUEST = b"GET /x HTTP/1.1\r\nHost: www.blocked.example\r\n\r\n"
HOST = {"http.host": "www.blocked.example"}


@pytest.mark.parametrize(
    ("action", "parameters", "expected"),
    [
        ("blockpage", {"body": "No entry\n"}, (b"HTTP/1.1 451 Unavailable For Legal Reasons\r\n", b"No entry\n")),
        ("redirect", {"location": "http://stub.example/"}, (b"HTTP/1.1 302 Found\r\n", b"\r\n\r\n")),
    ],
)
def test_content_reaches_the_client_in_order(
    action: str, parameters: dict[str, object], expected: tuple[bytes, bytes]
) -> None:
    book, talk = Playbook(ruleset(rule(action, HOST, **parameters))), TcpTalk(port=80)
    connected(book, talk)
    start = talk.server_seq
    reaction = book.packet(talk.to_server(REQUEST))
    assert reaction.verdict is Verdict.DROP
    page, fin = towards(reaction.injected, "192.0.2.10")
    assert page.seq == start
    assert page.payload.startswith(expected[0])
    assert page.payload.endswith(expected[1])
    assert fin.flags == FIN | ACK
    assert fin.seq == start + len(page.payload)
    (reset,) = towards(reaction.injected, "203.0.113.80")
    assert reset.flags == RST | ACK


def test_a_long_block_page_is_cut_into_segments_in_order() -> None:
    book, talk = Playbook(ruleset(rule("blockpage", HOST, body="x" * 5000))), TcpTalk(port=80)
    connected(book, talk)
    start = talk.server_seq
    pieces = towards(book.packet(talk.to_server(REQUEST)).injected, "192.0.2.10")
    assert max(len(piece.payload) for piece in pieces) <= 1200
    position = start
    for piece in pieces:
        assert piece.seq == position
        position += len(piece.payload)
    assert b"".join(piece.payload for piece in pieces).count(b"x" * 5000) == 1


def test_tls_alert_is_a_record_of_seven_bytes() -> None:
    book, talk = Playbook(ruleset(rule("tls_alert", BLOCKED))), TcpTalk()
    alert, fin = towards(hello(book, talk).injected, "192.0.2.10")
    assert alert.payload == bytes.fromhex("15030300020231")
    assert fin.flags == FIN | ACK


def test_redirect_to_another_server_works_both_ways() -> None:
    book = Playbook(ruleset(rule("redirect", {"ip.server": "203.0.113.80"}, address=["203.0.113.99"], port=8443)))
    talk = TcpTalk()
    syn = book.packet(talk.syn()).own
    assert syn is not None
    assert syn.data is not None
    from gfwemu.wire.build import replace_endpoints
    from gfwemu.wire.parse import parse_packet

    sent = parse_packet(syn.data)
    assert isinstance(sent, Packet)
    assert (sent.dst, sent.dport) == (address_bytes("203.0.113.99"), 8443)
    answer = parse_packet(talk.syn_ack())
    assert isinstance(answer, Packet)
    back = book.packet(replace_endpoints(answer, src=address_bytes("203.0.113.99"), sport=8443)).own
    assert back is not None
    assert back.data == answer.raw


def test_a_redirected_packet_that_is_lost_brings_no_new_bytes_with_its_drop() -> None:
    match = {"ip.server": "203.0.113.80"}
    book = Playbook(ruleset(rule("lose", match, probability=1.0), rule("redirect", match, address=["203.0.113.99"])))
    own = book.packet(TcpTalk().syn()).own
    assert own is not None
    assert (own.verdict, own.data) == (Verdict.DROP, None)


@pytest.mark.parametrize("version", [4, 6])
def test_icmp_unreachable_answers_each_packet(version: int) -> None:
    server, client = ("203.0.113.80", "192.0.2.10") if version == 4 else ("2001:db8::80", "2001:db8:1::10")
    book = Playbook(ruleset(rule("icmp_unreachable", {"ip.server": server})))
    talk = TcpTalk(client, server)
    for _ in range(2):
        reaction = book.packet(talk.syn())
        assert reaction.verdict is Verdict.DROP
        (icmp,) = reaction.injected
        assert icmp.dst == address_bytes(client)
        assert icmp.icmp_type == (3 if version == 4 else 1)


def test_police_drops_the_excess_at_the_rate() -> None:
    throttle = rule("throttle", {"ip.server": "203.0.113.53"}, rate="80kbit", burst=1000, direction="to_server")
    book, talk = Playbook(ruleset(throttle)), UdpTalk()
    passed = sum(book.packet(talk.to_server(b"x" * 72), after=0.001).verdict is Verdict.ACCEPT for _ in range(10_000))
    assert passed * 100 == pytest.approx(10_000 * 10 + 1000, rel=0.02)
    assert book.packet(talk.to_client(b"x" * 1000)).verdict is Verdict.ACCEPT


def test_shape_holds_packets_in_order_and_bounds_the_queue() -> None:
    throttle = rule("throttle", {"ip.server": "203.0.113.53"}, rate="80kbit", mode="shape", burst=100, limit=1000)
    book, talk = Playbook(ruleset(throttle)), UdpTalk()
    first = book.packet(talk.to_server(b"x" * 72))
    assert first.verdict is Verdict.ACCEPT
    others = [book.packet(talk.to_server(b"x" * 72)) for _ in range(15)]
    assert [reaction.held for reaction in others] == [True] * 10 + [False] * 5
    released = [
        command.packet_id for command in book.wait(0.055).commands if command.__class__.__name__ == "SetVerdict"
    ]
    assert released == [reaction.packet_id for reaction in others[:5]]
    assert len(book.wait(10).commands) >= 5
    book.stop()


def test_one_bucket_for_a_rule_and_one_for_each_flow() -> None:
    for per, expected in (("rule", 2), ("flow", 4), ("subscriber", 2)):
        throttle = rule("throttle", {"transport": "udp"}, rate="8kbit", burst=250, per=per)
        book = Playbook(ruleset(throttle))
        talks = [UdpTalk(client_port=port) for port in (1, 2)]
        verdicts = [book.packet(talk.to_server(b"x" * 72)).verdict for talk in talks for _ in range(4)]
        assert verdicts.count(Verdict.ACCEPT) == expected


def test_delay_keeps_the_order() -> None:
    book, talk = Playbook(ruleset(rule("delay", {"transport": "udp"}, time="10ms-300ms"))), UdpTalk()
    held = [book.packet(talk.to_server(bytes((n,)) * 20), after=0.001) for n in range(20)]
    assert all(reaction.held for reaction in held)
    order = [command.packet_id for command in book.wait(1).commands if hasattr(command, "verdict")]
    assert order == [reaction.packet_id for reaction in held]


def test_lose_drops_its_share() -> None:
    book, talk = Playbook(ruleset(rule("lose", {"transport": "udp"}, probability=0.3)), seed=1), UdpTalk()
    lost = sum(book.packet(talk.to_server(b"x")).verdict is Verdict.DROP for _ in range(2000))
    assert 520 < lost < 680


@pytest.mark.parametrize(
    ("parameters", "passing"),
    [
        ({"packets": 25}, 25),
        ({"packets": 25, "counting": "to_client"}, 52),
        ({"packets": 3, "counting": "to_server"}, 5),
        ({"packets": 3, "payload_only": True}, 6),
    ],
)
def test_freeze_counts_packets(parameters: dict[str, object], passing: int) -> None:
    book, talk = Playbook(ruleset(rule("freeze", {"ip.server": "203.0.113.80"}, **parameters))), TcpTalk()
    packets = list(talk.handshake())
    for _ in range(40):
        packets += [talk.to_server(b"ask"), talk.to_client(b"answer")]
    verdicts = [book.packet(packet).verdict for packet in packets]
    assert verdicts == [Verdict.ACCEPT] * passing + [Verdict.DROP] * (len(verdicts) - passing)


def test_freeze_counts_bytes_of_one_direction() -> None:
    freeze = rule("freeze", {"ip.server": "203.0.113.80"}, bytes="16KB", counting="to_client", payload_only=True)
    book, talk = Playbook(ruleset(freeze)), TcpTalk()
    connected(book, talk)
    verdicts = [book.packet(talk.to_client(b"x" * 1000)).verdict for _ in range(20)]
    assert verdicts == [Verdict.ACCEPT] * 16 + [Verdict.DROP] * 4


def test_alert_only_tells_and_later_rules_still_fire() -> None:
    book = Playbook(ruleset(rule("alert", BLOCKED), rule("drop", BLOCKED)))
    reaction = hello(book, TcpTalk())
    assert [hit.action for hit in reaction.told(RuleHit) if isinstance(hit, RuleHit)] == ["alert", "drop"]
    assert reaction.verdict is Verdict.DROP


def test_pass_shields_from_later_rules() -> None:
    book = Playbook(ruleset(rule("pass", {"ip.client": "192.0.2.10"}), rule("drop", {"ip.server": "203.0.113.80"})))
    assert book.packet(TcpTalk().syn()).verdict is Verdict.ACCEPT
    assert book.packet(TcpTalk("192.0.2.11").syn()).verdict is Verdict.DROP


def test_a_keyword_in_any_packet() -> None:
    book, talk = Playbook(ruleset(rule("drop", {"payload.contains": Holds(b"forbidden")}))), TcpTalk(port=7)
    connected(book, talk)
    assert book.packet(talk.to_server(b"harmless")).verdict is Verdict.ACCEPT
    reaction = book.packet(talk.to_client(b"so forbidden!"))
    assert reaction.verdict is Verdict.DROP
    evidence = only_hit(reaction).evidence[0]
    assert isinstance(evidence, Evidence)
    assert evidence.excerpt == b"so forbidden!"


def test_drop_after_a_while_lets_the_trigger_pass() -> None:
    drop = rule("drop", BLOCKED, trigger=False, after="100ms", direction="to_server")
    book, talk = Playbook(ruleset(drop)), TcpTalk()
    assert hello(book, talk).verdict is Verdict.ACCEPT
    assert book.packet(talk.to_server(b"x"), after=0.09).verdict is Verdict.ACCEPT
    assert book.packet(talk.to_server(b"x"), after=0.02).verdict is Verdict.DROP
    assert book.packet(talk.to_client(b"x")).verdict is Verdict.ACCEPT


def test_drops_are_told_once_a_direction() -> None:
    book, syn = Playbook(ruleset(rule("drop", {"ip.server": "203.0.113.80"}))), TcpTalk().syn()
    told = [len(book.packet(syn).told(PacketDropped)) for _ in range(3)]
    assert told == [1, 0, 0]


def test_residual_block_holds_its_time_and_its_key() -> None:
    residual = {"key": "3tuple", "seconds": 180, "action": "drop", "direction": "to_server"}
    drop = rule("drop", BLOCKED, residual=residual)
    book = Playbook(ruleset(drop))
    (watch,) = hello(book, TcpTalk()).watches
    assert (watch.client_port, watch.server_port, watch.seconds) == (None, 443, 180.0)
    later = TcpTalk(client_port=40001)
    reaction = book.packet(later.syn(), after=179.9)
    assert reaction.verdict is Verdict.DROP
    assert len(reaction.told(ResidualHit)) == 1
    assert book.packet(TcpTalk(port=444, client_port=40002).syn()).verdict is Verdict.ACCEPT
    assert book.packet(TcpTalk("192.0.2.11", client_port=40003).syn()).verdict is Verdict.ACCEPT
    assert book.packet(TcpTalk(client_port=40004).syn(), after=0.2).verdict is Verdict.ACCEPT


def test_the_flow_that_began_a_block_keeps_its_own_treatment() -> None:
    freeze = rule("freeze", BLOCKED, packets=8, residual={"seconds": 60})
    book, talk = Playbook(ruleset(freeze)), TcpTalk()
    hello(book, talk)
    verdicts = [book.packet(talk.to_client(b"x")).verdict for _ in range(6)]
    assert verdicts == [Verdict.ACCEPT] * 4 + [Verdict.DROP] * 2
    assert book.packet(TcpTalk(client_port=40001).syn()).verdict is Verdict.DROP
    book, talk = (
        Playbook(ruleset(rule("drop", BLOCKED, trigger=False, after="1s", residual={"seconds": 60}))),
        TcpTalk(),
    )
    assert hello(book, talk).verdict is Verdict.ACCEPT
    assert book.packet(talk.to_server(b"x"), after=0.5).verdict is Verdict.ACCEPT
    assert book.packet(talk.to_server(b"x"), after=0.6).verdict is Verdict.DROP


def test_residual_reset_answers_every_packet_but_resets() -> None:
    book = Playbook(ruleset(rule("reset", BLOCKED, placement="on-path", residual={"seconds": 90})))
    hello(book, TcpTalk())
    talk = TcpTalk(client_port=40001)
    reaction = book.packet(talk.syn())
    assert reaction.verdict is Verdict.ACCEPT
    assert len(reaction.injected) == 2
    assert book.packet(talk.to_server(flags=int(RST))).injected == []


def test_time_scale_shortens_residual_blocks_and_not_injection_delays() -> None:
    reset = rule("reset", BLOCKED, placement="on-path", residual={"seconds": 180}, injectors=[{"delay": "20ms"}])
    book = Playbook(ruleset(reset), time_scale=60)
    (watch,) = hello(book, TcpTalk()).watches
    assert watch.seconds == pytest.approx(3.0)
    assert book.wait(0.019).injected == []
    assert len(book.wait(0.002).injected) == 2
    assert len(book.packet(TcpTalk(client_port=40001).syn(), after=2.9).told(ResidualHit)) == 1
    assert book.packet(TcpTalk(client_port=40002).syn(), after=0.2).told(ResidualHit) == []


def test_refresh_renews_the_block_with_each_packet() -> None:
    for refresh, expected in ((True, Verdict.DROP), (False, Verdict.ACCEPT)):
        drop = rule("drop", BLOCKED, residual={"seconds": 60, "refresh": refresh})
        book = Playbook(ruleset(drop))
        hello(book, TcpTalk())
        assert book.packet(TcpTalk(client_port=40001).syn(), after=50).verdict is Verdict.DROP
        assert book.packet(TcpTalk(client_port=40002).syn(), after=50).verdict is expected


def test_residual_probability_is_settled_for_each_flow() -> None:
    drop = rule("drop", BLOCKED, residual={"seconds": 180, "probability": 0.5})
    book = Playbook(ruleset(drop), seed=3)
    hello(book, TcpTalk())
    fates = []
    for port in range(200):
        talk = TcpTalk(client_port=41000 + port)
        syn = talk.syn()
        first, second = (book.packet(syn).verdict for _ in range(2))
        assert first is second
        fates.append(first)
    assert 70 < fates.count(Verdict.DROP) < 130


def test_new_rules_read_a_flow_that_the_old_ones_had_let_go() -> None:
    """Only where the engine takes flows up in the middle: under the old rules it did not follow this one."""
    for create_on, verdict in (("syn", Verdict.ACCEPT), ("any", Verdict.DROP)):
        book = Playbook(ruleset(rule("drop", {"ip.server": "203.0.113.99"})))
        talk = TcpTalk()
        connected(book, talk)
        assert book.packet(talk.to_server(b"before")).verdict is Verdict.ACCEPT
        tcp = TcpOptions(create_on=create_on)  # type: ignore[arg-type]
        book.replace_rules(ruleset(rule("drop", BLOCKED), tcp=tcp))
        assert book.packet(talk.to_server(client_hello("www.blocked.example"))).verdict is verdict
