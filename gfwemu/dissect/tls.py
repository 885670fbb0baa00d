"""TLS over TCP: the ClientHello in the first record or records of the client (RFC 8446 section 5.1)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from operator import attrgetter

from gfwemu.dissect.client_hello import (
    CLIENT_HELLO,
    HANDSHAKE_HEADER,
    OTHER_VERSION,
    VERSION_NAMES,
    ClientHello,
    read_client_hello,
)
from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.fields import Field, FieldKind
from gfwemu.dissect.fingerprint import cipher_text, ja3, ja4
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import NEED_MORE, Confirm, DeferredFacts, FactValue, Message, Outcome, Reject, Span
from gfwemu.dissect.reader import MalformedBytes, OutOfBytes
from gfwemu.model import Direction, Transport

_TO_SERVER = Direction.TO_SERVER

_HANDSHAKE = 22
_RECORD_HEADER = 5
_RECORD_LIMIT = 1 << 14  # RFC 8446 section 5.1
_NO_RECORDS: list[tuple[int, int]] = []

_VERSIONS = (*VERSION_NAMES.values(), OTHER_VERSION)

FIELDS = (
    Field("tls.sni", FieldKind.DOMAIN, "Server name of the ClientHello; the outer one under ECH.", "www.example"),
    Field("tls.alpn", FieldKind.TEXTS, "Application protocols that the ClientHello offers.", "h2"),
    Field(
        "tls.version",
        FieldKind.ENUM,
        "Highest version that the ClientHello offers, supported_versions included.",
        "1.3",
        _VERSIONS,
    ),
    Field("tls.legacy_version", FieldKind.ENUM, "Version field of the ClientHello itself.", "1.2", _VERSIONS),
    Field("tls.versions", FieldKind.TEXTS, "Every version that the ClientHello offers.", "1.2"),
    Field("tls.ech", FieldKind.FLAG, "Encrypted ClientHello extension (0xfe0d), real or GREASE.", "true"),
    Field("tls.esni", FieldKind.FLAG, "Encrypted SNI extension of the early drafts (0xffce).", "true"),
    Field(
        "tls.ciphers",
        FieldKind.TEXT,
        "Cipher suites that the ClientHello offers, in its order, without GREASE; China found Tor by them (Winter and "
        "Lindskog, FOCI 2012).",
        "1301-1302-c02f",
    ),
    Field("tls.ja3", FieldKind.TEXT, "JA3 hash of the ClientHello.", "375c6162a492dfbf2795909110ce8424"),
    Field("tls.ja4", FieldKind.TEXT, "JA4 fingerprint of the ClientHello.", "t13d1516h2_8daaf6152771_e5627efa2ab1"),
    Field("tls.hello_length", FieldKind.NUMBER, "Bytes of the ClientHello, its 4-byte header included.", "517"),
)


class TlsSession:
    """Waits for the ClientHello. Anything but handshake records before its end rejects.

    Without `tls_record_reassembly` the ClientHello has to end in the record that it begins in.
    """

    __slots__ = ("_base", "_limit", "_message", "_pending", "_reassemble", "_starts", "_wanted")

    def __init__(self, options: DissectOptions) -> None:
        self._reassemble = options.tls_record_reassembly
        self._limit = options.stream_limit
        # Bytes while they are of one piece, which mostly is all there is: then nothing is copied.
        self._pending: bytes | bytearray = b""  # of the record that has not ended yet
        self._message: bytes | bytearray = b""  # of the handshake, put together from records
        self._wanted = 1
        self._base = 0  # stream offset of the pending bytes
        self._starts: list[tuple[int, int]] = _NO_RECORDS  # (offset in the message, in the stream) of each record

    def feed(self, direction: Direction, data: bytes) -> Outcome:
        if direction is not _TO_SERVER:
            return NEED_MORE
        self._pending = _joined(self._pending, data[: self._limit - self._base - len(self._pending)])
        try:
            if len(self._pending) >= self._wanted:
                while not self._read_record():
                    pass
                return self._confirm()
        except OutOfBytes as out:
            self._wanted = out.wanted
        except MalformedBytes as malformed:
            return Reject(str(malformed))
        if self._base + self._wanted > self._limit:
            return Reject(f"no whole ClientHello in {self._limit} bytes")
        return NEED_MORE

    def _read_record(self) -> bool:
        """Move one record from the pending bytes to the message. True once the ClientHello is whole."""
        pending, message = self._pending, self._message
        end = _record_end(pending, first=not message)
        fragment = bytes(pending[_RECORD_HEADER:end])
        if not message:
            self._starts = []
        self._starts.append((len(message), self._base + _RECORD_HEADER))
        self._message = message = _joined(message, fragment)
        self._base += end
        if isinstance(pending, bytearray):
            del pending[:end]
        else:
            self._pending = bytearray(pending[end:]) if len(pending) > end else b""
        wanted = HANDSHAKE_HEADER + int.from_bytes(message[1:HANDSHAKE_HEADER], "big")
        whole = HANDSHAKE_HEADER <= wanted <= len(message)
        if not whole and not self._reassemble:
            raise MalformedBytes("ClientHello is split over TLS records")
        return whole

    def _confirm(self) -> Confirm:
        hello = read_client_hello(self._message)
        spans = {}
        if hello.sni_span is not None:
            spans["tls.sni"] = self._stream_span(hello.sni_span)
        return Confirm((Message(tls_facts(hello), spans),), final=True)

    def _stream_span(self, span: Span) -> Span:
        """From the message to the stream; headers of records that begin inside are counted in."""
        first = self._stream_offset(span.offset)
        return Span(first, self._stream_offset(span.offset + span.length - 1) + 1 - first)

    def _stream_offset(self, offset: int) -> int:
        in_message, in_stream = self._starts[bisect_right(self._starts, offset, key=lambda start: start[0]) - 1]
        return in_stream + offset - in_message


def _record_end(pending: bytes | bytearray, *, first: bool) -> int:
    """Where the record at the start of `pending` ends. Raises OutOfBytes, or MalformedBytes as early as can be told."""
    there = len(pending)
    if there and pending[0] != _HANDSHAKE:
        raise MalformedBytes("not a handshake record")
    if there > 1 and pending[1] != 3:
        raise MalformedBytes("record version is not SSL 3 or TLS")
    if there < _RECORD_HEADER:
        raise OutOfBytes(there + 1 if there < 3 else _RECORD_HEADER)
    length = pending[3] << 8 | pending[4]
    if not 0 < length <= _RECORD_LIMIT:
        raise MalformedBytes(f"record length {length}")
    if first and there == _RECORD_HEADER:
        raise OutOfBytes(_RECORD_HEADER + 1)
    if first and pending[_RECORD_HEADER] != CLIENT_HELLO:
        raise MalformedBytes("handshake message is not a ClientHello")
    if there < _RECORD_HEADER + length:
        raise OutOfBytes(_RECORD_HEADER + length)
    return _RECORD_HEADER + length


def _joined(held: bytes | bytearray, data: bytes) -> bytes | bytearray:
    if not held:
        return data
    if isinstance(held, bytes):
        held = bytearray(held)
    held += data
    return held


_LATER: Mapping[str, Callable[[ClientHello], FactValue]] = {
    "tls.alpn": attrgetter("offer.alpn_names"),
    "tls.version": attrgetter("offer.version_name"),
    "tls.legacy_version": attrgetter("offer.legacy_version_name"),
    "tls.versions": attrgetter("offer.version_names"),
    "tls.ech": attrgetter("offer.ech"),
    "tls.esni": attrgetter("offer.esni"),
    "tls.ciphers": cipher_text,
    "tls.ja3": ja3,
    "tls.ja4": lambda hello: ja4(hello, "t"),
    "tls.hello_length": attrgetter("length"),
}


def tls_facts(hello: ClientHello) -> DeferredFacts:
    return DeferredFacts({"tls.sni": hello.sni} if hello.sni else {}, _LATER, hello)


TLS = Dissector("tls", frozenset({Transport.TCP}), FIELDS, TlsSession)
