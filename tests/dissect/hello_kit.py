"""ClientHellos, records and Initial packets, right or wrong on purpose. Sealing is aioquic's, not ours."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

from aioquic.quic.crypto import CryptoPair

from gfwemu.dissect.outcome import Confirm, NeedMore, Outcome, Reject, Session
from gfwemu.model import Direction

Extension = tuple[int, bytes]

DCID = bytes.fromhex("8394c8f03e515708")  # RFC 9001 appendix A


def vector(prefix: int, body: bytes) -> bytes:
    return len(body).to_bytes(prefix, "big") + body


def numbers(values: Sequence[int]) -> bytes:
    return struct.pack(f"!{len(values)}H", *values)


def server_name(name: bytes) -> Extension:
    return 0, vector(2, b"\0" + vector(2, name))


def alpn(*names: bytes) -> Extension:
    return 16, vector(2, b"".join(vector(1, name) for name in names))


def supported_versions(*versions: int) -> Extension:
    return 43, vector(1, numbers(versions))


def groups(*values: int) -> Extension:
    return 10, vector(2, numbers(values))


def signature_algorithms(*values: int) -> Extension:
    return 13, vector(2, numbers(values))


def point_formats(*values: int) -> Extension:
    return 11, vector(1, bytes(values))


ORDINARY = (
    server_name(b"www.example"),
    alpn(b"h2", b"http/1.1"),
    supported_versions(0x0304, 0x0303),
    groups(0x001D, 0x0017),
    signature_algorithms(0x0403, 0x0804),
    point_formats(0),
)


def client_hello(
    extensions: Sequence[Extension] | None = ORDINARY,
    *,
    version: int = 0x0303,
    ciphers: Sequence[int] = (0x1301, 0x1302, 0xC02F),
    session_id: bytes = bytes(32),
) -> bytes:
    """The handshake message."""
    body = struct.pack("!H", version) + bytes(range(32)) + vector(1, session_id)
    body += vector(2, numbers(ciphers)) + vector(1, b"\0")
    if extensions is not None:
        body += vector(2, b"".join(numbers([kind]) + vector(2, content) for kind, content in extensions))
    return b"\x01" + vector(3, body)


def records(message: bytes, *cuts: int, version: int = 0x0301) -> bytes:
    """Handshake records; a cut is an offset in the message at which a new record begins."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(message)}), len(message)]
    return b"".join(
        struct.pack("!BHH", 22, version, end - start) + message[start:end] for start, end in itertools.pairwise(edges)
    )


def crypto(offset: int, data: bytes) -> bytes:
    return b"\x06" + struct.pack("!II", offset | 2 << 30, len(data) | 2 << 30) + data


def initial(
    frames: bytes,
    *,
    version: int = 1,
    dcid: bytes = DCID,
    scid: bytes = b"",
    token: bytes = b"",
    number: int = 0,
    number_length: int = 1,
    key_dcid: bytes | None = None,
    is_client: bool = True,
) -> bytes:
    """A sealed Initial packet. key_dcid: the connection ID that the keys come from, where not `dcid`."""
    frames += bytes(max(0, 4 - len(frames)))
    kind = 1 if version == 0x6B3343CF else 0
    header = bytes([0xC0 | kind << 4 | number_length - 1]) + struct.pack("!I", version)
    header += vector(1, dcid) + vector(1, scid)
    header += vector(1, token) if len(token) < 64 else struct.pack("!H", len(token) | 1 << 14) + token
    header += struct.pack("!H", number_length + len(frames) + 16 | 1 << 14)
    header += number.to_bytes(number_length, "big")
    pair = CryptoPair()
    pair.setup_initial(cid=dcid if key_dcid is None else key_dcid, is_client=is_client, version=version)
    return pair.encrypt_packet(header, frames, number)


def feed_all(session: Session, pieces: Sequence[bytes]) -> Outcome:
    """Feed in order until the session has decided, and give its last answer."""
    outcome: Outcome = NeedMore()
    for piece in pieces:
        outcome = session.feed(Direction.TO_SERVER, piece)
        if not isinstance(outcome, NeedMore):
            break
    return outcome


def cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted({c % (len(data) + 1) for c in cuts}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def facts_of(outcome: Outcome) -> dict[str, object]:
    assert isinstance(outcome, Confirm), outcome
    assert outcome.final
    assert len(outcome.messages) == 1
    return dict(outcome.messages[0].facts)


def reason_of(outcome: Outcome) -> str:
    assert isinstance(outcome, Reject), outcome
    return outcome.reason


# What first payloads of other protocols look like.
NOT_TLS = {
    "http": b"GET / HTTP/1.1\r\nHost: www.example\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "smtp": b"EHLO mail.example\r\n",
    "socks5": b"\x05\x01\x00",
    "ssl2": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80\x02\x00\x80",
    "dns": b"\x00\x1d\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x00\x00\x01\x00\x01",
    "openvpn": b"\x00\x0e\x38" + bytes(8) + b"\x00\x00\x00\x00\x00",
    "rdp": b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00",
    "postgresql": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    "shadowsocks": bytes.fromhex("9f3c1e77a0b4d1f2c8e6a1937d5b4e20fe11ab90"),
    "ccs": b"\x14\x03\x03\x00\x01\x01",
    "alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "application data": b"\x17\x03\x03\x00\x05hello",
    "server hello": b"\x16\x03\x03\x00\x04\x02\x00\x00\x00",
    "tls 0.2": b"\x16\x02\x00\x00\x04\x01\x00\x00\x00",
}
NOT_QUIC = {
    "dns": b"\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x00\x00\x01\x00\x01",
    "stun": bytes.fromhex("000100002112a442") + bytes(12),
    "dtls": bytes.fromhex("16feff0000000000000000005a01") + bytes(90),
    "wireguard": b"\x01\0\0\0" + bytes(range(144)),
    "openvpn": b"\x38" + bytes(13),
    "ntp": b"\x23" + bytes(47),
    "rtp": b"\x80\x60" + bytes(170),
    "ike": bytes(16) + bytes.fromhex("2920220800000000000001a4") + bytes(100),
    "quic short header": b"\x40" + bytes(range(40)),
    "version negotiation": b"\xc0\0\0\0\0\x08" + bytes(8) + b"\0\x00\x00\x00\x01",
    "grease version": b"\xc0\x0a\x0a\x0a\x0a\x08" + bytes(1200),
    "nothing": b"",
}
