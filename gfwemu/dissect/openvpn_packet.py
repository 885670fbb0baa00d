"""OpenVPN packets: opcodes, and the reset packets from which the variant is told.

Layout (openvpn-rfc "Wire Protocol" 4; lengths and orders checked on captures of OpenVPN 2.6.14): opcode << 3 | key id,
session id (8), then by variant

- plain: acknowledgements, packet id (4), payload;
- tls-auth: HMAC (the digest's length), replay packet id (4), time (4), then as plain;
- tls-crypt, tls-crypt-v2: replay packet id (4), time (4), tag (32), then as plain but encrypted; the client's first
  packet under tls-crypt-v2 ends in the wrapped client key, whose last two bytes are its length.

Acknowledgements: a count, that many packet ids (4), and where there are any the peer's session id (8). Data packets
have no session id.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from gfwemu.dissect.reader import MalformedBytes, Reader


class Opcode(IntEnum):
    """openvpn ssl_pkt.h."""

    HARD_RESET_CLIENT_V1 = 1
    HARD_RESET_SERVER_V1 = 2
    SOFT_RESET_V1 = 3
    CONTROL_V1 = 4
    ACK_V1 = 5
    DATA_V1 = 6
    HARD_RESET_CLIENT_V2 = 7
    HARD_RESET_SERVER_V2 = 8
    DATA_V2 = 9
    HARD_RESET_CLIENT_V3 = 10
    CONTROL_WKC_V1 = 11


CLIENT_RESETS = frozenset({Opcode.HARD_RESET_CLIENT_V1, Opcode.HARD_RESET_CLIENT_V2, Opcode.HARD_RESET_CLIENT_V3})
SERVER_RESETS = frozenset({Opcode.HARD_RESET_SERVER_V1, Opcode.HARD_RESET_SERVER_V2})
RESETS = CLIENT_RESETS | SERVER_RESETS
DATA = frozenset({Opcode.DATA_V1, Opcode.DATA_V2})
_OPCODES = {int(opcode): opcode for opcode in Opcode}

# A client's plain reset: opcode, session id, no acknowledgement, packet id 0.
SHORTEST_RESET = 14
# QUIC's first packets are at least this long (RFC 9000 section 14.1), and one in 32 begins as a reset; nDPI's guard.
LONGEST_RESET = 1199
# MD5, SHA1, SHA224, SHA256, SHA384, SHA512.
_HMAC_LENGTHS = frozenset({16, 20, 28, 32, 48, 64})
_REPLAY_LENGTH = 8
# opcode, session id, replay packet id, time, tag (32 bytes), and the encrypted count of acknowledgements and packet id.
_TLS_CRYPT_CLIENT_RESET = 54
# The same with one acknowledgement and the client's session id.
_TLS_CRYPT_SERVER_RESET = 66
# A client resends its reset for a minute, every 2 s and then less often. The bound is a guess on the safe side.
_MOST_RESENDINGS = 255
# OpenVPN 2.6 marks with it that it can negotiate early (ssl_pkt.h EARLY_NEG_START).
_EARLY_NEGOTIATION = 0x0F000000
# OpenVPN reliable.h: RELIABLE_ACK_SIZE.
_MOST_ACKNOWLEDGEMENTS = 8

_NO_ACKNOWLEDGEMENT_PACKET_ZERO = bytes(5)


@dataclass(frozen=True, slots=True)
class Reset:
    """What a hard reset tells. `hmac_length` is that of tls-auth, else 0."""

    session_id: bytes
    variant: str
    hmac_length: int = 0


def read_opcode(first: int) -> Opcode:
    """From the first byte. Before the first renegotiation the key id is 0. Raises MalformedBytes."""
    opcode = _OPCODES.get(first >> 3)
    if first & 7 or opcode is None:
        raise MalformedBytes("OpenVPN: unknown opcode or a key id other than 0")
    return opcode


def _read_replay_id(reader: Reader) -> None:
    number = reader.u32()
    if number >= _EARLY_NEGOTIATION:
        number -= _EARLY_NEGOTIATION
    if not 1 <= number <= _MOST_RESENDINGS:
        raise MalformedBytes("OpenVPN reset: implausible replay packet id")
    reader.skip(4)


def read_client_reset(packet: bytes) -> Reset:
    """Raises MalformedBytes where the layout fits no variant."""
    opcode = read_opcode(packet[0])
    length = len(packet)
    reader = Reader(packet, "OpenVPN reset", start=1)
    session_id = reader.take(8)
    if opcode == Opcode.HARD_RESET_CLIENT_V3:
        _read_replay_id(reader)
        wrapped = length - _TLS_CRYPT_CLIENT_RESET
        if wrapped != int.from_bytes(packet[-2:], "big"):
            raise MalformedBytes("OpenVPN reset: no wrapped client key at its end")
        return Reset(session_id, "tls-crypt-v2")
    if packet.endswith(_NO_ACKNOWLEDGEMENT_PACKET_ZERO):
        if length == SHORTEST_RESET:
            return Reset(session_id, "plain")
        hmac_length = length - SHORTEST_RESET - _REPLAY_LENGTH
        if hmac_length not in _HMAC_LENGTHS:
            raise MalformedBytes("OpenVPN reset: a length of no variant")
        reader.skip(hmac_length)
        _read_replay_id(reader)
        return Reset(session_id, "tls-auth", hmac_length)
    if length != _TLS_CRYPT_CLIENT_RESET:
        raise MalformedBytes("OpenVPN reset: a length of no variant")
    _read_replay_id(reader)
    return Reset(session_id, "tls-crypt")


def read_server_reset(packet: bytes, client: Reset) -> bytes:
    """The server's session id. Raises MalformedBytes where it is not the answer to the client's reset."""
    reader = Reader(packet, "OpenVPN reset", start=1)
    session_id = reader.take(8)
    if client.variant in ("tls-crypt", "tls-crypt-v2"):
        _read_replay_id(reader)
        # The rest is encrypted; a 2.6 server appends what it can negotiate early.
        reader.skip(_TLS_CRYPT_SERVER_RESET - reader.position)
        return session_id
    if client.variant == "tls-auth":
        reader.skip(client.hmac_length)
        _read_replay_id(reader)
    acknowledgements = reader.u8()
    if not 1 <= acknowledgements <= _MOST_ACKNOWLEDGEMENTS:
        raise MalformedBytes("OpenVPN reset: acknowledges nothing")
    reader.skip(4 * acknowledgements)
    if reader.take(8) != client.session_id:
        raise MalformedBytes("OpenVPN reset: answers another session")
    reader.skip(4)
    return session_id
