"""OpenVPN over UDP and TCP, plain and wrapped in tls-auth, tls-crypt or tls-crypt-v2.

Recognised by its handshake (Xue et al., USENIX Security 2022; nDPI's and OpenGFW's rules restated): the first packet
of each direction is a hard reset, the server's answers the client's, and later control packets keep the session ids.
A session is fed until the first data packet and reports a message at each change of stage.
"""

from __future__ import annotations

from enum import IntEnum

from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.fields import Field, FieldKind
from gfwemu.dissect.openvpn_packet import (
    CLIENT_RESETS,
    DATA,
    LONGEST_RESET,
    RESETS,
    SERVER_RESETS,
    SHORTEST_RESET,
    Opcode,
    Reset,
    read_client_reset,
    read_opcode,
    read_server_reset,
)
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import NEED_MORE, Confirm, Message, Outcome, Reject, Span
from gfwemu.dissect.reader import MalformedBytes, OutOfBytes, Reader
from gfwemu.model import Direction, Transport

FIELDS = (
    Field(
        "openvpn.variant",
        FieldKind.ENUM,
        "How the control channel is wrapped.",
        "tls-crypt",
        ("plain", "tls-auth", "tls-crypt", "tls-crypt-v2"),
    ),
    Field(
        "openvpn.stage",
        FieldKind.ENUM,
        "How far the connection is: hard resets, TLS handshake, first data packet.",
        "data",
        ("reset", "handshake", "data"),
    ),
    Field("openvpn.opcode", FieldKind.NUMBER, "The opcode of the packet that began the stage.", "7"),
)


class _Step(IntEnum):
    CLIENT_RESET = 1
    SERVER_RESET = 2
    CONTROL = 3
    DATA = 4


_STAGES = ("", "reset", "handshake", "data")
_STAGE_OF_STEP = {_Step.CLIENT_RESET: 1, _Step.SERVER_RESET: 1, _Step.CONTROL: 2, _Step.DATA: 3}
_CONFIRM_STEPS = {
    "client_reset": _Step.CLIENT_RESET,
    "server_reset": _Step.SERVER_RESET,
    "control": _Step.CONTROL,
}
_RESETS_OF = {Direction.TO_SERVER: CLIENT_RESETS, Direction.TO_CLIENT: SERVER_RESETS}

_STUN_COOKIE = b"\x21\x12\xa4\x42"  # RFC 8489 section 5
_STUN_COOKIE_OFFSET = 4


class _Handshake:
    """What is known of the connection, packet by packet, whatever carries them."""

    __slots__ = ("_client", "_confirm_step", "_server_id", "_stage", "confirmed")

    def __init__(self, options: DissectOptions) -> None:
        self._client: Reset | None = None
        self._server_id: bytes | None = None
        self._confirm_step = _CONFIRM_STEPS[options.openvpn_confirm]
        self._stage = 0
        self.confirmed = False

    def check_opcode(self, direction: Direction, first: int, length: int) -> Opcode:
        """What a packet's first byte and length allow to say. Raises MalformedBytes."""
        opcode = read_opcode(first)
        if opcode in RESETS:
            if opcode not in _RESETS_OF[direction]:
                raise MalformedBytes("OpenVPN: a reset in the wrong direction")
            if not SHORTEST_RESET <= length <= LONGEST_RESET:
                raise MalformedBytes("OpenVPN: implausible length of a reset")
        elif self._client is None or self._server_id is None:
            raise MalformedBytes("OpenVPN: the first packet is no hard reset")
        return opcode

    def read(self, direction: Direction, packet: bytes, offset: int) -> Message | None:
        """The message of a packet that begins a new stage of a recognised connection. Raises MalformedBytes."""
        reader = Reader(packet, "OpenVPN packet")
        opcode = self.check_opcode(direction, reader.u8(), len(packet))
        step = self._step(direction, opcode, packet, reader)
        self.confirmed = self.confirmed or step >= self._confirm_step
        assert self._client is not None
        stage = _STAGE_OF_STEP[step]
        if not self.confirmed or stage <= self._stage:
            return None
        self._stage = stage
        return Message(
            {
                "openvpn.variant": self._client.variant,
                "openvpn.stage": _STAGES[stage],
                "openvpn.opcode": int(opcode),
            },
            {"openvpn.opcode": Span(offset, 1)},
        )

    @property
    def final(self) -> bool:
        return self._stage == _STAGE_OF_STEP[_Step.DATA]

    def _step(self, direction: Direction, opcode: Opcode, packet: bytes, reader: Reader) -> _Step:
        if opcode in CLIENT_RESETS:
            reset = read_client_reset(packet)
            if self._client is None or reset.session_id != self._client.session_id:
                # Also a client that starts again from the same port.
                self._client, self._server_id = reset, None
            return _Step.CLIENT_RESET
        if opcode in SERVER_RESETS:
            if self._client is None:
                raise MalformedBytes("OpenVPN: the server speaks first")
            self._server_id = read_server_reset(packet, self._client)
            return _Step.SERVER_RESET
        if opcode in DATA:
            return _Step.DATA
        assert self._client is not None
        expected = self._client.session_id if direction is Direction.TO_SERVER else self._server_id
        if reader.take(8) != expected:
            raise MalformedBytes("OpenVPN: a control packet of another session")
        return _Step.CONTROL


