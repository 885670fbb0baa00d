"""QUIC over UDP: the ClientHello in the client's Initial packets (RFC 9000, 9001, 9369)."""

from __future__ import annotations

from bisect import bisect_left

from gfwemu.dissect.client_hello import (
    CLIENT_HELLO,
    HANDSHAKE_HEADER,
    ClientHello,
    read_client_hello,
)
from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.fields import Field, FieldKind
from gfwemu.dissect.fingerprint import ja4
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import NEED_MORE, Confirm, FactValue, Message, Outcome, Reject, Span
from gfwemu.dissect.quic_initial import QUIC_VERSIONS, InitialKeys, LongHeader, read_long_header
from gfwemu.dissect.reader import MalformedBytes, Reader
from gfwemu.model import Direction, Transport

FIELDS = (
    Field("quic.sni", FieldKind.DOMAIN, "Server name of the ClientHello; the outer one under ECH.", "www.example"),
    Field("quic.alpn", FieldKind.TEXTS, "Application protocols that the ClientHello offers.", "h3"),
    Field(
        "quic.version",
        FieldKind.ENUM,
        "Version of the Initial packet.",
        "1",
        tuple(version.name for version in QUIC_VERSIONS.values()),
    ),
    Field("quic.ja4", FieldKind.TEXT, "JA4 fingerprint of the ClientHello.", "q13d0312h3_55b375c5d22e_06cda9e17597"),
    Field("quic.ech", FieldKind.FLAG, "Encrypted ClientHello extension (0xfe0d), real or GREASE.", "true"),
    Field("quic.dcid_length", FieldKind.NUMBER, "Bytes of the destination connection ID, 0 to 20.", "8"),
)

# RFC 9000 section 12.4: what an Initial packet may carry.
_PADDING, _PING, _ACK, _ACK_ECN, _CRYPTO, _CONNECTION_CLOSE = 0x00, 0x01, 0x02, 0x03, 0x06, 0x1C


class CryptoStream:
    """The client's CRYPTO bytes at the Initial level: put together from pieces in any order, the first bytes win."""

    __slots__ = ("_data", "_ends", "_limit", "_starts")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()
        self._starts: list[int] = []  # of the pieces that are there: apart, in order
        self._ends: list[int] = []

    def add(self, offset: int, piece: bytes) -> None:
        """Raises MalformedBytes for bytes beyond the limit."""
        end = offset + len(piece)
        if end > self._limit:
            raise MalformedBytes(f"CRYPTO bytes beyond {self._limit}")
        if not piece:
            return
        if end > len(self._data):
            self._data += bytes(end - len(self._data))
        # The pieces from first to last touch or overlap the new one; it only fills the gaps between them.
        first = bisect_left(self._ends, offset)
        last = first
        position = offset
        while last < len(self._starts) and self._starts[last] <= end:
            start = self._starts[last]
            if position < start:
                self._data[position:start] = piece[position - offset : start - offset]
            position = self._ends[last]
            last += 1
        if position < end:
            self._data[position:end] = piece[position - offset :]
        new_start = min(offset, self._starts[first]) if first < last else offset
        self._starts[first:last] = [new_start]
        self._ends[first:last] = [max(end, position)]

    def prefix(self) -> bytes:
        """The bytes from offset 0 up to the first gap."""
        return bytes(self._data[: self._ends[0]]) if self._starts and self._starts[0] == 0 else b""


