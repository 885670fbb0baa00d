"""The censor's idea of TCP: roles, beginnings and ends of connections, and numbers that real stacks honour."""

from __future__ import annotations

import pytest
from rulekit import Holds, client_hello, rule, ruleset

from gfwemu.engine.records import FlowEnded, RuleHit
from gfwemu.flow.options import TcpOptions, Teardown
from gfwemu.model import Direction, FiveTuple, Side, Verdict, address_bytes
from gfwemu.testing.playbook import Playbook, Reaction, TcpTalk
from gfwemu.wire.build import build_tcp
from gfwemu.wire.packet import Packet, TcpFlags

BLOCKED = {"tls.sni": "www.blocked.example"}
HELLO = client_hello("www.blocked.example")
FIN, SYN, RST, ACK, PSH = (int(flag) for flag in (TcpFlags.FIN, TcpFlags.SYN, TcpFlags.RST, TcpFlags.ACK, TcpFlags.PSH))


def connected(book: Playbook, talk: TcpTalk) -> None:
    for packet in talk.handshake():
        assert book.packet(packet).verdict is Verdict.ACCEPT


def hits(reaction: Reaction) -> list[str]:
    return [record.rule for record in reaction.told(RuleHit) if isinstance(record, RuleHit)]


def at_server(reaction: Reaction) -> Packet:
    (packet,) = [packet for packet in reaction.injected if packet.dst == address_bytes("203.0.113.80")]
    return packet


# -- numbers of forged segments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["on-path", "in-path"])
def test_out_of_order_a_reset_still_bears_the_number_that_the_server_wants(placement: str) -> None:
    book, talk = Playbook(ruleset(rule("reset", BLOCKED, placement=placement))), TcpTalk()
    connected(book, talk)
    start = talk.client_seq
    assert hits(book.packet(talk.to_server(HELLO[100:], seq=start + 100))) == []
    reaction = book.packet(talk.to_server(HELLO[:100], seq=start))
    assert hits(reaction) == ["reset"]
    # On-path both segments reach the server; in-path it still waits for the first, which was taken.
    assert at_server(reaction).seq == (start + len(HELLO) if placement == "on-path" else start)


def test_a_retransmission_that_brings_more_is_reset_where_the_new_bytes_begin() -> None:
    book, talk = Playbook(ruleset(rule("reset", BLOCKED))), TcpTalk()
    connected(book, talk)
    start = talk.client_seq
    book.packet(talk.to_server(HELLO[:50], seq=start))
    reaction = book.packet(talk.to_server(HELLO, seq=start))
    assert hits(reaction) == ["reset"]
    assert at_server(reaction).seq == start + 50


def test_a_reset_after_data_with_fin_counts_the_fin() -> None:
    tcp = TcpOptions(teardown={"rst": Teardown()})
    book, talk = Playbook(ruleset(rule("reset", BLOCKED, placement="on-path"), tcp=tcp)), TcpTalk()
    connected(book, talk)
    start = talk.client_seq
    reaction = book.packet(talk.to_server(HELLO, flags=FIN | PSH | ACK))
    assert at_server(reaction).seq == start + len(HELLO) + 1


def test_a_reset_is_never_answered_with_a_reset() -> None:
    book, talk = Playbook(ruleset(rule("reset", {"ip.server": "203.0.113.80"}, placement="on-path"))), TcpTalk()
    reaction = book.packet(talk.to_server(flags=RST))
    assert hits(reaction) == ["reset"]
    assert reaction.injected == []


# -- what the stream holds -----------------------------------------------------------------------------------------


def test_data_on_a_syn_is_read() -> None:
    book, talk = Playbook(ruleset(rule("drop", BLOCKED))), TcpTalk()
    seq = talk.client_seq
    syn = build_tcp(talk.tuple, seq=seq, ack=0, flags=SYN, payload=HELLO[:60])
    assert book.packet(syn).verdict is Verdict.ACCEPT
    book.packet(talk.syn_ack())
    rest = build_tcp(talk.tuple, seq=seq + 61, ack=talk.server_seq, flags=PSH | ACK, payload=HELLO[60:])
    assert book.packet(rest).verdict is Verdict.DROP