class OpenvpnUdpSession:
    """One packet a datagram. Until the protocol is recognised every datagram must fit; later others are passed over."""

    __slots__ = ("_handshake",)

    def __init__(self, options: DissectOptions) -> None:
        self._handshake = _Handshake(options)

    def feed(self, direction: Direction, data: bytes) -> Outcome:
        handshake = self._handshake
        try:
            if data.startswith(_STUN_COOKIE, _STUN_COOKIE_OFFSET):
                raise MalformedBytes("OpenVPN: it is STUN")
            message = handshake.read(direction, data, 0)
        except MalformedBytes as problem:
            return NEED_MORE if handshake.confirmed else Reject(str(problem))
        return NEED_MORE if message is None else Confirm((message,), handshake.final)


class OpenvpnTcpSession:
    """Packets behind two bytes of length."""

    __slots__ = ("_buffers", "_handshake", "_limit", "_positions")

    def __init__(self, options: DissectOptions) -> None:
        self._handshake = _Handshake(options)
        self._buffers = {direction: bytearray() for direction in Direction}
        self._positions = dict.fromkeys(Direction, 0)
        self._limit = options.stream_limit

    def feed(self, direction: Direction, data: bytes) -> Outcome:
        self._buffers[direction] += data
        messages: list[Message] = []
        was_confirmed = self._handshake.confirmed
        try:
            while not self._handshake.final and (packet := self._next_packet(direction)) is not None:
                message = self._handshake.read(direction, packet, self._positions[direction] - len(packet))
                if message is not None:
                    messages.append(message)
        except MalformedBytes as problem:
            if not was_confirmed and not messages:
                return Reject(str(problem))
            return Confirm(tuple(messages), final=True)
        return Confirm(tuple(messages), self._handshake.final) if messages else NEED_MORE

    def _next_packet(self, direction: Direction) -> bytes | None:
        buffer = self._buffers[direction]
        reader = Reader(buffer, "OpenVPN over TCP", open_end=True)
        try:
            length = reader.u16()
            if not 1 <= length <= self._limit:
                raise MalformedBytes("OpenVPN over TCP: implausible length")
            # What is not OpenVPN must not be waited for: its first bytes may announce 64 KiB.
            self._handshake.check_opcode(direction, reader.peek(1)[0], length)
            packet = reader.take(length)
        except OutOfBytes:
            return None
        del buffer[: reader.position]
        self._positions[direction] += reader.position
        return packet


OPENVPN_UDP = Dissector("openvpn", frozenset({Transport.UDP}), FIELDS, OpenvpnUdpSession)
OPENVPN_TCP = Dissector("openvpn", frozenset({Transport.TCP}), FIELDS, OpenvpnTcpSession)