class QuicSession:
    """Waits for the ClientHello. A first datagram without a client Initial that opens rejects.

    Later datagrams that do not open are passed over, as endpoints do. Without `quic_reassembly` the first CRYPTO
    frame has to hold the whole ClientHello. Where the length of CRYPTO frames is ignored, a frame goes on to the end
    of its packet: a censor that read past a length field of two zero bytes may skip two bytes, or zeros; we skip zeros.
    """

    __slots__ = ("_crypto", "_datagrams", "_header", "_here", "_keys", "_options")

    def __init__(self, options: DissectOptions) -> None:
        self._options = options
        self._crypto = CryptoStream(options.stream_limit)
        self._keys: InitialKeys | None = None
        self._header: LongHeader | None = None
        self._datagrams = 0
        self._here: list[tuple[int, int, int]] = []  # this datagram's (CRYPTO offset, length, datagram offset)

    def feed(self, direction: Direction, data: bytes) -> Outcome:
        if direction is not Direction.TO_SERVER:
            return NEED_MORE
        self._datagrams += 1
        self._here.clear()
        try:
            if len(data) < self._options.quic_min_datagram:
                raise MalformedBytes(f"QUIC datagram of {len(data)} bytes")
            self._read_datagram(data)
            message = self._whole_hello()
            if message:
                return self._confirm(read_client_hello(message))
        except MalformedBytes as malformed:
            return Reject(str(malformed))
        if self._datagrams == self._options.quic_datagrams:
            return Reject(f"no whole ClientHello in {self._datagrams} datagrams")
        return NEED_MORE

    def _read_datagram(self, data: bytes) -> None:
        datagram = Reader(data, "QUIC datagram")
        dcid: bytes | None = None
        while datagram.remaining:
            try:
                header = read_long_header(datagram, self._options.quic_versions, self._options.quic_cid_limit)
            except MalformedBytes:
                if self._keys is None and dcid is None:
                    raise
                break
            # RFC 9000 section 12.2: coalesced packets for another connection are ignored.
            if dcid is None:
                dcid = header.dcid
            if header.initial and header.dcid == dcid:
                self._read_initial(data, header)
        if self._keys is None:
            raise MalformedBytes("no QUIC Initial packet")

    def _read_initial(self, data: bytes, header: LongHeader) -> None:
        opened = self._keys.open(data, header) if self._keys else None
        if opened is None:
            # The first Initial, or the first after a Retry, whose keys come from its own connection ID.
            keys = InitialKeys(header.version, header.dcid)
            opened = keys.open(data, header)
            if opened is None:
                if self._keys is None:
                    raise MalformedBytes("QUIC Initial does not open with the client's keys")
                return
            self._keys = keys
            self._header = header
            self._crypto = CryptoStream(self._options.stream_limit)
            self._here.clear()
        self._read_frames(*opened)

    def _read_frames(self, offset: int, plaintext: bytes) -> None:
        frames = Reader(plaintext, "QUIC frames")
        if self._options.quic_crypto_first and frames.peek(1)[0] != _CRYPTO:
            raise MalformedBytes("the first QUIC frame is not CRYPTO")
        while frames.remaining:
            kind = frames.varint()
            if kind == _CRYPTO:
                crypto_offset = frames.varint()
                length = frames.varint()
                if self._options.quic_crypto_length == "ignore":
                    frames.skip_zeros()
                    length = frames.remaining
                piece = frames.field(length, "CRYPTO frame")
                self._here.append((crypto_offset, piece.remaining, offset + piece.position))
                self._crypto.add(crypto_offset, piece.rest())
                if not self._options.quic_reassembly and not self._whole_hello():
                    raise MalformedBytes("ClientHello is split over CRYPTO frames")
            elif kind in (_ACK, _ACK_ECN):
                _skip_ack(frames, kind)
            elif kind == _CONNECTION_CLOSE:
                frames.varint()
                frames.varint()
                frames.field(frames.varint(), "reason phrase")
            elif kind == _PADDING:
                frames.skip_zeros()
            elif kind != _PING:
                raise MalformedBytes(f"QUIC frame type {kind:#x} in an Initial packet")

    def _whole_hello(self) -> bytes:
        """The ClientHello message once all of it is there, else nothing."""
        prefix = self._crypto.prefix()
        if prefix and prefix[0] != CLIENT_HELLO:
            raise MalformedBytes("handshake message is not a ClientHello")
        wanted = HANDSHAKE_HEADER + int.from_bytes(prefix[1:HANDSHAKE_HEADER], "big")
        return prefix[:wanted] if HANDSHAKE_HEADER <= wanted <= len(prefix) else b""

    def _confirm(self, hello: ClientHello) -> Confirm:
        assert self._header is not None
        facts: dict[str, FactValue] = {
            "quic.alpn": hello.offer.alpn_names,
            "quic.version": self._header.version.name,
            "quic.ja4": ja4(hello, "q"),
            "quic.ech": hello.offer.ech,
            "quic.dcid_length": len(self._header.dcid),
        }
        spans = {}
        if hello.sni:
            facts["quic.sni"] = hello.sni
        if hello.sni_span is not None:
            spans = self._datagram_span(hello.sni_span)
        return Confirm((Message(facts, spans),), final=True)

    def _datagram_span(self, span: Span) -> dict[str, Span]:
        """Where the name stands, encrypted, in the datagram that completed it; nothing if it came in parts."""
        for start, length, offset in self._here:
            if start <= span.offset and span.offset + span.length <= start + length:
                return {"quic.sni": Span(offset + span.offset - start, span.length)}
        return {}


def _skip_ack(frames: Reader, kind: int) -> None:
    """RFC 9000 section 19.3."""
    frames.varint()
    frames.varint()
    ranges = frames.varint()
    frames.varint()
    for _ in range(2 * ranges):
        frames.varint()
    if kind == _ACK_ECN:
        for _ in range(3):
            frames.varint()


QUIC = Dissector("quic", frozenset({Transport.UDP}), FIELDS, QuicSession)
