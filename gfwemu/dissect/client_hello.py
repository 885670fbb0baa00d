"""The TLS ClientHello (RFC 8446 section 4.1.2), as it comes over TCP and over QUIC."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from gfwemu.dissect.outcome import Span
from gfwemu.dissect.reader import MalformedBytes, Reader

CLIENT_HELLO = 1
HANDSHAKE_HEADER = 4
"""Bytes of type and length before a handshake message."""

# IANA "TLS ExtensionType Values".
SERVER_NAME = 0
SUPPORTED_GROUPS = 10
EC_POINT_FORMATS = 11
SIGNATURE_ALGORITHMS = 13
ALPN = 16
SUPPORTED_VERSIONS = 43
ENCRYPTED_CLIENT_HELLO = 0xFE0D  # draft-ietf-tls-esni-13 and later
ENCRYPTED_SERVER_NAME = 0xFFCE  # draft-ietf-tls-esni-00 to -06

VERSION_NAMES: dict[int, str] = {0x0300: "ssl3", 0x0301: "1.0", 0x0302: "1.1", 0x0303: "1.2", 0x0304: "1.3"}
OTHER_VERSION = "other"

# RFC 8701: both bytes alike, each 0x?A.
_GREASE = frozenset(0x0A0A + 0x1010 * n for n in range(16))


def without_grease(values: tuple[int, ...]) -> tuple[int, ...]:
    """The values without those that only keep servers tolerant (RFC 8701)."""
    return tuple(value for value in values if value not in _GREASE)


@dataclass(slots=True)
class ClientHello:
    """What a ClientHello offers, in wire order, GREASE values included.

    `sni` is the first host name as on the wire, without case or trailing dot, "" where there is none. `sni_span`
    counts from the start of the handshake message. `length` is that of the message with its 4-byte header.
    """

    length: int
    legacy_version: int = 0
    ciphers: tuple[int, ...] = ()
    extensions: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    point_formats: tuple[int, ...] = ()
    signature_algorithms: tuple[int, ...] = ()
    supported_versions: tuple[int, ...] = ()
    alpn: tuple[bytes, ...] = ()
    sni: str = ""
    sni_span: Span | None = None
    _seen: set[int] = field(default_factory=set, repr=False)

    @property
    def versions(self) -> tuple[int, ...]:
        """Those offered in supported_versions without GREASE, or the legacy one where that extension is absent."""
        return without_grease(self.supported_versions) or (self.legacy_version,)

    @property
    def version(self) -> int:
        """The highest version offered."""
        return max(self.versions)

    @property
    def version_name(self) -> str:
        return VERSION_NAMES.get(self.version, OTHER_VERSION)

    @property
    def alpn_names(self) -> tuple[str, ...]:
        return tuple(wire_text(name) for name in self.alpn)

    def has(self, extension: int) -> bool:
        return extension in self._seen

    def read_extension(self, kind: int, body: Reader) -> None:
        """Note an extension. A second one of the same kind, which RFC 8446 forbids, changes nothing."""
        if kind in self._seen:
            return
        self._seen.add(kind)
        if kind == SERVER_NAME:
            self._read_server_name(body)
        elif kind == ALPN:
            names = body.vector(2, "ALPN list")
            found = []
            while names.remaining:
                found.append(names.vector(1, "ALPN name").rest())
            self.alpn = tuple(found)
        elif kind == SUPPORTED_VERSIONS:
            self.supported_versions = _numbers(body.vector(1, "supported versions"))
        elif kind == SUPPORTED_GROUPS:
            self.groups = _numbers(body.vector(2, "supported groups"))
        elif kind == SIGNATURE_ALGORITHMS:
            self.signature_algorithms = _numbers(body.vector(2, "signature algorithms"))
        elif kind == EC_POINT_FORMATS:
            self.point_formats = tuple(body.vector(1, "point formats").rest())

    def _read_server_name(self, body: Reader) -> None:
        if not body.remaining:
            return
        names = body.vector(2, "server name list")
        while names.remaining:
            kind = names.u8()
            name = names.vector(2, "server name")
            if kind == 0 and name.remaining and self.sni_span is None:
                self.sni_span = Span(name.position, name.remaining)
                self.sni = wire_text(name.rest()).lower().removesuffix(".")


def read_client_hello(message: bytes | bytearray) -> ClientHello:
    """Read a whole handshake message, its 4-byte header included. Raises MalformedBytes."""
    whole = Reader(message, "handshake message")
    if whole.u8() != CLIENT_HELLO:
        raise MalformedBytes("handshake message is not a ClientHello")
    body = whole.vector(3, "ClientHello")
    hello = ClientHello(length=body.position + body.remaining, legacy_version=body.u16())
    body.skip(32)
    body.vector(1, "session id")
    hello.ciphers = _numbers(body.vector(2, "cipher suites"))
    body.vector(1, "compression methods")
    if not body.remaining:
        return hello
    extensions = body.vector(2, "extensions")
    kinds = []
    while extensions.remaining:
        kinds.append(extensions.u16())
        hello.read_extension(kinds[-1], extensions.vector(2, "extension"))
    hello.extensions = tuple(kinds)
    body.end()
    return hello


def wire_text(data: bytes) -> str:
    """Text as on the wire; bytes that are not ASCII stay visible as `\\xNN`."""
    return data.decode("ascii", "backslashreplace")


def _numbers(values: Reader) -> tuple[int, ...]:
    data = values.rest()
    if len(data) % 2:
        raise MalformedBytes(f"{values.what}: odd length {len(data)}")
    return struct.unpack(f"!{len(data) // 2}H", data)
