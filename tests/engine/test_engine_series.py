"""Boxes in series: each a censor of its own, one verdict a packet, everything told once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rulekit import Holds, client_hello, rule, ruleset
from test_engine_laws import SCRIPTS, SMALL, rules

from gfwemu.engine.commands import Hold, SetVerdict
from gfwemu.engine.engine import Engine
from gfwemu.engine.events import PacketArrived
from gfwemu.engine.reach import Reach
from gfwemu.engine.records import FlowEnded, MessageSeen, RuleHit
from gfwemu.engine.series import Series, open_engine
from gfwemu.flow.options import TcpOptions
from gfwemu.model import Verdict
from gfwemu.rules.compiled import Box, CompiledRule, EngineOptions, RuleSet
from gfwemu.rules.load import load_rules
from gfwemu.rules.matchers import Numbers, parse_interval
from gfwemu.testing.playbook import Playbook, Reaction, TcpTalk, UdpTalk
from gfwemu.wire.packet import Packet
from gfwemu.wire.parse import parse_packet

BLOCKED = {"tls.sni": "www.blocked.example"}
HELLO = client_hello("www.blocked.example")


def in_boxes(**boxes: CompiledRule | tuple[CompiledRule, TcpOptions]) -> RuleSet:
    """One rule a box, with the box's own idea of TCP where one is given."""
    pairs = {name: one if isinstance(one, tuple) else (one, TcpOptions()) for name, one in boxes.items()}
    named = [dataclasses.replace(one, box=name) for name, (one, _) in pairs.items()]
    whole = ruleset(*named)
    made = tuple(Box(name, EngineOptions(tcp=tcp), whole.dissectors) for name, (_, tcp) in pairs.items())
    return dataclasses.replace(whole, boxes=made)


def hits(reaction: Reaction) -> list[str]:
    return [record.rule for record in reaction.told(RuleHit) if isinstance(record, RuleHit)]


def test_one_box_is_an_engine_and_several_are_a_series() -> None:
    assert isinstance(open_engine(ruleset(rule("drop"))), Engine)
    assert isinstance(open_engine(in_boxes(one=rule("drop"), two=rule("drop"))), Series)


def test_each_box_decides_by_itself_and_all_inject() -> None:
    book, talk = (
        Playbook(
            in_boxes(
                one=rule("reset", BLOCKED, name="first", placement="on-path"),
                two=rule("reset", BLOCKED, name="second", placement="on-path"),
            )
        ),
        TcpTalk(),
    )
    for packet in talk.handshake():
        book.packet(packet)
    reaction = book.packet(talk.to_server(HELLO))
    assert hits(reaction) == ["first", "second"]
    assert len(reaction.injected) == 4
    assert reaction.verdict is Verdict.ACCEPT
    assert len(reaction.told(MessageSeen)) == 1


def test_a_drop_ends_the_packet() -> None:
    book, talk = Playbook(in_boxes(one=rule("drop", BLOCKED), two=rule("alert", BLOCKED))), TcpTalk()
    for packet in talk.handshake():
        book.packet(packet)
    reaction = book.packet(talk.to_server(HELLO))
    assert reaction.verdict is Verdict.DROP
    assert hits(reaction) == ["drop"]


def test_a_pass_in_one_box_says_nothing_to_the_next() -> None:
    book, talk = Playbook(in_boxes(one=rule("pass"), two=rule("drop", BLOCKED))), TcpTalk()
    for packet in talk.handshake():
        own = book.packet(packet).own
        assert own is not None
        assert not own.offload
    assert book.packet(talk.to_server(HELLO)).verdict is Verdict.DROP


def test_the_kernel_may_answer_once_every_box_would_let_it() -> None:
    talk = UdpTalk()
    book = Playbook(in_boxes(one=rule("pass"), two=rule("drop", {"payload.contains": Holds(b"x")}), three=rule("pass")))
    own = book.packet(talk.to_server(b"y")).own
    assert own is not None
    assert (own.verdict, own.offload) == (Verdict.ACCEPT, False)
    own = book.packet(talk.to_server(b"x")).own
    assert own is not None
    assert (own.verdict, own.offload) == (Verdict.DROP, True)


def test_only_headers_are_wanted_where_no_box_wants_more() -> None:
    frozen = rule("freeze", {"port.server": 443}, bytes="10MB")
    for other, bulk in ((rule("pass"), True), (rule("drop", BLOCKED), False)):
        book, talk = Playbook(in_boxes(one=frozen, two=other)), TcpTalk()
        for packet in (*talk.handshake(), *(talk.to_client() for _ in range(40))):
            own = book.packet(packet).own
        assert own is not None
        assert (own.bulk, own.offload, own.queue_all) == (bulk, False, True)