def test_keep_alives_and_repeats_before_the_data_do_not_hide_it() -> None:
    book, talk = Playbook(ruleset(rule("drop", BLOCKED))), TcpTalk()
    connected(book, talk)
    start = talk.client_seq
    book.packet(talk.to_server(b"\0", seq=start - 1, flags=ACK))
    book.packet(talk.to_server(HELLO[:30], seq=start))
    book.packet(talk.to_server(b"\0", seq=start + 29, flags=ACK))
    book.packet(talk.to_server(HELLO[:30], seq=start))
    assert book.packet(talk.to_server(HELLO[30:], seq=start + 30)).verdict is Verdict.DROP


def test_a_syn_ack_says_where_the_client_begins() -> None:
    book, talk = Playbook(ruleset(rule("drop", BLOCKED), tcp=TcpOptions(create_on="both"))), TcpTalk()
    talk.syn()
    assert book.packet(talk.syn_ack(), came_from=Side.OUTSIDE).verdict is Verdict.ACCEPT
    start = talk.client_seq
    assert book.packet(talk.to_server(HELLO[40:], seq=start + 40)).verdict is Verdict.ACCEPT
    assert book.packet(talk.to_server(HELLO[:40], seq=start)).verdict is Verdict.DROP


def test_simultaneous_open_is_one_flow() -> None:
    book, talk = Playbook(ruleset(rule("drop", BLOCKED))), TcpTalk()
    book.packet(talk.syn())
    other = build_tcp(talk.tuple.reversed(), seq=talk.server_seq, ack=0, flags=SYN)
    book.packet(other)
    book.packet(build_tcp(talk.tuple, seq=talk.client_seq - 1, ack=talk.server_seq + 1, flags=SYN | ACK))
    book.packet(talk.syn_ack())
    assert book.engine.flow_count == 1
    assert book.packet(talk.to_server(HELLO)).verdict is Verdict.DROP


def test_a_censor_that_verifies_checksums_learns_nothing_from_wrong_ones() -> None:
    tcp = TcpOptions(verify_checksum=True)
    for verify in (True, False):
        book, talk = Playbook(ruleset(rule("drop", BLOCKED), tcp=tcp if verify else TcpOptions())), TcpTalk()
        connected(book, talk)
        forged = build_tcp(talk.tuple, seq=talk.client_seq, ack=talk.server_seq, flags=RST, checksum=0x1234)
        assert book.packet(forged).verdict is Verdict.ACCEPT
        expected = Verdict.DROP if verify else Verdict.ACCEPT
        assert book.packet(talk.to_server(HELLO)).verdict is expected
        # Its reset did not close the flow either: the lifetime is still that of an open one.
        closed = any(isinstance(record, FlowEnded) for record in book.packet(talk.to_server(), after=20.0).records)
        assert closed is not verify


# -- beginnings and ends -------------------------------------------------------------------------------------------


def test_after_one_fin_the_other_direction_lives_on() -> None:
    book, talk = Playbook(ruleset(rule("drop", BLOCKED | {"port.server": 443}))), TcpTalk()
    connected(book, talk)
    assert book.packet(talk.to_server(HELLO)).verdict is Verdict.DROP
    assert book.packet(talk.to_server(flags=FIN | ACK)).verdict is Verdict.DROP
    # A client repeats its FIN ever more slowly (RFC 6298 section 5.5), and finds the way still blocked.
    assert book.packet(talk.to_server(flags=FIN | ACK), after=30.0).verdict is Verdict.DROP
    assert book.packet(talk.to_client(b"answer"), after=30.0).verdict is Verdict.DROP


@pytest.mark.parametrize("closing", ["fins", "reset"])
def test_a_closed_flow_is_soon_forgotten(closing: str) -> None:
    book, talk = Playbook(ruleset(rule("drop", BLOCKED))), TcpTalk()
    connected(book, talk)
    if closing == "reset":
        book.packet(talk.to_client(flags=RST))
    else:
        book.packet(talk.to_server(flags=FIN | ACK))
        book.packet(talk.to_client(flags=FIN | ACK))
    book.packet(TcpTalk(client_port=1).syn(), after=10.1)
    assert book.engine.flow_count == 1


@pytest.mark.parametrize("offload", [True, False])
def test_port_reuse_begins_a_new_flow_with_or_without_offload(offload: bool) -> None:
    reset = rule("reset", {"ip.server": "203.0.113.80"})
    book = Playbook(ruleset(reset), offload=offload)
    for isn in (1_000, 900_000):
        talk = TcpTalk()
        talk.client_seq = isn
        assert len(book.packet(talk.syn()).injected) == 2
    # The same SYN again is a retransmission, of the flow that is silent by now.
    talk.client_seq = 900_000
    assert book.packet(talk.syn()).injected == []


