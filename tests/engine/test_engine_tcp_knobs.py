"""Each knob of `tcp:`: a conversation that the censor reads with one setting and not with the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kernel_model import KernelModel
from rulekit import rule, ruleset
from tcp_kit import (
    ACK,
    FAR,
    FIN,
    HELLO,
    JUNK,
    MD5,
    PSH,
    RST,
    SYN,
    URG,
    Script,
    Step,
    Wire,
    above_a_hole,
    after_handshake,
    another_syn_first,
    begins_at_the_isn,
    caught,
    censor,
    cut_short,
    in_handshake,
    insert,
    old_timestamp,
    only_data,
    overlap,
    plain,
    split,
    without_syn,
    without_synack,
)

from gfwemu.engine.engine import Engine
from gfwemu.engine.records import FlowEnded
from gfwemu.flow.options import Resync, TcpOptions, Teardown
from gfwemu.model import Verdict, address_bytes
from gfwemu.testing.playbook import Playbook
from gfwemu.wire.build import build_tcp


def with_bare_ack_of_wrong_numbers(wire: Wire) -> Iterator[Step]:
    yield wire.syn()
    yield wire.syn_ack()
    yield wire.client(ACK, ack=7, ahead=FAR)
    yield wire.client(PSH | ACK, HELLO, ack=7)


def two_holes(pause: float) -> Script:
    """A hole that is filled at once, and after the pause another one."""

    def script(wire: Wire) -> Iterator[Step]:
        yield from wire.handshake()
        yield wire.client(PSH | ACK, HELLO[10:20], ahead=10)
        yield wire.client(PSH | ACK, HELLO[:10])
        yield pause
        yield wire.client(PSH | ACK, HELLO[30:], ahead=30)
        yield wire.client(PSH | ACK, HELLO[20:30], ahead=20)

    return script


def wrong_ip_checksum(wire: Wire) -> Iterator[Step]:
    yield from wire.handshake()
    packet = bytearray(wire.client(PSH | ACK, JUNK))
    packet[10] ^= 0xFF
    yield bytes(packet)
    yield from wire.request()


def simultaneous_open(wire: Wire) -> Iterator[Step]:
    """After a reset by the server its SYN comes without ACK; the client answers with a SYN/ACK (Bock et al., 2020)."""
    yield wire.syn()
    yield wire.server(RST)
    yield wire.server(SYN)
    yield wire.client(SYN | ACK, ahead=-1)
    yield wire.server(ACK, ahead=1)
    yield from wire.request()


def only(**knobs: Any) -> TcpOptions:
    return TcpOptions(**knobs)


def lock(trigger: Any, *on: Any) -> TcpOptions:
    return TcpOptions(resync={trigger: Resync(lock_on=on)})


def teardown(flag: Any, **entry: Any) -> TcpOptions:
    return TcpOptions(teardown={flag: Teardown(**entry)})


NEUTRAL = TcpOptions()
DESYNC = after_handshake(lambda wire: wire.client(SYN, ahead=-1), lambda wire: wire.client(PSH | ACK, b"x", ahead=FAR))
BARE = after_handshake(lambda wire: wire.client(SYN, ahead=-1), lambda wire: wire.client(ACK, ahead=FAR))

CASES: list[tuple[str, Script, TcpOptions, TcpOptions]] = [
    # name, conversation, a censor that is not deceived, one that is
    ("create_on syn", without_synack, only(create_on="syn"), only(create_on="synack")),
    ("create_on synack", without_syn, only(create_on="synack"), only(create_on="syn")),
    ("create_on synack, after a SYN", plain, only(create_on="synack"), only(create_on="synack", handshake="full")),
    ("create_on both", without_syn, only(create_on="both"), only(create_on="syn")),
    ("create_on both, too", without_synack, only(create_on="both"), only(create_on="synack")),
    ("create_on any", only_data, only(create_on="any"), only(create_on="both")),
    ("handshake full", without_synack, only(handshake="syn"), only(handshake="full")),
    ("handshake full, complete", plain, only(handshake="full"), only(create_on="synack", handshake="full")),
    ("handshake syn", without_syn, only(create_on="both"), only(create_on="both", handshake="syn")),
    ("handshake none", only_data, only(create_on="any"), only(create_on="any", handshake="syn")),
    (
        "established_by",
        with_bare_ack_of_wrong_numbers,
        only(handshake="full", established_by="ack"),
        only(handshake="full", established_by="valid_ack"),
    ),
    ("verify_checksum", insert(checksum=1), only(verify_checksum=True), NEUTRAL),
    ("verify_ip_checksum", wrong_ip_checksum, only(verify_ip_checksum=True), NEUTRAL),
    ("md5_option", insert(options=MD5), only(md5_option=0.0), NEUTRAL),
    ("md5_option on resets", insert(RST, b"", options=MD5), only(md5_option=0.0), NEUTRAL),
    ("old_timestamp", old_timestamp(PSH | ACK, JUNK), only(old_timestamp=0.0), NEUTRAL),
    ("bad_ack, of the future", insert(ack=900_000), only(bad_ack=0.0), NEUTRAL),
    ("bad_ack, of the past", insert(ack=1), only(bad_ack=0.0), NEUTRAL),
    ("data_without_ack", insert(PSH), only(data_without_ack=0.0), only(no_flags=0.0)),
    ("data_without_ack, with FIN", insert(FIN), only(data_without_ack=0.0), NEUTRAL),
    ("data_without_ack, with URG", insert(URG), only(data_without_ack=0.0), only(no_flags=0.0)),
    ("no_flags", insert(0), only(no_flags=0.0), only(data_without_ack=0.0)),
    ("odd_flags", insert(FIN | RST | ACK, b""), only(odd_flags=0.0), NEUTRAL),
    ("bad_ip_length", cut_short, only(bad_ip_length=0.0), NEUTRAL),
    ("bad_data_offset, too small", insert(data_offset=4), only(bad_data_offset="ignore"), NEUTRAL),
    (
        "bad_data_offset, beyond the end",
        insert(payload=b"12345", data_offset=15),
        only(bad_data_offset="ignore"),
        NEUTRAL,
    ),
    (
        "bad_data_offset, header as payload",
        lambda wire: [*wire.handshake(), wire.client(PSH | ACK, HELLO, data_offset=4)],
        NEUTRAL,
        only(bad_data_offset="read_header_as_payload"),
    ),
    (
        "bad_data_offset, beyond, as payload",
        insert(payload=b"12345", data_offset=15),
        only(bad_data_offset="read_header_as_payload"),
        NEUTRAL,
    ),
    (
        "data_offset",
        lambda wire: [*wire.handshake(), wire.client(PSH | ACK, HELLO, stamp=1)],
        NEUTRAL,
        only(data_offset=5),
    ),
    ("seq_before_isn", begins_at_the_isn, only(seq_before_isn="trim"), only(seq_before_isn="ignore")),
    ("small_segments", split(8, 12), only(small_segments=8), only(small_segments=8, small_segments_when="always")),
    (
        "small_segments, larger",
        split(9),
        only(small_segments=8, small_segments_when="always"),
        only(small_segments=9, small_segments_when="always"),
    ),
    (
        "small_segments before the handshake is complete",
        lambda wire: [wire.syn(), wire.syn_ack(), *wire.request(8)],
        NEUTRAL,
        only(small_segments=8),
    ),
    ("out_of_window", insert(payload=JUNK, ahead=FAR), NEUTRAL, only(out_of_window="follow")),
    (
        "on_overflow",
        above_a_hole(1025),
        only(buffer=1026, on_overflow="forget"),
        only(buffer=1025, on_overflow="forget"),
    ),
    (
        "hole_lifetime, of a hole that was filled",
        two_holes(65.0),
        only(hole_lifetime=(60.0, 60.0)),
        only(overlap="first", buffer=15),
    ),
    ("hole_lifetime", above_a_hole(100, 65.0), only(hole_lifetime=(70.0, 70.0)), only(hole_lifetime=(60.0, 60.0))),
    # Of two copies of the same bytes, above a hole.
    ("overlap first", overlap(40, 40, junk_first=False), only(overlap="first"), only(overlap="last")),
    ("overlap last", overlap(40, 40, junk_first=True), only(overlap="last"), only(overlap="first")),
    (
        "overlap left_equal_last, equal",
        overlap(40, 40, junk_first=True),
        only(overlap="left_equal_last"),
        only(overlap="first"),
    ),
    (
        "overlap left_equal_last, not equal",
        overlap(40, 50, junk_first=False),
        only(overlap="left_equal_last"),
        only(overlap="last"),
    ),
    # Ends.
    ("teardown rst", insert(RST, b""), teardown("fin"), teardown("rst")),
    ("teardown rst covers RST/ACK", insert(RST | ACK, b""), teardown("fin"), teardown("rst")),
    ("teardown rst_ack alone", insert(RST, b""), teardown("rst_ack"), NEUTRAL),
    ("teardown rst_ack", insert(RST | ACK, b""), only(teardown={}), teardown("rst_ack")),
    ("teardown fin", insert(FIN, b""), teardown("rst"), teardown("fin")),
    ("teardown fin covers FIN/ACK", insert(FIN | ACK, b""), teardown("rst"), teardown("fin")),
    ("teardown fin_ack alone", insert(FIN, b""), teardown("fin_ack"), teardown("fin")),
    ("teardown never", insert(RST, b""), teardown("rst", probability=0.0), NEUTRAL),
    ("teardown when opening", insert(RST, b""), teardown("rst", when="opening"), teardown("rst", when="established")),
    (
        "teardown when established",
        in_handshake(lambda wire: wire.client(RST)),
        teardown("rst", when="established"),
        teardown("rst", when="opening"),
    ),
    (
        "teardown after data",
        insert(FIN | ACK, b""),
        teardown("fin", when="after_data"),
        teardown("fin", when="before_data"),
    ),
    (
        "teardown after data, with data",
        insert(FIN | ACK, b"x", ahead=FAR),
        teardown("fin", when="before_data"),
        teardown("fin", when="after_data"),
    ),
    (
        "teardown by",
        after_handshake(lambda wire: wire.server(RST)),
        teardown("rst", by="client"),
        teardown("rst", by="server"),
    ),
    (
        "teardown sequence exact",
        insert(RST, b"", ahead=1),
        teardown("rst", sequence="exact"),
        teardown("rst", sequence="in_window"),
    ),
    ("teardown sequence in window", insert(RST, b"", ahead=FAR), teardown("rst", sequence="in_window"), NEUTRAL),
    ("teardown sequence, right", insert(RST, b""), only(teardown={}), teardown("rst", sequence="exact")),
    # Resynchronisation.
    ("resync multiple_syn", another_syn_first, lock("multiple_syn", "server_synack"), NEUTRAL),
    (
        "resync, the ISN is forgotten",
        another_syn_first,
        only(resync={"multiple_syn": Resync(lock_on=("client_data",))}, seq_before_isn="ignore"),
        only(seq_before_isn="ignore"),
    ),
    (
        "resync, a reset of the client is no ACK",
        lambda wire: [
            *wire.handshake(),
            wire.client(SYN, ahead=-1),
            wire.client(RST | ACK, ahead=FAR),
            *wire.request(),
        ],
        only(teardown={}, resync={"multiple_syn": Resync(lock_on=("client_ack",))}),
        only(teardown={}, resync={"multiple_syn": Resync(lock_on=("client_packet",))}),
    ),
    ("resync multiple_syn, desynchronised", DESYNC, NEUTRAL, lock("multiple_syn", "client_data")),
    ("resync lock_on client_data", BARE, lock("multiple_syn", "client_data"), lock("multiple_syn", "client_ack")),
    ("resync lock_on server_synack", DESYNC, NEUTRAL, lock("multiple_syn", "server_synack")),
    (
        "resync, server data does not count",
        after_handshake(lambda wire: wire.client(SYN, ahead=-1), lambda wire: wire.server(PSH | ACK, b"x")),
        lock("multiple_syn", "client_data"),
        lock("multiple_syn", "server_synack"),
    ),
    (
        "resync lock_on client_packet",
        after_handshake(lambda wire: wire.server(RST), lambda wire: wire.client(RST, ahead=FAR)),
        only(teardown={}, resync={"server_rst": Resync(lock_on=("client_data",))}),
        only(teardown={}, resync={"server_rst": Resync(lock_on=("client_packet",))}),
    ),
    (
        "resync syn_with_data",
        after_handshake(lambda wire: wire.client(SYN, b"x", ahead=FAR)),
        lock("multiple_syn", "client_data"),
        lock("syn_with_data", "this_packet"),
    ),
    (
        "resync, no data on the SYN",
        after_handshake(lambda wire: wire.client(SYN, ahead=FAR)),
        lock("syn_with_data", "this_packet"),
        lock("multiple_syn", "this_packet"),
    ),
    (
        "resync multiple_synack",
        after_handshake(
            lambda wire: wire.server(SYN | ACK, ack=wire.client_seq),
            lambda wire: wire.client(PSH | ACK, b"x", ahead=FAR),
        ),
        lock("synack_wrong_ack", "client_data"),
        lock("multiple_synack", "client_data"),
    ),
    (
        "resync synack_wrong_ack",
        lambda wire: [wire.syn(), wire.server(SYN | ACK, ack=7), wire.client(ACK, ahead=FAR), *wire.request()],
        lock("synack_wrong_ack", "client_data"),
        lock("synack_wrong_ack", "client_ack"),
    ),
    (
        "resync server_payload_before_synack",
        lambda wire: [
            wire.syn(),
            wire.server(ACK, b"x"),
            wire.server(SYN | ACK, ack=7),
            wire.syn_ack(),
            *wire.request(),
        ],
        NEUTRAL,
        lock("server_payload_before_synack", "server_synack"),
    ),
    (
        "resync rst",
        insert(RST, b""),
        lock("rst", "client_data"),
        NEUTRAL,
    ),
    (
        "resync rst, not of the opening",
        in_handshake(lambda wire: wire.client(RST)),
        lock("rst_before_established", "client_ack"),
        lock("rst", "client_ack"),
    ),
    (
        "resync never",
        DESYNC,
        only(resync={"multiple_syn": Resync(probability=0.0)}),
        lock("multiple_syn", "client_data"),
    ),
    (
        "simultaneous_open",
        simultaneous_open,
        only(resync={"server_rst": Resync(lock_on=("client_packet",))}),
        only(resync={"server_rst": Resync(lock_on=("client_packet",))}, simultaneous_open="off_by_one"),
    ),
]


@pytest.mark.parametrize(("script", "reads", "deceived"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_knob_decides_whether_the_request_is_read(script: Script, reads: TcpOptions, deceived: TcpOptions) -> None:
    assert caught(censor(reads), script)
    assert not caught(censor(deceived), script)


def test_neutral_knobs_read_a_plain_conversation_and_one_in_pieces() -> None:
    def backwards(wire: Wire) -> Iterator[Step]:
        yield from wire.handshake()
        yield from reversed([*wire.request(5, 60)])

    for script in (plain, split(1, 5, 60), backwards):
        assert caught(censor(NEUTRAL), script)


@pytest.mark.parametrize(
    ("tcp", "script", "share"),
    [
        (teardown("rst", probability=0.7), insert(RST, b""), 0.7),
        (only(resync={"rst": Resync(probability=0.3, lock_on=("client_data",))}), insert(RST, b""), 0.7),
        (only(no_flags=0.25), insert(0), 0.25),
        (only(overlap={"first": 0.8, "last": 0.2}), overlap(40, 40, junk_first=False), 0.2),
        (only(bad_ack=0.4), insert(ack=1), 0.4),
    ],
)
def test_chance_is_what_the_knob_says_and_comes_from_the_seed(tcp: TcpOptions, script: Script, share: float) -> None:
    evaded = [not caught(censor(tcp), script, seed=seed) for seed in range(400)]
    # Four standard deviations of a share among 400.
    assert abs(sum(evaded) / 400 - share) < 4 * (share * (1 - share) / 400) ** 0.5
    assert evaded[:20] == [not caught(censor(tcp), script, seed=seed) for seed in range(20)]


def test_a_connection_torn_down_is_remembered_anew_where_a_syn_ack_or_any_packet_suffices() -> None:
    def reset_in_the_handshake(wire: Wire) -> Iterator[Step]:
        yield wire.syn()
        yield wire.client(RST)
        yield wire.syn_ack()
        yield wire.to_server()
        yield from wire.request()

    assert not caught(censor(only(create_on="syn")), reset_in_the_handshake)
    assert caught(censor(only(create_on="both")), reset_in_the_handshake)
    assert caught(censor(only(create_on="any")), insert(RST, b""))


def test_a_syn_ack_of_the_client_turns_the_roles_round() -> None:
    """The reversal of Wang et al., IMC 2017: who makes its block of a SYN/ACK takes the sender for the server."""

    def reversed_roles(wire: Wire) -> Iterator[Step]:
        yield build_tcp(wire.tuple, seq=5, ack=5, flags=SYN | ACK)
        yield from plain(wire)

    assert caught(censor(only(create_on="syn")), reversed_roles)
    assert not caught(censor(only(create_on="both")), reversed_roles)
    by_packet = rule("alert", {"direction": "to_server", "payload.length": len(HELLO)})
    assert caught(ruleset(by_packet, tcp=only(create_on="syn")), reversed_roles)
    assert not caught(ruleset(by_packet, tcp=only(create_on="both")), reversed_roles)


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize(
    ("tcp", "checksum", "dropped"),
    [
        (only(create_on="syn"), None, [True, True]),
        (only(create_on="both"), None, [False, True]),
        (only(create_on="synack"), None, [False, True]),
        (only(create_on="both", verify_checksum=True), 1, [True, True]),
    ],
)
def test_the_roles_stay_turned_round_until_the_connection_closes(
    tcp: TcpOptions, checksum: int | None, dropped: list[bool], offload: bool
) -> None:
    """Where no rule cares for clients outside, too, so that the censor has no reason to read the connection."""
    from_inside = rule("drop", {"tls.sni": "www.blocked.example", "initiator": "inside"}, direction="both")
    rules = ruleset(from_inside, tcp=tcp, inside=((address_bytes("192.0.2.0"), 24),))
    model = KernelModel(Engine(rules, offload=offload))
    asked: list[int] = []
    insertion = [build_tcp(Wire().tuple, seq=5, ack=5, flags=SYN | ACK, checksum=checksum)]
    number = 0
    for isn in (1000, 900_000):
        wire = Wire()
        wire.client_seq = isn
        packets = [*insertion, *wire.handshake(), wire.to_server(HELLO)]
        asked.append(number + len(packets) - 1)
        packets += [wire.to_client(b"answer"), wire.to_server(), wire.client(FIN | ACK), wire.server(FIN | ACK)]
        for data in packets:
            model.packet(number, data, 0.0)
            number += 1
        insertion = []
    fates = model.stop().fates
    assert [fates[one][0] is Verdict.DROP for one in asked] == dropped


def test_a_syn_behind_its_syn_ack_belongs_to_the_connection_and_another_one_does_not() -> None:
    book, wire = Playbook(censor(only(create_on="both"))), Wire()
    syn = wire.syn()
    book.packet(wire.syn_ack())
    assert not book.packet(syn).told(FlowEnded)
    assert book.packet(build_tcp(wire.tuple, seq=77_000, ack=0, flags=SYN)).told(FlowEnded)


def test_rules_on_payload_wait_for_the_handshake_and_rules_on_addresses_do_not() -> None:
    tcp = only(handshake="full")
    by_payload = ruleset(rule("alert", {"payload.number": 1}), tcp=tcp)
    assert caught(by_payload, plain)
    assert not caught(by_payload, without_synack)
    assert caught(ruleset(rule("alert", {"port.server": 443}), tcp=tcp), without_synack)
