"""The client's QUIC Initial packets, sealed (RFC 9000 section 17.2.2, RFC 9001 section 5)."""

from __future__ import annotations

import hmac
import struct

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from gfwemu.conformance.hello import client_hello, middle_of
from gfwemu.conformance.specs import Quic
from gfwemu.dissect.quic_initial import QUIC_VERSIONS, VERSION_1

_TAG = 16
_PING, _CRYPTO = b"\x01", b"\x06"


def quic_datagrams(spec: Quic) -> list[bytes]:
    """One datagram, which holds the whole ClientHello in as many CRYPTO frames as asked for."""
    hello = client_hello(spec.sni, spec.alpn, ech=spec.ech, quic=True)
    sizes = [middle_of(spec.sni, hello)] if spec.split == "sni" else spec.split
    frames, start = [], 0
    for size in [*sizes, len(hello)]:
        part = hello[start : start + size]
        if part:
            length = len(part) if spec.crypto_length is None else spec.crypto_length
            frames.append(_CRYPTO + _varint(start) + _varint(length) + part)
        start += size
    if spec.reversed:
        frames.reverse()
    body = b"".join(frames)
    fill = bytes(max(0, spec.size - len(body) - 60))
    match spec.first:
        case "padding":
            body = bytes(40) + body + fill
        case "ping":
            body = _PING + bytes(40) + body + fill
        case "crypto":
            body += fill
    datagram = _seal(spec, body)
    if spec.bad_tag:
        datagram = datagram[:-1] + bytes([datagram[-1] ^ 0xFF])
    return [datagram[: len(datagram) - spec.cut]]


def _seal(spec: Quic, body: bytes) -> bytes:
    keys = QUIC_VERSIONS.get(spec.version if spec.keys is None else spec.keys, QUIC_VERSIONS[VERSION_1])
    header_of = QUIC_VERSIONS.get(spec.version, QUIC_VERSIONS[VERSION_1])
    dcid = bytes((0x83 + at) % 256 for at in range(spec.dcid))
    scid = bytes((0x21 + at) % 256 for at in range(spec.scid))
    body += bytes(max(0, 4 - spec.number_length - len(body)))
    first = 0xC0 | header_of.initial_type << 4 | spec.number_length - 1
    number = bytes(spec.number_length)
    header = struct.pack("!BIB", first, spec.version, len(dcid)) + dcid + bytes([len(scid)]) + scid
    header += _varint(spec.token) + bytes(spec.token)
    header += struct.pack("!H", spec.number_length + len(body) + _TAG | 1 << 14) + number
    secret = _expand(hmac.digest(keys.salt, dcid, "sha256"), b"client in", 32)
    key, iv = _expand(secret, keys.label + b"key", 16), _expand(secret, keys.label + b"iv", 12)
    packet = bytearray(header + AESGCM(key).encrypt(iv, body, header))
    at = len(header) - spec.number_length
    # The sample is taken as if the packet number had 4 bytes (RFC 9001 section 5.4.2).
    block = Cipher(AES(_expand(secret, keys.label + b"hp", 16)), ECB()).encryptor()
    mask = block.update(bytes(packet[at + 4 : at + 20]))
    packet[0] ^= mask[0] & 0x0F
    for index in range(spec.number_length):
        packet[at + index] ^= mask[1 + index]
    return bytes(packet)


def _varint(number: int) -> bytes:
    """RFC 9000 section 16, in one or two bytes."""
    return bytes([number]) if number < 64 else struct.pack("!H", number | 1 << 14)


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446 section 7.1 with an empty context."""
    label = b"tls13 " + label
    return HKDFExpand(SHA256(), length, struct.pack("!HB", length, len(label)) + label + b"\0").derive(secret)
