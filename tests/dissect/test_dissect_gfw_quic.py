"""Payloads that were sent through the Great Firewall, and what is read in them.

From "Exposing and Circumventing SNI-based QUIC Censorship of the Great Firewall of China" (Zohaib et al., USENIX
Security 2025). The payloads are not ours to ship: they are read from beside the checkout.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hello_kit import reason_of

from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import Confirm, Outcome
from gfwemu.dissect.quic import QuicSession
from gfwemu.dissect.quic_initial import VERSION_1
from gfwemu.model import Direction

DATA = Path(__file__).parents[3] / "shared" / "facts" / "data"

pytestmark = pytest.mark.skipif(
    not (DATA / "gfw_quic_triggers.tsv").exists(), reason="needs the published payloads beside the checkout"
)

EVERYTHING = DissectOptions()
# The firewall of 2024 as profiles set it (section 5 and table 3 of the paper).
GFW = DissectOptions(
    quic_reassembly=False,
    quic_versions=(VERSION_1,),
    quic_datagrams=1,
    quic_crypto_length="ignore",
    quic_crypto_first=True,
)
BLOCKED = ("google.com", "www.google.com")

# Where this dissector sees another name than tshark_sni says, and why.
UNLIKE_TSHARK = {
    # exp1 with a packet number of two bytes. tshark reads the name, too, when it is not shown exp1 before: both have
    # one connection ID and one CRYPTO offset, and the second one counts as a retransmission.
    "exp2": "google.com",
}


def rows() -> list[dict[str, str]]:
    try:
        with (DATA / "gfw_quic_triggers.tsv").open(newline="") as table:
            return list(csv.DictReader(table, delimiter="\t"))
    except FileNotFoundError:
        return []


def dissect(file: str, options: DissectOptions) -> Outcome:
    return QuicSession(options).feed(Direction.TO_SERVER, (DATA / file).read_bytes())


def sni(outcome: Outcome) -> object:
    return outcome.messages[0].facts["quic.sni"] if isinstance(outcome, Confirm) else None


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["payload"])
def test_names_are_those_of_tshark(row: dict[str, str]) -> None:
    expected = UNLIKE_TSHARK.get(row["payload"], row["tshark_sni"] or None)
    assert sni(dissect(row["file"], EVERYTHING)) == expected


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["payload"])
def test_the_firewall_s_reading_finds_what_it_blocked(row: dict[str, str]) -> None:
    assert (sni(dissect(row["file"], GFW)) in BLOCKED) == (row["gfw_blocked"] == "yes")


@pytest.mark.parametrize(
    ("knob", "payload"),
    [
        ({"quic_crypto_length": "honour"}, "exp10"),
        ({"quic_crypto_first": False}, "exp13"),
        ({"quic_reassembly": True, "quic_crypto_length": "honour", "quic_crypto_first": False}, "exp12"),
        ({"quic_versions": EVERYTHING.quic_versions}, "exp16"),
    ],
)
def test_without_a_knob_a_payload_comes_out_wrong(knob: dict[str, Any], payload: str) -> None:
    row = next(row for row in rows() if row["payload"] == payload)
    assert (sni(dissect(row["file"], replace(GFW, **knob))) in BLOCKED) != (row["gfw_blocked"] == "yes")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("exp3", "QUIC datagram: 225 bytes wanted, 224 left"),
        ("exp4", "QUIC version 0x00000002 is not read"),
        ("exp9", "QUIC connection ID of 255 bytes"),
        ("exp10", "QUIC frame type 0x3c in an Initial packet"),
        ("exp11", "QUIC frames: 96 bytes wanted, 92 left"),
        ("benign", "not a QUIC long header"),
    ],
)
def test_unread_payloads_say_why(payload: str, reason: str) -> None:
    assert reason_of(dissect(f"quic-triggers/{payload}.bin", EVERYTHING)) == reason
