"""WireGuard's messages: against a capture of wireguard-go and tshark, every knob, rekeying, roaming, odd messages."""

from __future__ import annotations

import subprocess

import pytest
from flow_kit import CAPTURES, TO_CLIENT, TO_SERVER, Event, captured_flows, play

from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import Span
from gfwemu.dissect.wireguard import WIREGUARD

INITIATION = DissectOptions(wireguard_confirm="initiation")
RESPONSE = DissectOptions(wireguard_confirm="response")
DATA = DissectOptions(wireguard_confirm="data")
ODD = "WireGuard: type and length do not agree"


def initiation(sender: bytes = b"cidx", *, reserved: bytes = bytes(3), mac2: bytes = bytes(16)) -> bytes:
    return b"\x01" + reserved + sender + b"e" * (148 - 8 - 16) + mac2


def response(sender: bytes = b"sidx", receiver: bytes = b"cidx", *, reserved: bytes = bytes(3)) -> bytes:
    return b"\x02" + reserved + sender + receiver + b"e" * (92 - 12 - 16) + bytes(16)


def cookie(receiver: bytes = b"cidx") -> bytes:
    return b"\x03\0\0\0" + receiver + b"c" * 56


def data(receiver: bytes, length: int = 32, *, reserved: bytes = bytes(3)) -> bytes:
    return b"\x04" + reserved + receiver + bytes(8) + b"d" * (length - 16)


def stages(events: list[Event], options: DissectOptions = RESPONSE) -> list[object]:
    return [facts["wireguard.stage"] for facts in play(WIREGUARD, events, options).facts]


HANDSHAKE: list[Event] = [(TO_SERVER, initiation()), (TO_CLIENT, response()), (TO_SERVER, data(b"sidx", 128))]


def test_wireguard_go() -> None:
    (flow,) = captured_flows(CAPTURES / "wireguard.pcap")
    assert stages(flow.events, INITIATION) == ["initiation", "response", "data"]
    assert stages(flow.events, RESPONSE) == ["response", "data"]
    assert stages(flow.events, DATA) == ["data"]
    played = play(WIREGUARD, flow.events)
    assert played.final
    assert {facts["wireguard.reserved"] for facts in played.facts} == {False}
    assert played.messages[0].spans == {"wireguard.stage": Span(0, 1), "wireguard.reserved": Span(1, 3)}


@pytest.mark.needs("tshark")
def test_types_as_tshark_reads_them() -> None:
    path = CAPTURES / "wireguard.pcap"
    argv = ["tshark", "-r", str(path), "-Y", "wg", "-T", "fields", "-e", "wg.type"]
    types = [int(line) for line in subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()]
    (flow,) = captured_flows(path)
    assert types == [payload[0] for _, payload in flow.events]
    assert types[:3] == [1, 2, 4]


@pytest.mark.parametrize(
    ("options", "expected"),
    [(INITIATION, ["initiation", "response", "data"]), (RESPONSE, ["response", "data"]), (DATA, ["data"])],
)
def test_the_knob(options: DissectOptions, expected: list[str]) -> None:
    assert stages(HANDSHAKE, options) == expected


@pytest.mark.parametrize("options", [INITIATION, RESPONSE])
def test_warp_writes_into_the_reserved_bytes(options: DissectOptions) -> None:
    reserved = b"\x12\x34\x56"
    events: list[Event] = [(TO_SERVER, initiation(reserved=reserved)), (TO_CLIENT, response(reserved=reserved))]
    assert [facts["wireguard.reserved"] for facts in play(WIREGUARD, events, options).facts][-1] is True
    assert stages([*events, (TO_SERVER, data(b"sidx", reserved=reserved))], options)[-1] == "data"


def test_reserved_bytes_and_a_cookie_wait_for_the_response() -> None:
    events: list[Event] = [(TO_SERVER, initiation(reserved=b"\1\2\3", mac2=b"m" * 16))]
    assert stages(events, INITIATION) == []
    assert stages([*events, (TO_CLIENT, response())], INITIATION) == ["response"]


def test_a_cookie_reply_under_load() -> None:
    events: list[Event] = [
        (TO_SERVER, initiation()),
        (TO_CLIENT, cookie()),
        (TO_SERVER, initiation(b"cid2", mac2=b"m" * 16)),
        (TO_CLIENT, response(receiver=b"cid2")),
    ]
    assert stages(events, INITIATION) == ["initiation", "cookie", "initiation", "response"]
    assert stages(events, RESPONSE) == ["response"]


def test_initiations_that_are_sent_again_have_new_indexes() -> None:
    again: list[Event] = [(TO_SERVER, initiation(b"idx" + bytes([number]))) for number in range(18)]
    for number in (0, 17):
        assert stages([*again, (TO_CLIENT, response(receiver=b"idx" + bytes([number])))]) == ["response"]
    assert stages([(TO_SERVER, initiation(b"lost")), *again, (TO_CLIENT, response(receiver=b"lost"))]) == []
    assert stages(again, INITIATION) == ["initiation"]


def test_the_other_end_may_initiate() -> None:
    events: list[Event] = [
        (TO_CLIENT, initiation(b"sidx")),
        (TO_SERVER, response(b"cidx", b"sidx")),
        (TO_CLIENT, data(b"cidx")),
    ]
    assert stages(events) == ["response", "data"]


def test_roaming_begins_with_data_and_is_recognised_when_it_rekeys() -> None:
    middle: list[Event] = [(TO_SERVER, data(b"olds", 1424)), (TO_CLIENT, data(b"oldc"))] * 50
    assert stages(middle) == []
    assert stages([*middle, *HANDSHAKE[:2], *middle, HANDSHAKE[2]]) == ["response", "data"]


def test_an_answer_to_nobody_is_waited_out() -> None:
    assert stages([(TO_CLIENT, response()), (TO_CLIENT, cookie()), *HANDSHAKE]) == ["response", "data"]


@pytest.mark.parametrize(("direction", "payload"), [(TO_CLIENT, response(receiver=b"else")), (TO_SERVER, response())])
def test_indexes_must_match(direction: object, payload: bytes) -> None:
    assert stages([(TO_SERVER, initiation()), (direction, payload)]) == []  # type: ignore[list-item]


def test_data_must_carry_the_index_of_the_receiver() -> None:
    assert stages([*HANDSHAKE[:2], (TO_SERVER, data(b"cidx")), (TO_CLIENT, data(b"sidx"))]) == ["response"]


def test_an_alien_datagram_after_recognition_is_passed_over() -> None:
    assert stages([*HANDSHAKE[:2], (TO_SERVER, b"junk"), (TO_CLIENT, b""), HANDSHAKE[2]]) == ["response", "data"]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", ODD),
        (b"\0" + bytes(147), ODD),
        (b"\x05" + bytes(147), ODD),
        (initiation() + b"x", ODD),
        (initiation()[:-1], ODD),
        (response() + b"x", ODD),
        (cookie()[:-1], ODD),
        (data(b"sidx", 33), "WireGuard: implausible length of a data message"),
        (data(b"sidx", 31), "WireGuard: implausible length of a data message"),
        (data(b"sidx", 16), "WireGuard: implausible length of a data message"),
        (b"\x04", "WireGuard: implausible length of a data message"),
    ],
)
def test_what_is_rejected(payload: bytes, reason: str) -> None:
    played = play(WIREGUARD, [(TO_SERVER, initiation()), (TO_CLIENT, payload)])
    assert (played.kind, played.reason) == ("reject", reason)
