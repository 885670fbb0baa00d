"""Fingerprints of a ClientHello: its cipher suites, JA3 (Salesforce) and JA4 (FoxIO, BSD-3)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from gfwemu.dissect.client_hello import ALPN, SERVER_NAME, ClientHello, Offer, without_grease

# FoxIO technical_details/JA4.md, "TLS and DTLS Version".
_JA4_VERSIONS: dict[int, str] = {
    0x0304: "13",
    0x0303: "12",
    0x0302: "11",
    0x0301: "10",
    0x0300: "s3",
    0x0002: "s2",
    0xFEFF: "d1",
    0xFEFD: "d2",
    0xFEFC: "d3",
}
_NOTHING = "000000000000"

_MOST_KEPT = 64
"""Results of each kind that are kept. Our choice: a network has few kinds of clients, and lists may be long."""


def cipher_text(hello: ClientHello) -> str:
    """The cipher suites in wire order as hexadecimal digits: `1301-1302-c02f`."""
    return _cipher_text(hello.offer)


def ja3_text(hello: ClientHello) -> str:
    """Version, ciphers, extensions, groups and point formats in decimal, before the hash."""
    return _ja3_text(hello.offer)


def ja3(hello: ClientHello) -> str:
    """32 hexadecimal digits."""
    return _ja3(hello.offer)


def ja4(hello: ClientHello, protocol: Literal["t", "q"]) -> str:
    """`t13d1516h2_8daaf6152771_e5627efa2ab1`. protocol: `t` over TCP, `q` over QUIC."""
    return _ja4(hello.offer, protocol)


@lru_cache(_MOST_KEPT)
def _cipher_text(offer: Offer) -> str:
    return "-".join(f"{value:04x}" for value in without_grease(offer.ciphers))


def _ja3_text(offer: Offer) -> str:
    lists = offer.ciphers, offer.extensions, offer.groups, tuple(offer.point_formats)
    return ",".join([str(offer.legacy_version), *("-".join(map(str, without_grease(values))) for values in lists)])


@lru_cache(_MOST_KEPT)
def _ja3(offer: Offer) -> str:
    return hashlib.md5(_ja3_text(offer).encode(), usedforsecurity=False).hexdigest()


@lru_cache(_MOST_KEPT)
def _ja4(offer: Offer, protocol: str) -> str:
    ciphers = without_grease(offer.ciphers)
    extensions = without_grease(offer.extensions)
    return "_".join(
        (
            protocol
            + _JA4_VERSIONS.get(offer.version, "00")
            + ("d" if offer.names_server else "i")
            + f"{min(len(ciphers), 99):02}{min(len(extensions), 99):02}"
            + _alpn_letters(offer.alpn),
            _hash_of_ciphers(tuple(sorted(ciphers))),
            # Sorted first: browsers shuffle their extensions anew for each connection.
            _hash_of_extensions(tuple(sorted(extensions)), without_grease(offer.signature_algorithms)),
        )
    )


def _alpn_letters(alpn: tuple[bytes, ...]) -> str:
    if not alpn or not alpn[0]:
        return "00"
    first, last = alpn[0][:1], alpn[0][-1:]
    if first.isalnum() and last.isalnum():
        return (first + last).decode()
    return first.hex()[0] + last.hex()[1]


@lru_cache(_MOST_KEPT)
def _hash_of_ciphers(ciphers: tuple[int, ...]) -> str:
    return _truncated_hash(_hex(ciphers))


@lru_cache(_MOST_KEPT)
def _hash_of_extensions(extensions: tuple[int, ...], algorithms: tuple[int, ...]) -> str:
    text = _hex(kind for kind in extensions if kind not in (SERVER_NAME, ALPN))
    return _truncated_hash(f"{text}_{_hex(algorithms)}" if algorithms else text)


def _hex(values: Iterable[int]) -> str:
    return ",".join(f"{value:04x}" for value in values)


def _truncated_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else _NOTHING
