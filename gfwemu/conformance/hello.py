"""ClientHellos and their records (RFC 8446 section 4.1.2, RFC 6066 section 3)."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

from gfwemu.conformance.specs import Tls

_SNI, _ALPN, _PADDING, _ESNI, _ECH = 0, 16, 21, 0xFFCE, 0xFE0D
_CIPHERS = (0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F, 0xC02C, 0xC030)


def _vector(prefix: int, body: bytes) -> bytes:
    return len(body).to_bytes(prefix, "big") + body


def _numbers(*values: int) -> bytes:
    return struct.pack(f"!{len(values)}H", *values)


def client_hello(
    sni: str | None,
    alpn: Sequence[str],
    *,
    version: int = 0x0303,
    esni: int | None = None,
    ech: bool = False,
    pad: int = 0,
    pad_first: bool = False,
    quic: bool = False,
) -> bytes:
    """The handshake message. esni: the number of an extension that carries an encrypted name; pad: bytes of padding."""
    padding = [(_PADDING, bytes(pad))] if pad else []
    extensions: list[tuple[int, bytes]] = list(padding) if pad_first else []
    if sni is not None:
        extensions.append((_SNI, _vector(2, b"\0" + _vector(2, sni.encode("idna" if not sni.isascii() else "ascii")))))
    if alpn:
        extensions.append((_ALPN, _vector(2, b"".join(_vector(1, name.encode()) for name in alpn))))
    extensions += [
        (43, _vector(1, _numbers(0x0304) if quic else _numbers(0x0304, 0x0303))),
        (10, _vector(2, _numbers(0x001D, 0x0017))),
        (13, _vector(2, _numbers(0x0403, 0x0804, 0x0401))),
        (51, _vector(2, _numbers(0x001D) + _vector(2, bytes(range(32))))),
    ]
    if quic:
        extensions.append((57, b"\x04\x04\x80\x10\x00\x00"))  # initial_max_data (RFC 9000 section 18.2)
    if esni is not None:
        # draft-ietf-tls-esni-02 section 4: suite, key share, record digest, encrypted name.
        share = _numbers(0x001D) + _vector(2, bytes(range(32)))
        extensions.append((esni, _numbers(0x1301) + share + _vector(2, bytes(32)) + _vector(2, bytes(292))))
    if ech:
        # RFC 9849: outer, HPKE suite, config, encapsulated key, payload.
        extensions.append((_ECH, b"\0" + _numbers(1, 1) + b"\x2a" + _vector(2, bytes(32)) + _vector(2, bytes(176))))
    if padding and not pad_first:
        extensions += padding
    body = struct.pack("!H", version) + bytes(range(32, 64)) + _vector(1, b"" if quic else bytes(range(32)))
    body += _vector(2, _numbers(*_CIPHERS)) + _vector(1, b"\0")
    body += _vector(2, b"".join(_numbers(kind) + _vector(2, content) for kind, content in extensions))
    return b"\x01" + _vector(3, body)


def middle_of(name: str | None, message: bytes) -> int:
    """An offset inside the name, where the message holds it; else the middle of the message."""
    encoded = (name or "").encode()
    at = message.find(encoded) if encoded else -1
    return at + len(encoded) // 2 if at >= 0 else len(message) // 2


def tls_records(spec: Tls) -> bytes:
    """The ClientHello in its records."""
    message = client_hello(
        spec.sni,
        spec.alpn,
        version=spec.version,
        esni=spec.esni_type if spec.esni else None,
        ech=spec.ech,
        pad=spec.pad,
        pad_first=spec.pad_first,
    )
    sizes = [middle_of(spec.sni, message)] if spec.records == "sni" else spec.records
    cuts = [cut for cut in itertools.accumulate(sizes) if cut < len(message)]
    return b"".join(
        struct.pack("!BHH", spec.record_type, spec.record_version, end - start) + message[start:end]
        for start, end in itertools.pairwise([0, *cuts, len(message)])
    )
