"""QUIC packets of the long header form, and opening the client's Initial (RFC 9000, 9001, 9369)."""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from gfwemu.dissect.reader import MalformedBytes, Reader

VERSION_1 = 0x00000001
VERSION_2 = 0x6B3343CF

_LONG_HEADER = 0x80
_FIXED_BIT = 0x40
_SAMPLE = 16  # RFC 9001 section 5.4.2


@dataclass(frozen=True, slots=True)
class QuicVersion:
    """What differs between versions. `label` precedes `key`, `iv` and `hp`."""

    name: str
    salt: bytes
    label: bytes
    initial_type: int
    retry_type: int


QUIC_VERSIONS: dict[int, QuicVersion] = {
    # RFC 9001 sections 5.1 and 5.2; RFC 9000 section 17.2.
    VERSION_1: QuicVersion("1", bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), b"quic ", 0, 3),
    # RFC 9369 sections 3.2 and 3.3.
    VERSION_2: QuicVersion("2", bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), b"quicv2 ", 1, 0),
}


@dataclass(frozen=True, slots=True)
class LongHeader:
    """A packet up to its packet number, which is still protected. Offsets count from the start of the datagram."""

    version: QuicVersion
    initial: bool
    dcid: bytes
    start: int
    number_offset: int
    end: int


def read_long_header(datagram: Reader, versions: tuple[int, ...], cid_limit: int = 20) -> LongHeader:
    """Read the next packet of a datagram and move behind it. Raises MalformedBytes.

    cid_limit: bytes of a connection ID at most; 20 in RFC 9000 section 17.2.
    """
    start = datagram.position
    first = datagram.u8()
    if not first & _LONG_HEADER:
        raise MalformedBytes("not a QUIC long header")
    if not first & _FIXED_BIT:
        raise MalformedBytes("QUIC fixed bit is 0")
    number = datagram.u32()
    version = QUIC_VERSIONS.get(number)
    if version is None or number not in versions:
        raise MalformedBytes(f"QUIC version {number:#010x} is not read")
    dcid = _connection_id(datagram, cid_limit)
    _connection_id(datagram, cid_limit)
    kind = first >> 4 & 3
    initial = kind == version.initial_type
    if kind == version.retry_type:
        raise MalformedBytes("QUIC Retry comes from servers only")
    if initial:
        datagram.field(datagram.varint(), "QUIC token")
    protected = datagram.field(datagram.varint(), "QUIC packet")
    return LongHeader(version, initial, dcid, start, protected.position, datagram.position)


def _connection_id(datagram: Reader, limit: int) -> bytes:
    length = datagram.u8()
    if length > limit:
        raise MalformedBytes(f"QUIC connection ID of {length} bytes")
    return datagram.take(length)


class InitialKeys:
    """The client's Initial keys of a connection (RFC 9001 section 5.2)."""

    __slots__ = ("_aead", "_iv", "_mask")

    def __init__(self, version: QuicVersion, dcid: bytes) -> None:
        secret = _expand_label(hmac.digest(version.salt, dcid, "sha256"), b"client in", 32)
        self._aead = AESGCM(_expand_label(secret, version.label + b"key", 16))
        self._iv = int.from_bytes(_expand_label(secret, version.label + b"iv", 12), "big")
        # RFC 9001 section 5.4.3 asks for one raw AES block; there is no chain to hide.
        self._mask = Cipher(AES(_expand_label(secret, version.label + b"hp", 16)), ECB()).encryptor()

    def open(self, datagram: bytes, header: LongHeader) -> tuple[int, bytes] | None:
        """(offset in the datagram, plaintext) of the packet's frames, or None where the tag does not verify.

        Byte n of the plaintext is byte offset + n of the datagram. The packet number is taken as sent in full, which
        is what a client does before its first acknowledgement (RFC 9000 section 17.1).
        """
        number_offset = header.number_offset
        # The sample is taken as if the packet number had 4 bytes (RFC 9001 section 5.4.2).
        sample = datagram[number_offset + 4 : number_offset + 4 + _SAMPLE]
        if len(sample) < _SAMPLE:
            return None
        mask = self._mask.update(sample)
        first = datagram[header.start] ^ mask[0] & 0x0F
        number_length = (first & 3) + 1
        offset = number_offset + number_length
        number = bytes(a ^ b for a, b in zip(datagram[number_offset:offset], mask[1:], strict=False))
        nonce = (self._iv ^ int.from_bytes(number, "big")).to_bytes(12, "big")
        associated = bytes((first,)) + datagram[header.start + 1 : number_offset] + number
        try:
            return offset, self._aead.decrypt(nonce, datagram[offset : header.end], associated)
        except InvalidTag:
            return None


def _expand_label(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446 section 7.1 with an empty context."""
    label = b"tls13 " + label
    info = struct.pack("!HB", length, len(label)) + label + b"\0"
    return HKDFExpand(SHA256(), length, info).derive(secret)
