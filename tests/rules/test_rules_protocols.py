"""The knobs of dissectors: each reaches the dissector, each says whose reading it imitates."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from rule_files import load_text, problems_of

from gfwemu.dissect.options import DissectOptions
from gfwemu.rules.jsonschema import rule_file_schema
from gfwemu.rules.protocols import PROTOCOLS

RULE = "rules:\n  - {name: one, match: {port.server: 53}, action: drop}\n"
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "rules.md"

SETTINGS = {
    "tls.record_reassembly": ("true", True),
    "quic.reassembly": ("false", False),
    "quic.versions": ("[1]", (1,)),
    "quic.datagrams": ("1", 1),
    "quic.min_datagram": ("1200", 1200),
    "quic.cid_limit": ("255", 255),
    "quic.crypto_length": ("ignore", "ignore"),
    "quic.crypto_first": ("true", True),
    "http.header_name_limit": ("64", 64),
    "http.uri_limit": ("2048", 2048),
    "http.keyword_window": ("1281", 1281),
    "http.pipelined": ("first_only", "first_only"),
    "http.percent_decoding": ("false", False),
    "dns.header": ("ignored", "ignored"),
    "dns.names": ("flat", "flat"),
    "dns.name_buffer": ("100", 100),
    "openvpn.confirm": ("control", "control"),
    "wireguard.confirm": ("data", "data"),
}


def test_every_knob_is_tried_here() -> None:
    knobs = {field.name for field in fields(DissectOptions)} - {"stream_limit"}
    assert {name.replace(".", "_", 1) for name in SETTINGS} == knobs


@pytest.mark.parametrize("name", SETTINGS)
def test_a_knob_reaches_the_dissector(name: str, tmp_path: Path) -> None:
    section, knob = name.split(".")
    text, value = SETTINGS[name]
    options = load_text(tmp_path, f"version: 1\nengine: {{{section}: {{{knob}: {text}}}}}\n{RULE}").options.dissect
    option = f"{section}_{knob}"
    assert getattr(options, option) == value
    assert getattr(DissectOptions(), option) != value
    others = {field.name for field in fields(DissectOptions)} - {option}
    assert all(getattr(options, other) == getattr(DissectOptions(), other) for other in others)


def test_every_knob_is_documented() -> None:
    table = DOCUMENT.read_text().partition("\n## Engine\n")[2]
    assert [name for name in SETTINGS if f"`{name}`" not in table] == []


def test_the_schema_says_whose_reading_a_knob_imitates() -> None:
    definitions = rule_file_schema()["$defs"]
    for section in PROTOCOLS:
        for name, knob in definitions[f"{section.capitalize()}Section"]["properties"].items():
            assert knob.get("description") or name == "confirm", f"{section}.{name}"


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        ("quic: {crypto_length: skip}", "2 'crypto_length': expected honour, ignore, found 'skip'"),
        ("quic: {cid_limit: 256}", "2 'cid_limit': 256 must be at most 255"),
        ("quic: {datagrams: 0}", "2 'datagrams': 0 must be at least 1"),
        ("quic: {crypto_frist: true}", "2 unknown key 'crypto_frist'; did you mean 'crypto_first'?"),
        ("http: {pipelined: none}", "2 'pipelined': expected all, first_only, found 'none'"),
        ("dns: {name_buffer: 1}", "2 'name_buffer': 1 must be at least 2"),
    ],
)
def test_a_wrong_setting_is_refused(engine: str, problem: str, tmp_path: Path) -> None:
    assert problems_of(tmp_path, f"version: 1\nengine: {{{engine}}}\n{RULE}") == [problem]