def test_ports_may_be_reused_the_other_way_round() -> None:
    book, talk = Playbook(ruleset(rule("drop", BLOCKED))), TcpTalk()
    connected(book, talk)
    book.packet(talk.to_client(flags=RST))
    back = TcpTalk("203.0.113.80", "192.0.2.10", port=40000, client_port=443)
    for packet in back.handshake():
        book.packet(packet)
    reaction = book.packet(back.to_server(HELLO))
    assert reaction.verdict is Verdict.DROP
    (hit,) = reaction.told(RuleHit)
    assert isinstance(hit, RuleHit)
    assert (hit.direction, hit.flow.tuple) == (Direction.TO_SERVER, back.tuple)


@pytest.mark.parametrize(
    ("came_from", "flags", "sport", "dport", "from_server"),
    [
        (Side.INSIDE, PSH | ACK, 40000, 443, False),
        (Side.OUTSIDE, PSH | ACK, 443, 40000, True),
        (Side.INSIDE, SYN | ACK, 443, 40000, True),
        (Side.OUTSIDE, SYN, 40000, 443, False),
        (None, PSH | ACK, 443, 40000, True),
        (None, PSH | ACK, 40000, 443, False),
    ],
)
def test_roles_of_a_flow_that_is_met_in_its_middle(
    came_from: Side | None, flags: int, sport: int, dport: int, from_server: bool
) -> None:
    book = Playbook(ruleset(rule("alert", {"payload.contains": Holds(b"x")})))
    key = FiveTuple(6, address_bytes("192.0.2.10"), sport, address_bytes("203.0.113.80"), dport)
    reaction = book.packet(build_tcp(key, seq=5, ack=5, flags=flags, payload=b"x"), came_from=came_from)
    (hit,) = reaction.told(RuleHit)
    assert isinstance(hit, RuleHit)
    assert hit.flow.tuple == (key.reversed() if from_server else key)
    assert hit.direction is (Direction.TO_CLIENT if from_server else Direction.TO_SERVER)


# -- how far it reads ----------------------------------------------------------------------------------------------

UNKNOWN = {"protocol": "unknown"}


def test_what_is_too_long_to_read_counts_as_unknown() -> None:
    for limit, expected in ((len(HELLO) - 1, ["unknown"]), (len(HELLO), ["tls"])):
        rules = ruleset(
            rule("alert", UNKNOWN, name="unknown"),
            rule("alert", {"protocol": "tls"}, name="tls"),
            tcp=TcpOptions(inspect=limit),
        )
        for cut in (len(HELLO), 50):
            book, talk = Playbook(rules), TcpTalk()
            connected(book, talk)
            parts = (HELLO[:cut], HELLO[cut:] + b"\0" * 10)
            assert [hit for part in parts for hit in hits(book.packet(talk.to_server(part)))] == expected


def test_a_first_segment_that_does_not_tell_is_unknown_and_a_server_may_speak_first() -> None:
    rules = ruleset(
        rule("alert", UNKNOWN, name="unknown"),
        rule("alert", {"protocol": "tls"}, name="tls"),
        tcp=TcpOptions(reassembly="first_segment"),
    )
    for segments, expected in (((HELLO,), ["tls"]), ((HELLO[:60], HELLO[60:]), ["unknown"])):
        book, talk = Playbook(rules), TcpTalk()
        connected(book, talk)
        for _ in range(3):
            assert hits(book.packet(talk.to_client(b"\x16"))) == []
        assert [hit for segment in segments for hit in hits(book.packet(talk.to_server(segment)))] == expected


def test_segment_by_segment_what_was_recognised_once_is_not_unknown() -> None:
    rules = ruleset(rule("alert", UNKNOWN, name="unknown"), tcp=TcpOptions(reassembly="none"))
    book, talk = Playbook(rules), TcpTalk()
    connected(book, talk)
    assert hits(book.packet(talk.to_server(HELLO))) == []
    assert hits(book.packet(talk.to_client(b"\x8f" * 50))) == []
    book, talk = Playbook(rules), TcpTalk(client_port=40001)
    connected(book, talk)
    assert hits(book.packet(talk.to_server(HELLO[:60]))) == ["unknown"]
