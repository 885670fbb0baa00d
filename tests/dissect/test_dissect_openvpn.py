"""OpenVPN's handshake: against captures of the real program and tshark, every knob, odd and broken packets."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import dataclass

import pytest
from flow_kit import CAPTURES, TO_CLIENT, TO_SERVER, Event, captured_flows, cut_events, play
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.openvpn import OPENVPN_TCP, OPENVPN_UDP
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import NEED_MORE, Span
from gfwemu.model import Transport

CLIENT_ID, SERVER_ID = b"clientid", b"serverid"
CLIENT_RESET = DissectOptions(openvpn_confirm="client_reset")
SERVER_RESET = DissectOptions(openvpn_confirm="server_reset")
CONTROL = DissectOptions(openvpn_confirm="control")

CAPTURED = {
    "plain": "plain",
    "tls-auth-sha1": "tls-auth",
    "tls-auth-sha256": "tls-auth",
    "tls-auth-sha512": "tls-auth",
    "tls-crypt": "tls-crypt",
    "tls-crypt-v2": "tls-crypt-v2",
}


@dataclass(frozen=True)
class Wrapping:
    """Builds the packets of one variant."""

    variant: str
    hmac: int = 0
    wrapped_key: int = 0

    def control(self, opcode: int, session: bytes, inner: bytes, *, number: int = 1, key_id: int = 0) -> bytes:
        head = bytes([opcode << 3 | key_id]) + session
        replay = struct.pack("!II", number, 1_790_000_000)
        if self.variant == "plain":
            return head + inner
        if self.variant == "tls-auth":
            return head + b"h" * self.hmac + replay + inner
        return head + replay + b"t" * 32 + bytes(byte ^ 0x5A for byte in inner)

    def client_reset(self, *, number: int = 1) -> bytes:
        opcode = 10 if self.variant == "tls-crypt-v2" else 7
        packet = self.control(opcode, CLIENT_ID, bytes(5), number=number)
        if self.wrapped_key:
            packet += b"w" * (self.wrapped_key - 2) + struct.pack("!H", self.wrapped_key)
        return packet

    def server_reset(self, *, of_client: bytes = CLIENT_ID) -> bytes:
        return self.control(8, SERVER_ID, b"\x01\0\0\0\0" + of_client + b"\0\0\0\0")

    def client_control(self) -> bytes:
        return self.control(4, CLIENT_ID, b"\x01\0\0\0\0" + SERVER_ID + b"\0\0\0\1" + b"hello", number=2)

    def server_control(self) -> bytes:
        return self.control(4, SERVER_ID, b"\x01\0\0\0\1" + CLIENT_ID + b"\0\0\0\1" + b"hello", number=2)


DATA = b"\x48\0\0\0" + bytes(40)
WRAPPINGS = [
    Wrapping("plain"),
    *[Wrapping("tls-auth", hmac) for hmac in (16, 20, 28, 32, 48, 64)],
    Wrapping("tls-crypt"),
    Wrapping("tls-crypt-v2", wrapped_key=299),
]
PLAIN = WRAPPINGS[0]


def handshake(wrapping: Wrapping) -> list[Event]:
    return [
        (TO_SERVER, wrapping.client_reset()),
        (TO_CLIENT, wrapping.server_reset()),
        (TO_SERVER, wrapping.client_control()),
        (TO_CLIENT, wrapping.server_control()),
        (TO_SERVER, DATA),
    ]


def over_tcp(events: list[Event]) -> list[Event]:
    return [(direction, struct.pack("!H", len(data)) + data) for direction, data in events]


def stages(entry: Dissector, events: list[Event], options: DissectOptions) -> list[object]:
    return [facts["openvpn.stage"] for facts in play(entry, events, options).facts]


def reason(entry: Dissector, *events: Event, options: DissectOptions = SERVER_RESET) -> str:
    played = play(entry, events, options)
    assert played.kind == "reject", played
    return played.reason


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("name", CAPTURED)
def test_the_real_program(name: str, transport: str) -> None:
    (flow,) = captured_flows(CAPTURES / f"openvpn-{transport}-{name}.pcap")
    entry = OPENVPN_UDP if flow.transport == Transport.UDP else OPENVPN_TCP
    for options, first in ((CLIENT_RESET, 10 if name == "tls-crypt-v2" else 7), (SERVER_RESET, 8)):
        played = play(entry, flow.events, options)
        assert [facts["openvpn.stage"] for facts in played.facts] == ["reset", "handshake", "data"]
        assert {facts["openvpn.variant"] for facts in played.facts} == {CAPTURED[name]}
        assert played.facts[0]["openvpn.opcode"] == first
        assert played.facts[2]["openvpn.opcode"] == 9
        assert played.final
    assert stages(entry, flow.events, CONTROL) == ["handshake", "data"]


@pytest.mark.needs("tshark")
@pytest.mark.parametrize("name", CAPTURED)
def test_opcodes_as_tshark_reads_them(name: str) -> None:
    path = CAPTURES / f"openvpn-udp-{name}.pcap"
    argv = ["tshark", "-r", str(path), "-d", "udp.port==1194,openvpn", "-Y", "openvpn", "-T", "fields"]
    lines = subprocess.run([*argv, "-e", "openvpn.opcode"], capture_output=True, text=True, check=True).stdout.split()
    (flow,) = captured_flows(path)
    assert [int(line, 0) for line in lines] == [data[0] >> 3 for _, data in flow.events]
    told = [facts["openvpn.opcode"] for facts in play(OPENVPN_UDP, flow.events, CLIENT_RESET).facts]
    assert told[0] == int(lines[0], 0)
    assert told[-1] == next(int(line, 0) for line in lines if int(line, 0) in (6, 9))


@pytest.mark.parametrize("wrapping", WRAPPINGS, ids=lambda wrapping: f"{wrapping.variant}-{wrapping.hmac}")
@pytest.mark.parametrize("tcp", [False, True])
def test_every_variant(wrapping: Wrapping, tcp: bool) -> None:
    events = over_tcp(handshake(wrapping)) if tcp else handshake(wrapping)
    played = play(OPENVPN_TCP if tcp else OPENVPN_UDP, events)
    assert played.facts == [
        {"openvpn.variant": wrapping.variant, "openvpn.stage": "reset", "openvpn.opcode": 8},
        {"openvpn.variant": wrapping.variant, "openvpn.stage": "handshake", "openvpn.opcode": 4},
        {"openvpn.variant": wrapping.variant, "openvpn.stage": "data", "openvpn.opcode": 9},
    ]
    assert played.final


@pytest.mark.parametrize(
    ("length", "wrapping"),
    [(14, PLAIN), (42, Wrapping("tls-auth", 20)), (54, Wrapping("tls-auth", 32)), (86, Wrapping("tls-auth", 64)),
     (54, Wrapping("tls-crypt"))],
)  # fmt: skip
def test_published_lengths_of_client_resets(length: int, wrapping: Wrapping) -> None:
    assert len(wrapping.client_reset()) == length


def test_spans_count_in_the_stream() -> None:
    messages = play(OPENVPN_TCP, over_tcp(handshake(PLAIN))).messages
    first = len(PLAIN.client_reset()) + 2
    data = first + len(PLAIN.client_control()) + 2
    assert [message.spans["openvpn.opcode"] for message in messages] == [
        Span(2, 1),
        Span(first + 2, 1),
        Span(data + 2, 1),
    ]


def test_several_packets_in_one_piece() -> None:
    up = b"".join(data for direction, data in over_tcp(handshake(PLAIN)) if direction is TO_SERVER)
    session = OPENVPN_TCP.open(CLIENT_RESET)
    assert session.feed(TO_CLIENT, b"") == NEED_MORE
    events = over_tcp([(TO_SERVER, PLAIN.client_reset()), (TO_CLIENT, PLAIN.server_reset())])
    rest = up[len(PLAIN.client_reset()) + 2 :]
    assert stages(OPENVPN_TCP, [*events, (TO_SERVER, rest)], CLIENT_RESET) == ["reset", "handshake", "data"]


def test_a_client_that_sends_its_reset_again() -> None:
    for wrapping in WRAPPINGS:
        again = [(TO_SERVER, wrapping.client_reset(number=number)) for number in range(1, 30)]
        assert stages(OPENVPN_UDP, [*again, (TO_CLIENT, wrapping.server_reset())], SERVER_RESET) == ["reset"]


def test_a_client_that_starts_again_from_the_same_port() -> None:
    other = PLAIN.control(7, b"clientno", bytes(5))
    answer = PLAIN.server_reset(of_client=b"clientno")
    assert stages(
        OPENVPN_UDP, [(TO_SERVER, PLAIN.client_reset()), (TO_SERVER, other), (TO_CLIENT, answer)], SERVER_RESET
    )
    # After it was recognised, too.
    events = [
        *handshake(PLAIN)[:2],
        (TO_SERVER, other),
        (TO_CLIENT, answer),
        (TO_SERVER, PLAIN.control(4, b"clientno", b"")),
    ]
    assert stages(OPENVPN_UDP, events, CLIENT_RESET) == ["reset", "handshake"]


def test_data_before_the_new_session_is_answered_belongs_to_the_old_one() -> None:
    other = PLAIN.control(7, b"clientno", bytes(5))
    events: list[Event] = [*handshake(PLAIN)[:2], (TO_SERVER, other), (TO_CLIENT, DATA)]
    assert stages(OPENVPN_UDP, events, CLIENT_RESET) == ["reset"]


def test_data_right_behind_the_resets() -> None:
    events = [*handshake(PLAIN)[:2], (TO_CLIENT, DATA)]
    assert stages(OPENVPN_UDP, events, SERVER_RESET) == ["reset", "data"]


@pytest.mark.parametrize("version", [6, 9])
def test_both_versions_of_data_packets(version: int) -> None:
    events = [*handshake(PLAIN)[:2], (TO_CLIENT, bytes([version << 3]) + bytes(60))]
    assert play(OPENVPN_UDP, events).facts[-1]["openvpn.opcode"] == version


def test_an_alien_datagram_after_recognition_is_passed_over() -> None:
    events = handshake(PLAIN)
    alien: list[Event] = [
        (TO_SERVER, b"GET / HTTP/1.1\r\n"),
        (TO_CLIENT, b""),
        (TO_SERVER, b"\x20other sid" + bytes(20)),
    ]
    assert stages(OPENVPN_UDP, events[:2] + alien + events[2:], SERVER_RESET) == ["reset", "handshake", "data"]


def test_broken_framing_after_recognition_ends_the_session() -> None:
    events = [*over_tcp(handshake(PLAIN))[:2], (TO_SERVER, b"\0\0")]
    played = play(OPENVPN_TCP, events)
    assert (played.kind, played.final, len(played.messages)) == ("confirm", True, 1)


UNKNOWN = "OpenVPN: unknown opcode or a key id other than 0"
NOT_A_RESET = "OpenVPN: the first packet is no hard reset"
ODD_LENGTH = "OpenVPN reset: a length of no variant"


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (b"", "OpenVPN packet: 1 bytes wanted, 0 left"),
        (b"\x00" + bytes(13), UNKNOWN),
        (b"\x60" + bytes(13), UNKNOWN),
        (b"\x39" + bytes(13), UNKNOWN),
        (b"\x20" + bytes(40), NOT_A_RESET),
        (DATA, NOT_A_RESET),
        (b"\x40" + bytes(25), "OpenVPN: a reset in the wrong direction"),
        (b"\x38" + bytes(12), "OpenVPN: implausible length of a reset"),
        (b"\x38" + bytes(1199), "OpenVPN: implausible length of a reset"),
        (b"\x38" + bytes(14), ODD_LENGTH),
        (b"\x38" + b"x" * 13, ODD_LENGTH),
        (b"\x38" + b"x" * 99, ODD_LENGTH),
        (PLAIN.client_reset()[:4] + b"\x21\x12\xa4\x42" + bytes(6), "OpenVPN: it is STUN"),
        (Wrapping("tls-crypt").client_reset(number=0), "OpenVPN reset: implausible replay packet id"),
        (Wrapping("tls-crypt").client_reset(number=256), "OpenVPN reset: implausible replay packet id"),
        (Wrapping("tls-auth", 20).client_reset(number=99999), "OpenVPN reset: implausible replay packet id"),
        (
            Wrapping("tls-crypt-v2", wrapped_key=299).client_reset() + b"x",
            "OpenVPN reset: no wrapped client key at its end",
        ),
    ],
)
def test_first_packets_that_are_rejected(packet: bytes, expected: str) -> None:
    assert reason(OPENVPN_UDP, (TO_SERVER, packet)) == expected


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (PLAIN.server_reset(of_client=b"somebody"), "OpenVPN reset: answers another session"),
        (PLAIN.control(8, SERVER_ID, bytes(9)), "OpenVPN reset: acknowledges nothing"),
        (PLAIN.control(8, SERVER_ID, b"\x09" + bytes(60)), "OpenVPN reset: acknowledges nothing"),
        (PLAIN.server_reset()[:20], "OpenVPN reset: 8 bytes wanted, 6 left"),
        (PLAIN.client_reset(), "OpenVPN: a reset in the wrong direction"),
        (PLAIN.server_control(), NOT_A_RESET),
    ],
)
def test_answers_that_are_rejected(packet: bytes, expected: str) -> None:
    assert reason(OPENVPN_UDP, (TO_SERVER, PLAIN.client_reset()), (TO_CLIENT, packet)) == expected


def test_the_server_does_not_speak_first() -> None:
    assert reason(OPENVPN_UDP, (TO_CLIENT, PLAIN.server_reset())) == "OpenVPN: the server speaks first"


def test_control_packets_keep_the_session_ids() -> None:
    events = handshake(PLAIN)[:2]
    alien = PLAIN.control(4, b"somebody", b"")
    assert (
        reason(OPENVPN_UDP, *events, (TO_SERVER, alien), options=CONTROL)
        == "OpenVPN: a control packet of another session"
    )
    server_as_client = PLAIN.control(4, SERVER_ID, b"")
    assert reason(OPENVPN_UDP, *events, (TO_SERVER, server_as_client), options=CONTROL)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"\0\0", "OpenVPN over TCP: implausible length"),
        (b"\xff\xff", "OpenVPN over TCP: implausible length"),
        (b"\x16\x03\x01", UNKNOWN),
        (b"\x12\x34\x38", "OpenVPN: implausible length of a reset"),
        (b"\0\x0e\x20", NOT_A_RESET),
        (b"GET", UNKNOWN),
    ],
)
def test_streams_that_are_rejected_at_once(stream: bytes, expected: str) -> None:
    options = DissectOptions(stream_limit=20_000)
    assert reason(OPENVPN_TCP, (TO_SERVER, stream), options=options) == expected


@given(st.sampled_from(WRAPPINGS), st.lists(st.integers(0, 300), max_size=10), st.sampled_from([CLIENT_RESET, CONTROL]))
def test_cutting_the_stream_changes_nothing(wrapping: Wrapping, cuts: list[int], options: DissectOptions) -> None:
    events = over_tcp(handshake(wrapping))
    assert play(OPENVPN_TCP, cut_events(events, cuts), options) == play(OPENVPN_TCP, events, options)
