"""Forged DNS answers in the shapes that were measured: flags, types, pools, and several injectors on one query."""

from __future__ import annotations

import itertools

import pytest
from rulekit import dns_query, rule, ruleset

from gfwemu.dissect.options import DissectOptions
from gfwemu.model import Transport, Verdict, address_bytes
from gfwemu.rules.compiled import CompiledRule
from gfwemu.testing.playbook import Playbook, TcpTalk, UdpTalk
from gfwemu.wire.packet import Packet, TcpFlags

NAME = "www.blocked.example"
POOL = ["203.0.113.250", "203.0.113.251", "203.0.113.252"]
A, AAAA, MX, ANY = 1, 28, 15, 255


def poison(name: str = "poison", match: str = NAME, **parameters: object) -> CompiledRule:
    return rule("poison", {"dns.qname": match}, name=name, placement="on-path", **{"a": POOL, **parameters})


def ask(
    book: Playbook, qtype: int = A, *, name: str = NAME, rd: bool = True, ttl: int = 64, port: int = 0
) -> list[Packet]:
    query = bytearray(dns_query(name, qtype))
    query[2] = 1 if rd else 0
    reaction = book.packet(UdpTalk(client_port=port).to_server(bytes(query), ttl=ttl))
    assert reaction.verdict is Verdict.ACCEPT
    return [*reaction.injected, *book.wait(0.001).injected]


def record(packet: Packet) -> tuple[int, bytes]:
    """Type and data of the one answer; it must be the only record."""
    payload = packet.payload
    assert payload[4:12] == bytes((0, 1, 0, 1, 0, 0, 0, 0))
    answer = payload[12 + len(NAME) + 2 + 4 :]
    assert answer[:2] == b"\xc0\x0c"
    assert answer[4:6] == b"\x00\x01"
    data = answer[12:]
    assert int.from_bytes(answer[10:12], "big") == len(data)
    return int.from_bytes(answer[2:4], "big"), data


@pytest.mark.parametrize("qtype", [A, MX, ANY, 16, 5, 65])
def test_every_type_but_aaaa_gets_an_a_record(qtype: int) -> None:
    (packet,) = ask(Playbook(ruleset(poison(other_types="a"))), qtype)
    assert record(packet) == (A, address_bytes(POOL[0]))
    # The question comes back as it was, the type that was asked for included.
    assert packet.payload[12 + len(NAME) + 2 :][:4] == qtype.to_bytes(2, "big") + b"\x00\x01"


def test_without_other_types_only_addresses_are_answered() -> None:
    (packet,) = ask(Playbook(ruleset(poison())), MX)
    assert packet.payload[6:8] == b"\x00\x00"


def test_the_bytes_of_the_question_come_back_verbatim() -> None:
    (packet,) = ask(Playbook(ruleset(poison())), name="wWw.BloCKed.eXample")
    assert b"\x03wWw\x07BloCKed\x07eXample\x00" in packet.payload


@pytest.mark.parametrize(("rd", "flags"), [(True, 0x8580), (False, 0x8400)])
def test_flags_follow_recursion_desired(rd: bool, flags: int) -> None:
    injectors = [{"dns_flags": 0x8580, "dns_flags_no_rd": 0x8400}]
    (packet,) = ask(Playbook(ruleset(poison(injectors=injectors))), rd=rd)
    assert int.from_bytes(packet.payload[2:4], "big") == flags


def test_aaaa_is_a_teredo_address_around_one_of_the_v4_pool() -> None:
    book = Playbook(ruleset(poison(aaaa="teredo")))
    answers = [record(packet) for _ in range(4) for packet in ask(book, AAAA)]
    assert answers == [
        (AAAA, bytes.fromhex("20010000") + bytes(8) + address_bytes(POOL[turn % 3])) for turn in range(4)
    ]
    # Addresses of both kinds have turns of their own.
    assert record(ask(book, A)[0]) == (A, address_bytes(POOL[0]))


def test_each_injector_takes_its_own_pool_in_turn() -> None:
    injectors = [{"a": POOL[:2]}, {"a": POOL[2:]}, {}]
    book = Playbook(ruleset(poison(injectors=injectors)))
    rounds = [[record(packet)[1][-1] for packet in ask(book)] for _ in range(3)]
    assert rounds == [[250, 252, 250], [251, 252, 251], [250, 252, 252]]


