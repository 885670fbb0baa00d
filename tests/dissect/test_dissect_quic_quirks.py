"""A censor's own ways of reading QUIC, each by a datagram with that one property.

The properties are those of the payloads that Zohaib et al. (USENIX Security 2025) sent through China's firewall.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hello_kit import ORDINARY, alpn, client_hello, crypto, initial, reason_of, server_name
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import Confirm, NeedMore, Outcome, Reject
from gfwemu.dissect.quic import QuicSession
from gfwemu.dissect.quic_initial import VERSION_1, VERSION_2
from gfwemu.model import Direction

CHINA = DissectOptions(
    quic_reassembly=False,
    quic_versions=(VERSION_1,),
    quic_datagrams=1,
    quic_crypto_length="ignore",
    quic_crypto_first=True,
)
NAME = server_name(b"ab.example")
HELLO = client_hello([*ORDINARY[1:], NAME])
PING_AND_PADDING = b"\x01" + bytes(40)
SHORT = client_hello([NAME], ciphers=(), session_id=b"")
ECH = (0xFE0D, bytes(200))


def crypto_of_length(length: int, data: bytes) -> bytes:
    """A CRYPTO frame at offset 0 whose length field says so."""
    return b"\x06\x00" + (length | 1 << 14).to_bytes(2, "big") + data


def with_version(number: int, datagram: bytes) -> bytes:
    return datagram[:1] + number.to_bytes(4, "big") + datagram[5:]


# What China's firewall blocks, and what it lets pass.
BLOCKED = {
    "ordinary": initial(crypto(0, HELLO) + bytes(1000)),
    "two-byte packet number": initial(crypto(0, HELLO), number_length=2),
    "95 bytes": initial(crypto_of_length(len(SHORT), SHORT), dcid=b""),
    "no connection IDs": initial(crypto(0, HELLO), dcid=b"", scid=b""),
    "CRYPTO length 0": initial(b"\x06\x00\x00" + HELLO),
    "CRYPTO length of two zero bytes": initial(b"\x06\x00\x00\x00" + HELLO),
    "CRYPTO length beyond the packet": initial(crypto_of_length(len(HELLO) + 4, HELLO)),
    "outer name of ECH": initial(crypto(0, client_hello([ECH, NAME]))),
}
PASSED = {
    "last byte removed": initial(crypto(0, HELLO))[:-1],
    "version 2": initial(crypto(0, HELLO), version=VERSION_2),
    "unknown version": with_version(0xFF000001, initial(crypto(0, HELLO))),
    "connection ID of 255 bytes": initial(crypto(0, HELLO), dcid=bytes(255)),
    "PING before CRYPTO": initial(PING_AND_PADDING + crypto(0, HELLO)),
    "PADDING before CRYPTO": initial(bytes(40) + crypto(0, HELLO)),
    "CRYPTO out of order": initial(crypto(90, HELLO[90:]) + crypto(0, HELLO[:90])),
    "CRYPTO split before the name's end": initial(crypto(0, HELLO[:-4]) + crypto(len(HELLO) - 4, HELLO[-4:])),
    "name in ALPN only": initial(crypto(0, client_hello([alpn(b"ab.example")]))),
    "another name outside of ECH": initial(crypto(0, client_hello([ECH, server_name(b"outer.example")]))),
    "no name": initial(crypto(0, client_hello([alpn(b"h3")]))),
}


def dissect(datagram: bytes, options: DissectOptions = CHINA) -> Outcome:
    return QuicSession(options).feed(Direction.TO_SERVER, datagram)


def reads_the_name(outcome: Outcome) -> bool:
    return isinstance(outcome, Confirm) and outcome.messages[0].facts.get("quic.sni") == "ab.example"


@pytest.mark.parametrize("name", BLOCKED)
def test_the_name_is_read(name: str) -> None:
    assert reads_the_name(dissect(BLOCKED[name])), dissect(BLOCKED[name])


@pytest.mark.parametrize("name", PASSED)
def test_the_name_is_not_read(name: str) -> None:
    assert not reads_the_name(dissect(PASSED[name]))


def test_the_short_datagram_is_as_short_as_the_published_one() -> None:
    assert len(BLOCKED["95 bytes"]) == 95


@pytest.mark.parametrize(
    ("knob", "name", "reason"),
    [
        ({"quic_crypto_length": "honour"}, "CRYPTO length 0", "ClientHello is split over CRYPTO frames"),
        (
            {"quic_crypto_length": "honour"},
            "CRYPTO length beyond the packet",
            "QUIC frames: {beyond} bytes wanted, {there} left",
        ),
        ({"quic_min_datagram": 1200}, "95 bytes", "QUIC datagram of {short} bytes"),
        ({"quic_cid_limit": 0}, "ordinary", "QUIC connection ID of 8 bytes"),
    ],
)
def test_another_setting_does_not_read_it(knob: dict[str, Any], name: str, reason: str) -> None:
    numbers = {"beyond": len(HELLO) + 4, "there": len(HELLO), "short": len(BLOCKED["95 bytes"])}
    assert reason_of(dissect(BLOCKED[name], replace(CHINA, **knob))) == reason.format(**numbers)


@pytest.mark.parametrize(
    ("knobs", "name"),
    [
        ({"quic_versions": (VERSION_1, VERSION_2)}, "version 2"),
        ({"quic_cid_limit": 255}, "connection ID of 255 bytes"),
        ({"quic_crypto_first": False}, "PING before CRYPTO"),
        ({"quic_crypto_first": False}, "PADDING before CRYPTO"),
        ({"quic_reassembly": True, "quic_crypto_length": "honour"}, "CRYPTO out of order"),
        ({"quic_reassembly": True, "quic_crypto_length": "honour"}, "CRYPTO split before the name's end"),
    ],
)
def test_another_setting_reads_it(knobs: dict[str, Any], name: str) -> None:
    assert reads_the_name(dissect(PASSED[name], replace(CHINA, **knobs)))


def test_a_frame_before_crypto_is_named() -> None:
    assert reason_of(dissect(PASSED["PING before CRYPTO"])) == "the first QUIC frame is not CRYPTO"


def test_only_the_first_datagram_counts() -> None:
    session = QuicSession(replace(CHINA, quic_reassembly=True))
    half = initial(crypto(0, HELLO[:90]))
    assert reason_of(session.feed(Direction.TO_SERVER, half)) == "no whole ClientHello in 1 datagrams"


def test_a_minimum_holds_for_each_datagram() -> None:
    options = DissectOptions(quic_min_datagram=1200)
    padded = initial(crypto(0, HELLO) + bytes(1200))
    assert reads_the_name(dissect(padded, options))


@given(st.binary(max_size=200), st.sampled_from(["honour", "ignore"]), st.booleans(), st.booleans())
def test_any_frames_have_one_of_three_outcomes(frames: bytes, length: Any, first: bool, reassembly: bool) -> None:
    options = DissectOptions(quic_crypto_length=length, quic_crypto_first=first, quic_reassembly=reassembly)
    assert isinstance(dissect(initial(frames), options), NeedMore | Reject | Confirm)