def test_the_length_of_a_packet_that_was_cut_reaches_every_box(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    handle = Engine.handle

    def noted(engine: Engine, event: Any) -> Any:
        if isinstance(event, PacketArrived):
            lengths.append(event.length)
        return handle(engine, event)

    monkeypatch.setattr(Engine, "handle", noted)
    engine = open_engine(in_boxes(one=rule("pass"), two=rule("pass")))
    engine.handle(PacketArrived(1, UdpTalk().to_server(b"x"), 1.0, length=1500))
    assert lengths == [1500, 1500]


def test_a_packet_that_two_boxes_hold_is_held_once_and_waits_for_both() -> None:
    talk = UdpTalk()
    book = Playbook(
        in_boxes(
            one=rule("delay", time="10ms"), two=rule("delay", time="20ms"), three=rule("drop", {"port.server": 54})
        )
    )
    sent = book.packet(talk.to_server(b"x"))
    assert sent.held
    early = book.wait(0.010)
    assert not any(isinstance(command, SetVerdict | Hold) for command in early.commands)
    late = book.wait(0.020)
    assert [command.verdict for command in late.commands if isinstance(command, SetVerdict)] == [Verdict.ACCEPT]
    assert book.engine.held_count == 0


def test_changed_data_goes_on_changed() -> None:
    book, talk = (
        Playbook(
            in_boxes(
                one=rule("rewrite_to_reset", BLOCKED, direction="to_server"),
                two=rule("alert", {"tcp.flags": "RA"}),
            )
        ),
        TcpTalk(),
    )
    for packet in talk.handshake():
        book.packet(packet)
    reaction = book.packet(talk.to_server(HELLO))
    assert hits(reaction) == ["rewrite_to_reset", "alert"]
    assert reaction.own is not None
    assert reaction.own.data is not None


def test_each_box_reads_by_its_own_knobs() -> None:
    """China's backup HTTPS censor beside the first one (Bock et al., FOCI 2021): what one misses the other may see."""
    book, talk = (
        Playbook(
            in_boxes(
                one=(rule("reset", BLOCKED, name="first", placement="on-path"), TcpOptions(reassembly="none")),
                two=(rule("reset", BLOCKED, name="second", placement="on-path"), TcpOptions(reassembly="full")),
            )
        ),
        TcpTalk(),
    )
    for packet in talk.handshake():
        book.packet(packet)
    assert hits(book.packet(talk.to_server(HELLO[:90]))) == []
    assert hits(book.packet(talk.to_server(HELLO[90:]))) == ["second"]


def test_residual_blocks_belong_to_their_box() -> None:
    residual = {"key": "3tuple", "seconds": 60}
    book = Playbook(
        in_boxes(
            one=rule("reset", BLOCKED, placement="on-path", residual=residual),
            two=rule("alert", {"tcp.flags": "S"}),
        )
    )
    talk = TcpTalk()
    for packet in talk.handshake():
        book.packet(packet)
    book.packet(talk.to_server(HELLO))
    again = book.packet(TcpTalk(client_port=40001).syn())
    assert len(again.injected) == 2
    assert hits(again) == ["alert"]


def test_the_end_of_a_flow_is_told_once_with_the_rules_of_all_boxes() -> None:
    book, talk = Playbook(in_boxes(one=rule("alert", name="first"), two=rule("alert", name="second"))), TcpTalk()
    for packet in talk.handshake():
        book.packet(packet)
    ends = [record for record in book.stop().records if isinstance(record, FlowEnded)]
    assert [(one.rules, one.packets_to_server, one.packets_to_client) for one in ends] == [(("first", "second"), 2, 1)]


def test_all_records_of_a_flow_bear_one_number() -> None:
    book = Playbook(in_boxes(one=rule("alert", {"port.server": 54}), two=rule("alert", name="second")))
    told = book.packet(UdpTalk(port=53).to_server(b"x")).records
    told += book.packet(UdpTalk(port=54).to_server(b"x")).records
    told += book.stop().records
    numbers: dict[int, set[int]] = {}
    for record in told:
        assert isinstance(record, RuleHit | FlowEnded)
        numbers.setdefault(record.flow.tuple.dport, set()).add(record.flow.flow_id)
    assert {port: len(ids) for port, ids in numbers.items()} == {53: 1, 54: 1}
    assert numbers[53] != numbers[54]


def test_the_dice_of_two_boxes_fall_apart() -> None:
    half = {"chance": 0.5}
    book = Playbook(in_boxes(one=rule("alert", name="first", **half), two=rule("alert", name="second", **half)))
    seen = {tuple(hits(book.packet(UdpTalk(client_port=port).to_server(b"x")))) for port in range(1000, 1060)}
    assert seen == {(), ("first",), ("second",), ("first", "second")}


def test_a_box_is_asked_only_about_packets_that_its_rules_can_concern(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    handle = Engine.handle

    def counted(engine: Engine, event: Any) -> Any:
        if isinstance(event, PacketArrived):
            asked.append(engine.box)
        return handle(engine, event)

    monkeypatch.setattr(Engine, "handle", counted)
    book = Playbook(
        in_boxes(
            dns=rule("alert", {"dns.qname": "a.example", "port.server": Numbers((parse_interval("53"),))}),
            tcp=rule("alert", {"tcp.flags": "S"}),
            host=rule("alert", {"ip.server": "203.0.113.99"}),
            pair=rule("drop", {"tls.sni": "a.example"}, residual={"key": "2tuple", "seconds": 9}),
        )
    )
    talk = UdpTalk(port=53)
    for data, expected in (
        (talk.to_server(b"x"), ["dns", "pair"]),
        (talk.to_client(b"x"), ["dns", "pair"]),
        (UdpTalk(port=54).to_server(b"x"), ["pair"]),
        (TcpTalk(port=53).syn(), ["dns", "tcp", "pair"]),
        (TcpTalk(server="203.0.113.99").syn_ack(), ["tcp", "host", "pair"]),
    ):
        asked.clear()
        assert book.packet(data).verdict is Verdict.ACCEPT
        assert asked == expected


def reach(action: str, match: dict[str, Any], **others: Any) -> Reach:
    return Reach([rule(action, match, **others)])


def whole(data: bytes) -> Packet:
    packet = parse_packet(data)
    assert isinstance(packet, Packet)
    return packet


@pytest.mark.parametrize(
    ("key", "met"),
    [
        (None, [True, False, False, False]),
        ("4tuple", [True, False, False, False]),
        ("3tuple", [True, True, False, False]),
        ("2tuple", [True, True, False, True]),
        ("server_port", [True, True, True, False]),
        ("server", [True, True, True, True]),
    ],
)
def test_a_box_is_asked_about_all_that_its_residual_blocks_may_meet(key: str | None, met: list[bool]) -> None:
    """More may be asked about than is met, never less."""
    match = {
        "ip.client": "192.0.2.10",
        "port.client": Numbers((parse_interval("1"),)),
        "port.server": Numbers((parse_interval("443"),)),
        "transport": "tcp",
    }
    own = reach("drop", match, residual=None if key is None else {"key": key, "seconds": 9})
    packets = [
        TcpTalk(client_port=1).syn(),
        TcpTalk(client_port=2).syn(),
        TcpTalk("192.0.2.99", client_port=1).syn(),
        UdpTalk(client_port=3).to_server(b"x"),
    ]
    assert all(own.concerns(whole(data)) or not wanted for data, wanted in zip(packets, met, strict=True))
    assert own.concerns(whole(TcpTalk("192.0.2.99", client_port=8, port=80).syn())) is (key == "server")


def test_replies_of_a_server_that_was_put_in_the_place_of_another_are_asked_about() -> None:
    elsewhere = whole(TcpTalk(server="203.0.113.99").syn_ack())
    assert reach("redirect", {"ip.server": "203.0.113.80"}, address=["203.0.113.99"]).concerns(elsewhere)
    assert not reach("drop", {"ip.server": "203.0.113.80"}).concerns(elsewhere)


def test_rules_may_move_into_boxes_and_out_while_the_censor_works() -> None:
    residual = {"key": "3tuple", "seconds": 60}
    first = rule("reset", BLOCKED, name="first", placement="on-path", residual=residual)
    delayed = rule("delay", {"transport": "udp"}, name="slow", time="1s")
    book = Playbook(ruleset(first, delayed))
    talk = TcpTalk()
    for packet in (*talk.handshake(), talk.to_server(HELLO)):
        book.packet(packet)
    held = book.packet(UdpTalk().to_server(b"x"))
    assert held.held
    boxed = ruleset(first, dataclasses.replace(rule("alert", {"tcp.flags": "S"}), box="two"))
    options = EngineOptions()
    boxes = (Box("", options, boxed.dissectors), Box("two", options, boxed.dissectors))
    book.replace_rules(dataclasses.replace(boxed, boxes=boxes))
    reaction = book.packet(TcpTalk(client_port=40001).syn())
    assert (len(reaction.injected), hits(reaction)) == (2, ["alert"])
    assert book.wait(2.0).commands
    book.replace_rules(ruleset(first))
    reaction = book.packet(TcpTalk(client_port=40002).syn())
    assert (len(reaction.injected), hits(reaction)) == (2, [])
    book.stop()


def test_a_bug_in_one_box_costs_the_other_packets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(in_boxes(one=rule("delay", time="10ms"), two=rule("alert", {"payload.contains": Holds(b"!")})))
    talk = UdpTalk()
    data = [talk.to_server(payload) for payload in (b"one", b"boom", b"three")]
    handle = Engine.handle

    def broken(own: Engine, event: Any) -> Any:
        if own.box == "two" and isinstance(event, PacketArrived) and b"boom" in event.data:
            raise RuntimeError("boom")
        return handle(own, event)

    monkeypatch.setattr(Engine, "handle", broken)
    for number, packet in enumerate(data):
        engine.handle(PacketArrived(number, packet, 1.0))
    with pytest.raises(RuntimeError):
        engine.handle(PacketArrived(3, talk.to_server(b"four"), 2.0))
    commands = engine.handle(PacketArrived(4, talk.to_server(b"five"), 3.0))
    verdicts = {one.packet_id: one.verdict for one in commands if isinstance(one, SetVerdict)}
    assert verdicts.keys() >= {0, 1, 2}
    assert set(verdicts.values()) == {Verdict.ACCEPT}


def spread(some: list[CompiledRule], names: list[str]) -> RuleSet:
    named = [dataclasses.replace(one, box=names[place % len(names)]) for place, one in enumerate(some)]
    whole = ruleset(*sorted(named, key=lambda one: names.index(one.box)), **SMALL)
    present = [name for name in names if any(one.box == name for one in named)]
    boxes = tuple(Box(name, whole.options, whole.dissectors) for name in present)
    if len(boxes) > 1:
        return dataclasses.replace(whole, boxes=boxes)
    return dataclasses.replace(whole, box=present[0] if present else "")


@settings(max_examples=200)
@given(st.lists(rules(), min_size=2, max_size=5), SCRIPTS, st.integers(0, 3))
def test_every_packet_gets_exactly_one_verdict_from_a_series(
    some: list[CompiledRule], script: list[tuple[bytes, float]], seed: int
) -> None:
    book = Playbook(spread(some, ["", "b", "c"]), seed=seed)
    for number, (data, after) in enumerate(script):
        book.packet(data, after=after)
        if number in (9, 18):
            book.replace_rules(spread(some[number % 3 :], ["b", "", "d"] if number == 9 else ["c", "b"]))
    book.stop()
    assert book.engine.held_count == 0
    assert book.engine.flow_count == 0


@settings(max_examples=150)
@given(st.lists(rules(), min_size=1, max_size=3), SCRIPTS)
def test_a_box_that_does_nothing_changes_no_verdict(
    some: list[CompiledRule], script: list[tuple[bytes, float]]
) -> None:
    """What one engine does, it does as part of a series, too, beside boxes that only look."""
    certain = [dataclasses.replace(one, probability=1.0) for one in some if one.action_name not in ("lose", "delay")]
    alone = dataclasses.replace(ruleset(*certain, **SMALL))
    looking = [dataclasses.replace(rule("alert", name=f"look-{name}"), box=name) for name in ("x", "y")]
    whole = ruleset(*certain, *looking, **SMALL)
    boxes = tuple(Box(name, whole.options, whole.dissectors) for name in ("", "x", "y"))
    one, other = Playbook(alone), Playbook(dataclasses.replace(whole, boxes=boxes))
    for data, after in script:
        first, second = one.packet(data, after=after).own, other.packet(data, after=after).own
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            assert (first.verdict, first.data) == (second.verdict, second.data)
    one.stop()
    other.stop()


def test_a_rule_file_with_boxes_loads_into_a_series(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        """
version: 1
engine: {tcp: {reassembly: none}}
boxes:
  https: {tcp: {reassembly: full, buffer: 1KiB}}
  backup: {tls: {record_reassembly: true}}
rules:
  - {name: b, box: backup, match: {tls.sni: a.example}, action: drop}
  - {name: h, box: https, match: {tls.sni: a.example}, action: reset}
  - {name: plain, match: {dns.qname: a.example}, action: drop}
"""
    )
    loaded = load_rules([tmp_path / "r.yaml"])
    assert [one.name for one in loaded.rules] == ["plain", "h", "b"]
    parts = loaded.split()
    assert [(one.box, one.options.tcp.reassembly, sorted(one.dissectors)) for one in parts] == [
        ("", "none", ["dns"]),
        ("https", "full", ["tls"]),
        ("backup", "none", ["tls"]),
    ]
    assert parts[1].options.tcp.buffer == 1024
    assert parts[2].options.dissect.tls_record_reassembly


def test_rules_of_one_box_alone_need_no_series(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        """
version: 1
boxes: {https: {tcp: {reassembly: none}}}
rules:
  - {name: h, box: https, match: {tls.sni: a.example}, action: reset}
"""
    )
    loaded = load_rules([tmp_path / "r.yaml"])
    assert (loaded.boxes, loaded.options.tcp.reassembly, loaded.box) == ((), "none", "https")
