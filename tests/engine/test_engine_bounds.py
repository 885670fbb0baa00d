"""What grows has a bound, what is measured is exact, and a bug over one packet loses no other."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from rulekit import client_hello, rule, ruleset

from gfwemu.engine.commands import SetVerdict
from gfwemu.engine.engine import Engine
from gfwemu.engine.events import PacketArrived
from gfwemu.engine.records import RuleHit
from gfwemu.flow.options import FlowOptions, FragmentOptions, TcpOptions
from gfwemu.model import FiveTuple, Side, Verdict, address_bytes
from gfwemu.rules.compiled import EngineOptions, RuleSet
from gfwemu.testing.playbook import Playbook, Reaction, TcpTalk, UdpTalk
from gfwemu.wire.build import build_ip, build_tcp, build_udp
from gfwemu.wire.packet import TcpFlags

ANY_UDP: dict[str, Any] = {"transport": "udp"}
CLIENT, SERVER = address_bytes("192.0.2.10"), address_bytes("203.0.113.80")
CLIENT6, SERVER6 = address_bytes("2001:db8::10"), address_bytes("2001:db8:f::80")


def fragments(payload: bytes, *, ip_id: int = 1, size: int = 8, six: bool = False) -> list[bytes]:
    """A UDP datagram in fragments of `size` bytes, over IPv4 or IPv6."""
    src, dst = (CLIENT6, SERVER6) if six else (CLIENT, SERVER)
    whole = build_udp(FiveTuple(17, src, 1000, dst, 53), payload)[40 if six else 20 :]
    return [
        build_ip(
            src,
            dst,
            17,
            whole[start : start + size],
            ip_id=ip_id,
            fragment_offset=start,
            more_fragments=start + size < len(whole),
        )
        for start in range(0, len(whole), size)
    ]


def limited(rules: RuleSet, hold_packets: int) -> RuleSet:
    return replace(rules, options=EngineOptions(hold_packets=hold_packets, fragments=rules.options.fragments))


def verdicts(reaction: Reaction) -> list[Verdict]:
    return [command.verdict for command in reaction.commands if isinstance(command, SetVerdict)]


# -- fragments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("six", [False, True])
def test_fragments_beyond_the_largest_packet_are_refused(six: bool) -> None:
    book = Playbook(ruleset(rule("alert", ANY_UDP)))
    src, dst = (CLIENT6, SERVER6) if six else (CLIENT, SERVER)
    first, *_ = fragments(bytes(2000), size=1400, six=six)
    last = build_ip(src, dst, 17, bytes(1400), ip_id=1, fragment_offset=65_528)
    assert book.packet(first).held
    assert verdicts(book.packet(last)) == [Verdict.DROP, Verdict.DROP]
    book.stop()


def test_fragments_leave_no_timers_behind() -> None:
    book = Playbook(ruleset(rule("alert", ANY_UDP)))
    for number in range(500):
        for piece in fragments(b"0123456789", ip_id=number):
            book.packet(piece, after=0.01)
    assert len(book.engine._timers) <= 2
    lonely = fragments(b"0123456789", ip_id=1000)[0]
    assert book.packet(lonely).held
    assert verdicts(book.wait(29.9)) == []
    assert verdicts(book.wait(0.2)) == [Verdict.DROP]


def test_the_censors_clock_counts_for_fragments() -> None:
    book = Playbook(ruleset(rule("alert", ANY_UDP), fragments=FragmentOptions(timeout=6.0)), time_scale=60)
    assert book.packet(fragments(b"0123456789")[0]).held
    assert verdicts(book.wait(0.09)) == []
    assert verdicts(book.wait(0.02)) == [Verdict.DROP]


def test_held_fragments_count_among_the_packets_that_may_wait() -> None:
    rules = limited(ruleset(rule("delay", ANY_UDP, time="1s")), 8)
    book = Playbook(rules)
    for number in range(12):
        book.packet(fragments(b"0123456789", ip_id=number)[0])
        assert book.engine.held_count <= 8
    talk = UdpTalk()
    delayed = [book.packet(talk.to_server(b"x")).verdict for _ in range(3)]
    assert delayed == [Verdict.DROP] * 3
    book.stop()
    book = Playbook(rules)
    assert all(book.packet(talk.to_server(b"x")).held for _ in range(8))
    assert book.packet(fragments(b"0123456789")[0]).verdict is Verdict.DROP
    book.stop()


def test_without_reassembly_a_fragment_is_a_packet() -> None:
    alone = FragmentOptions(reassemble=False)
    for action in ("drop", "rewrite_to_reset", "icmp_unreachable", "reset"):
        parameters = {"direction": "both"} if action == "rewrite_to_reset" else {}
        book = Playbook(ruleset(rule(action, {"ip.server": "203.0.113.80"}, **parameters), fragments=alone))
        pieces = fragments(b"0123456789")
        reactions = [book.packet(piece) for piece in pieces]
        assert [reaction.verdict for reaction in reactions] == [Verdict.DROP] * len(pieces)
        injected = [len(reaction.injected) for reaction in reactions]
        assert injected == ([1, *[0] * (len(pieces) - 1)] if action == "icmp_unreachable" else [0] * len(pieces))
    book = Playbook(ruleset(rule("drop", {"ip.server": "203.0.113.81"}), fragments=alone))
    assert [book.packet(piece).verdict for piece in pieces] == [Verdict.ACCEPT] * len(pieces)


def test_the_first_piece_of_a_syn_does_not_settle_the_flow() -> None:
    for create_on, expected in (("syn", Verdict.ACCEPT), ("synack", Verdict.DROP), ("any", Verdict.DROP)):
        rules = ruleset(
            rule("drop", {"tls.sni": "b.example"}),
            tcp=TcpOptions(create_on=create_on),  # type: ignore[arg-type]
            fragments=FragmentOptions(reassemble=False),
        )
        book, talk = Playbook(rules), TcpTalk()
        key = talk.tuple
        syn = build_tcp(key, seq=1000, ack=0, flags=TcpFlags.SYN, options=b"\x01" * 20)
        talk.syn()
        header = syn[20:]
        for offset in (0, 24):
            piece = header[offset : offset + 24]
            more = offset == 0
            data = build_ip(key.src, key.dst, 6, piece, ip_id=1, more_fragments=more, fragment_offset=offset)
            assert book.packet(data, came_from=Side.INSIDE).verdict is Verdict.ACCEPT
        book.packet(talk.syn_ack(), came_from=Side.OUTSIDE)
        book.packet(talk.to_server(), came_from=Side.INSIDE)
        hello = book.packet(talk.to_server(client_hello("b.example")), came_from=Side.INSIDE)
        assert hello.verdict is expected, create_on


# -- memory --------------------------------------------------------------------------------------------------------


def test_injections_that_wait_are_bounded() -> None:
    reset = rule(
        "reset",
        {"ip.server": "203.0.113.80"},
        placement="on-path",
        injectors=[{"delay": "10s"}],
        residual={"seconds": 100},
        towards="client",
    )
    book = Playbook(limited(ruleset(reset), 20))
    syn = TcpTalk().syn()
    for _ in range(100):
        assert book.packet(syn).verdict is Verdict.ACCEPT
    assert len(book.wait(11.0).injected) == 20
    book.packet(syn)
    assert len(book.wait(11.0).injected) == 1


def test_buckets_of_subscribers_are_bounded() -> None:
    slow = rule("throttle", ANY_UDP, rate="8kbit", burst=100, per="subscriber")
    book = Playbook(ruleset(slow, flows=FlowOptions(limit=10)))
    for number in range(100):
        book.packet(UdpTalk(f"192.0.2.{number}").to_server(b"x"))
    assert len(book.engine._judge._enforcer._buckets) == 10
    latest = [UdpTalk("192.0.2.99", client_port=port).to_server(b"x" * 72) for port in (1, 2)]
    assert [book.packet(packet).verdict for packet in latest].count(Verdict.DROP) >= 1


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["police", "shape"])
@pytest.mark.parametrize(("rate", "bytes_a_second"), [("10gbit", 1.25e9), ("1mbit", 125_000), ("80bit", 10)])
def test_a_rate_is_exact_whatever_its_size(rate: str, bytes_a_second: float, mode: str) -> None:
    """Twice the rate is offered, at a time as of today, which floats resolve to a quarter of a microsecond."""
    slow = rule("throttle", ANY_UDP, rate=rate, burst=1000, mode=mode, limit=1000)
    book, data, count = Playbook(ruleset(slow), start=1.8e9), UdpTalk().to_server(bytes(72)), 4000
    every = 50 / bytes_a_second
    first = book.now
    # The time of each packet is right to a float's resolution; adding up would add up the errors.
    passed = 0
    for number in range(count):
        reaction = book.packet(data, after=max(0.0, first + number * every - book.now))
        passed += len([verdict for verdict in verdicts(reaction) if verdict is Verdict.ACCEPT])
    assert passed == pytest.approx(count / 2, rel=0.02, abs=20)
    book.stop()


def test_a_ttl_that_counts_up_is_never_zero() -> None:
    injectors = [{"ttl": "increment", "window": "increment", "towards": "client"}]
    reset = rule("reset", {"ip.server": "203.0.113.80"}, placement="on-path", injectors=injectors)
    book = Playbook(ruleset(reset))
    forged = [book.packet(TcpTalk(client_port=port).syn()).injected[0] for port in range(1, 600)]
    assert {packet.ttl for packet in forged} == set(range(1, 256))
    for before, after in itertools.pairwise(forged):
        assert (after.ttl - before.ttl) % 255 == 1
        assert (after.window - before.window) % 65_536 == 1


def test_icmp_errors_are_not_answered_with_icmp_errors() -> None:
    for src, dst, proto, kinds in ((CLIENT, SERVER, 1, (3, 11)), (CLIENT6, SERVER6, 58, (1, 2, 3))):
        book = Playbook(
            ruleset(
                rule("icmp_unreachable", {"ip.any": "203.0.113.80", "ip.version": 4}),
                rule("icmp_unreachable", {"ip.version": 6}),
            )
        )
        for kind in kinds:
            error = build_ip(src, dst, proto, bytes((kind, 0)) + bytes(36))
            reaction = book.packet(error)
            assert (reaction.verdict, reaction.injected) == (Verdict.DROP, [])
        echo = build_ip(src, dst, proto, bytes((8 if proto == 1 else 128, 0)) + bytes(6))
        assert len(book.packet(echo).injected) == 1


# -- bugs ----------------------------------------------------------------------------------------------------------


def test_a_bug_over_one_packet_loses_no_other() -> None:
    def broken(_facts: object) -> bool:
        raise RuntimeError("a hook's bug")

    rules = ruleset(rule("delay", {"port.server": 53}, time="1s"), rule("drop", {"port.server": 7}, hook=broken))
    engine = Engine(rules)
    delayed, fatal = UdpTalk().to_server(b"x"), UdpTalk(port=7).to_server(b"x")
    assert not any(isinstance(command, SetVerdict) for command in engine.handle(PacketArrived(1, delayed, 100.0)))
    with pytest.raises(RuntimeError, match="a hook's bug"):
        engine.handle(PacketArrived(2, fatal, 102.0))
    commands = engine.handle(PacketArrived(3, delayed, 102.0))
    assert [command.packet_id for command in commands if isinstance(command, SetVerdict)] == [1]


def test_a_clock_that_steps_back_breaks_nothing() -> None:
    rules = ruleset(
        rule("drop", {"tls.sni": "www.blocked.example"}, residual={"seconds": 5}),
        rule("throttle", ANY_UDP, rate="8kbit", burst=200, mode="shape"),
        flows=FlowOptions(udp=5),
    )
    book, udp = Playbook(rules), UdpTalk()
    for now in (1000.0, 990.0, 1010.0, 500.0, 1_000_000.0, 1000.0):
        book.now = now
        talk = TcpTalk(client_port=int(now) % 50_000 + 1)
        for packet in talk.handshake():
            book.packet(packet)
        reaction = book.packet(talk.to_server(client_hello("www.blocked.example")))
        assert reaction.verdict is Verdict.DROP
        for _ in range(5):
            book.packet(udp.to_server(b"x" * 72), after=0.01)
    book.stop()
    assert book.engine.flow_count == 0


def test_flags_of_every_kind_are_survived() -> None:
    for flags in range(256):
        book, talk = Playbook(ruleset(rule("reset", {"ip.server": "203.0.113.80"}), rule("fin", {}))), TcpTalk()
        reaction = book.packet(talk.to_server(flags=flags))
        assert len(reaction.told(RuleHit)) == 1
        assert bool(reaction.injected) is not bool(flags & TcpFlags.RST)