def test_groups_of_names_have_addresses_of_their_own() -> None:
    groups = [{"names": ["blocked.example"], "a": ["203.0.113.9"]}, {"names": [NAME], "a": ["203.0.113.8"]}]
    injectors = [{"a": POOL[:1]}]
    book = Playbook(
        ruleset(
            rule("poison", {"dns.response": False}, placement="on-path", a=POOL, groups=groups, injectors=injectors)
        )
    )
    assert record(ask(book)[0]) == (A, address_bytes("203.0.113.9"))
    (other,) = ask(book, name="other.example")
    assert other.payload.endswith(address_bytes(POOL[0]))


def triplet() -> list[CompiledRule]:
    """The three injectors (Anonymous et al., FOCI 2020, Table 3), each with a list of its own."""
    shapes = [
        {"ttl": "increment", "answer_ttl": 60, "dns_flags": 0x8580},
        {"ttl": "32-255", "df": True, "answer_ttl": "61-300", "delay": "0.05ms"},
        {"ttl": "mirror", "ip_id": 0, "answer_ttl": "61-300", "delay": "0.1ms"},
    ]
    names = ("google.example", NAME, NAME)
    return [poison(f"injector-{n + 1}", names[n], injectors=[shape]) for n, shape in enumerate(shapes)]


def test_injectors_whose_list_has_the_name_all_answer_one_query() -> None:
    book = Playbook(ruleset(*triplet()))
    second, third = ask(book, ttl=52)
    assert second.dont_fragment
    assert (third.ttl, third.ip_id, third.dont_fragment) == (52, 0, False)
    assert 32 <= second.ttl <= 255
    assert all(int.from_bytes(packet.payload[2:4], "big") == 0x8180 for packet in (second, third))
    (first,) = ask(book, name="google.example")
    assert int.from_bytes(first.payload[2:4], "big") == 0x8580
    # Each injector has its own turn, though rules share the pool's addresses.
    assert record(second)[1] == record(third)[1] == address_bytes(POOL[0])


def test_a_counter_in_the_ttl_goes_on_from_query_to_query() -> None:
    book = Playbook(ruleset(triplet()[0]))
    ttls = [ask(book, name="google.example", port=3000 + turn)[0].ttl for turn in range(20)]
    assert {(after - before) % 255 for before, after in itertools.pairwise(ttls)} == {1}


def test_answers_of_three_rules_come_in_their_order_within_a_fifth_of_a_millisecond() -> None:
    rules = [poison(str(n), injectors=[{"delay": f"{n / 20}ms", "window": 0, "answer_ttl": n}]) for n in (1, 2, 3)]
    book = Playbook(ruleset(*rules))
    reaction = book.packet(UdpTalk().to_server(dns_query(NAME)))
    assert reaction.verdict is Verdict.ACCEPT
    assert reaction.injected == []
    seen = book.wait(0.0002).injected
    assert [packet.payload[-10:-6] for packet in seen] == [bytes((0, 0, 0, n)) for n in (1, 2, 3)]


def test_an_in_path_answer_is_the_only_one() -> None:
    first = rule("poison", {"dns.qname": NAME}, name="first", a=POOL)
    book = Playbook(ruleset(first, poison("second")))
    reaction = book.packet(UdpTalk().to_server(dns_query(NAME)))
    assert reaction.verdict is Verdict.DROP
    assert len(reaction.injected) == 1


def test_dns_over_tcp_is_reset() -> None:
    match = {"dns.qname": NAME, "transport": "tcp"}
    book, talk = Playbook(ruleset(rule("reset", match, placement="on-path"))), TcpTalk(port=53)
    for packet in talk.handshake():
        book.packet(packet)
    query = dns_query(NAME)
    resets = book.packet(talk.to_server(len(query).to_bytes(2, "big") + query)).injected
    assert [packet.flags for packet in resets] == [TcpFlags.RST | TcpFlags.ACK] * 2
    assert {packet.proto for packet in resets} == {Transport.TCP}


def test_a_name_that_only_the_censor_reads_is_answered_with_its_own_bytes() -> None:
    """A dot inside a label counts as a separator for the censor (Fan et al., "Wallbleed", NDSS 2025)."""
    odd = dns_query("X.example").replace(b"\x01X\x07example", b"\x13www.blocked.example")
    rules = ruleset(poison(), dissect=DissectOptions(dns_names="flat"))
    (packet,) = Playbook(rules).packet(UdpTalk().to_server(odd)).injected
    assert b"\x13www.blocked.example\x00\x00\x01\x00\x01\xc0\x0c" in packet.payload
    assert packet.payload.endswith(address_bytes(POOL[0]))
