"""The TLS ClientHello (RFC 8446 section 4.1.2), as it comes over TCP and over QUIC."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache

from gfwemu.dissect.outcome import Span
from gfwemu.dissect.reader import MalformedBytes
from gfwemu.model import record

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

_OFFERS = frozenset({SUPPORTED_GROUPS, EC_POINT_FORMATS, SIGNATURE_ALGORITHMS, ALPN, SUPPORTED_VERSIONS})
_EXTENSION = struct.Struct("!HH")  # kind, and length of what follows
_RANDOM = 32  # RFC 8446 section 4.1.2

_MOST_KEPT = 64
"""Offers that are kept. Our choice: a network has few kinds of clients, and lists may be long."""

VERSION_NAMES: dict[int, str] = {0x0300: "ssl3", 0x0301: "1.0", 0x0302: "1.1", 0x0303: "1.2", 0x0304: "1.3"}
OTHER_VERSION = "other"


def _version_name(version: int) -> str:
    return VERSION_NAMES.get(version, OTHER_VERSION)


# RFC 8701: both bytes alike, each 0x?A.
_GREASE = frozenset(0x0A0A + 0x1010 * n for n in range(16))


def without_grease(values: tuple[int, ...]) -> tuple[int, ...]:
    """The values without those that only keep servers tolerant (RFC 8701)."""
    return values if _GREASE.isdisjoint(values) else tuple([value for value in values if value not in _GREASE])


class Offer:
    """What a program offers alike in each of its ClientHellos, in wire order and with GREASE values.

    Hellos with equal offers mostly share one object, by which others can keep what they make of it. Long lists stay
    bytes, for each flow may have an offer of its own.

    versions: those of supported_versions without GREASE, or the legacy one where that extension is absent. version: the
    highest of them. ech, esni: whether that extension is there, real or GREASE.
    """

    __slots__ = (
        "_algorithms",
        "_ciphers",
        "_groups",
        "alpn",
        "alpn_names",
        "ech",
        "esni",
        "extensions",
        "legacy_version",
        "legacy_version_name",
        "names_server",
        "point_formats",
        "version",
        "version_name",
        "version_names",
        "versions",
    )

    def __init__(
        self, legacy_version: int, ciphers: bytes, extensions: tuple[int, ...], bodies: tuple[tuple[int, bytes], ...]
    ) -> None:
        """bodies: of the extensions that are read here, by their numbers. Raises MalformedBytes."""
        body = dict(bodies)
        self.legacy_version = legacy_version
        self._ciphers = _pairs(ciphers, "cipher suites")
        self.extensions = extensions
        self._groups = _pairs(_inside(body.get(SUPPORTED_GROUPS), 2), "supported groups")
        self.point_formats = _inside(body.get(EC_POINT_FORMATS), 1)
        self._algorithms = _pairs(_inside(body.get(SIGNATURE_ALGORITHMS), 2), "signature algorithms")
        versions = _pairs(_inside(body.get(SUPPORTED_VERSIONS), 1), "supported versions")
        self.versions = without_grease(_numbers(versions)) or (legacy_version,)
        self.version = max(self.versions)
        self.alpn = tuple(_names(_inside(body.get(ALPN), 2)))
        self.alpn_names = tuple(wire_text(name) for name in self.alpn)
        self.legacy_version_name = _version_name(legacy_version)
        self.version_name = _version_name(self.version)
        self.version_names = tuple(map(_version_name, self.versions))
        self.ech = ENCRYPTED_CLIENT_HELLO in extensions
        self.esni = ENCRYPTED_SERVER_NAME in extensions
        self.names_server = SERVER_NAME in extensions

    @property
    def ciphers(self) -> tuple[int, ...]:
        return _numbers(self._ciphers)

    @property
    def groups(self) -> tuple[int, ...]:
        return _numbers(self._groups)

    @property
    def signature_algorithms(self) -> tuple[int, ...]:
        return _numbers(self._algorithms)


_kept_offer = lru_cache(_MOST_KEPT)(Offer)


@record
class ClientHello:
    """`sni` is the first host name as on the wire, without case or trailing dot, "" where there is none.

    `sni_span` counts from the start of the handshake message. `length` is that of the message with its 4-byte header.
    """

    length: int
    offer: Offer
    sni: str
    sni_span: Span | None


def read_client_hello(message: bytes | bytearray) -> ClientHello:
    """Read a whole handshake message, its 4-byte header included. Raises MalformedBytes."""
    data = bytes(message)
    _need("handshake message", 1, len(data))
    if data[0] != CLIENT_HELLO:
        raise MalformedBytes("handshake message is not a ClientHello")
    start, end = _vector(data, 1, len(data), 3, "handshake message")
    _need("ClientHello", 2, end - start)
    version = data[start] << 8 | data[start + 1]
    _need("ClientHello", _RANDOM, end - start - 2)
    _, start = _vector(data, start + 2 + _RANDOM, end, 1, "ClientHello")  # session id
    first, start = _vector(data, start, end, 2, "ClientHello")
    ciphers = data[first:start]
    _, start = _vector(data, start, end, 1, "ClientHello")  # compression methods
    kinds: list[int] = []
    bodies: dict[int, bytes] = {}
    sni, sni_span = "", None
    if start < end:
        first, start = _vector(data, start, end, 2, "ClientHello")
        if start < end:
            raise MalformedBytes(f"ClientHello: {end - start} bytes too many")
        names = _read_extensions(data, first, start, kinds, bodies)
        sni, sni_span = ("", None) if names is None else _server_name(data, *names)
    return ClientHello(end, _kept_offer(version, ciphers, tuple(kinds), tuple(bodies.items())), sni, sni_span)


def _read_extensions(
    data: bytes, start: int, end: int, kinds: list[int], bodies: dict[int, bytes]
) -> tuple[int, int] | None:
    """Collects the extensions; returns where the server names begin and end. Raises MalformedBytes.

    A second extension of the same kind, which RFC 8446 forbids, changes nothing.
    """
    names = None
    while start < end:
        body = start + _EXTENSION.size
        if body > end:
            _need("extensions", 2, (end - start) % 2)
        kind, size = _EXTENSION.unpack_from(data, start)
        start = body + size
        if start > end:
            _need("extensions", 2 + start - body, 2 + end - body)
        if kind in _OFFERS and kind not in bodies:
            bodies[kind] = data[body:start]
        elif kind == SERVER_NAME and names is None:
            names = body, start
        kinds.append(kind)
    return names


def _server_name(data: bytes, start: int, end: int) -> tuple[str, Span | None]:
    """The first host name, and where it stands. Raises MalformedBytes."""
    found = None
    if start < end:
        start, end = _vector(data, start, end, 2, "extension")
    while start < end:
        kind = data[start]
        first, start = _vector(data, start + 1, end, 2, "server name list")
        if kind == 0 and first < start and found is None:
            found = first, start
    if found is None:
        return "", None
    first, end = found
    return wire_text(data[first:end]).lower().removesuffix("."), Span(first, end - first)


def _need(what: str, wanted: int, left: int) -> None:
    if wanted > left:
        raise MalformedBytes(f"{what}: {wanted} bytes wanted, {left} left")


def _vector(data: bytes, start: int, end: int, prefix: int, what: str) -> tuple[int, int]:
    """First byte and end of the field behind its length of `prefix` bytes. `what`: the thing that ends at `end`."""
    first = start + prefix
    if first > end:
        _need(what, prefix, end - start)
    stop = first + int.from_bytes(data[start:first], "big")
    if stop > end:
        _need(what, stop - start, end - start)
    return first, stop


def _inside(body: bytes | None, prefix: int) -> bytes:
    """What an extension holds behind its length of `prefix` bytes; nothing where there is no such extension."""
    if body is None:
        return b""
    start, end = _vector(body, 0, len(body), prefix, "extension")
    return body[start:end]


def _pairs(data: bytes, what: str) -> bytes:
    """The bytes of a list of 16-bit numbers."""
    if len(data) % 2:
        raise MalformedBytes(f"{what}: odd length {len(data)}")
    return data


def _numbers(pairs: bytes) -> tuple[int, ...]:
    return struct.unpack(f"!{len(pairs) // 2}H", pairs)


def _names(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        first, start = _vector(data, start, len(data), 1, "ALPN list")
        yield data[first:start]


def wire_text(data: bytes) -> str:
    """Text as on the wire; bytes that are not ASCII stay visible as `\\xNN`."""
    return data.decode("ascii", "backslashreplace")
