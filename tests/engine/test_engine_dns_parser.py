"""Injector 3 of China's firewall, in rules: lenient names, anchored expressions, and answers to what is malformed.

Fan et al., "Wallbleed", NDSS 2025; Harrity et al., "GET /out", USENIX Security 2022 (more questions than one evade).
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from gfwemu.model import Verdict
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.load import load_rules
from gfwemu.testing.playbook import Playbook, UdpTalk

TEXT = r"""
version: 1
lists:
  names:
    format: regex
    entries: ['(^|\.)blocked\.example$', '^shadow\.example', '69\.test']
engine:
  dns: {header: ignored, names: flat}
rules:
  - name: injector-3
    match: {dns.qname: "@names", port.server: 53, transport: udp CLASS}
    action: poison
    placement: on-path
    with: {a: [203.0.113.250], other_types: a, injectors: [{name: "3", ttl: mirror}]}
"""


def rules(directory: Path, extra: str = "") -> RuleSet:
    path = directory / "rules.yaml"
    path.write_text(TEXT.replace(" CLASS", extra))
    return load_rules([path])


def wire_name(*labels: bytes) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def query(
    name: bytes, *, flags: int = 0x0100, counts: tuple[int, ...] = (1, 0, 0, 0), tail: bytes = b"\0\1\0\1"
) -> bytes:
    return struct.pack("!HHHHHH", 0xABCD, flags, *counts) + name + tail


def answers(book: RuleSet, datagram: bytes) -> list[bytes]:
    talk = UdpTalk(port=53)
    return [packet.payload for packet in Playbook(book).packet(talk.to_server(datagram)).injected]


ORDINARY = query(wire_name(b"www", b"blocked", b"example"))

TRIGGERS = {
    "end-anchored": ORDINARY,
    "in any case": query(wire_name(b"WWW", b"BLOCKED", b"example")),
    "start-anchored": query(wire_name(b"shadow", b"example", b"net")),
    "not anchored": query(wire_name(b"abc69", b"testing", b"net")),
    "a dot inside a label": query(wire_name(b"www.blocked.example")),
    "a NUL inside a label": query(wire_name(b"blocked", b"example\0more")),
    "any counts": query(wire_name(b"blocked", b"example"), counts=(0, 9, 65_535, 1)),
    "any opcode": query(wire_name(b"blocked", b"example"), flags=0x7800),
    "another class": query(wire_name(b"blocked", b"example"), tail=b"\0\1\0\3"),
    "a label longer than the datagram": query(b"\x07blocked\x50example", tail=b""),
}
EVASIONS = {
    "a response": query(wire_name(b"blocked", b"example"), flags=0x8180),
    "eleven bytes": ORDINARY[:11],
    "another name": query(wire_name(b"www", b"allowed", b"example")),
    "no label boundary": query(wire_name(b"unblocked", b"example")),
    "a name behind it": query(wire_name(b"blocked", b"example", b"net")),
    "start-anchored, but not at the start": query(wire_name(b"www", b"shadow", b"example")),
    "a compression pointer": query(b"\x07blocked\xc0\x1a\x00\x01\x00\x01\x07example\x00", tail=b""),
    "cut off by the buffer": query(wire_name(b"x" * 63, b"x" * 55, b"blocked", b"example")),
}


@pytest.mark.parametrize("name", TRIGGERS)
def test_what_triggers(name: str, tmp_path: Path) -> None:
    found = answers(rules(tmp_path), TRIGGERS[name])
    assert len(found) == 1
    assert found[0][:2] == b"\xab\xcd"
    assert found[0][-4:] == bytes([203, 0, 113, 250])


@pytest.mark.parametrize("name", EVASIONS)
def test_what_does_not(name: str, tmp_path: Path) -> None:
    assert answers(rules(tmp_path), EVASIONS[name]) == []


def test_the_question_comes_back_verbatim(tmp_path: Path) -> None:
    (answer,) = answers(rules(tmp_path), TRIGGERS["a dot inside a label"])
    assert answer[12:].startswith(wire_name(b"www.blocked.example") + b"\0\1\0\1")
    assert struct.unpack("!HHHH", answer[4:12]) == (1, 1, 0, 0)


def test_behind_the_datagram_zeros_come_back_and_no_memory(tmp_path: Path) -> None:
    (answer,) = answers(rules(tmp_path), TRIGGERS["a label longer than the datagram"])
    question = b"\x07blocked\x50example" + bytes(0x50 - len(b"example")) + bytes(5)
    assert answer[12 : 12 + len(question)] == question


def test_later_patches_want_the_class_in(tmp_path: Path) -> None:
    patched = rules(tmp_path, ", dns.qclass: IN")
    assert len(answers(patched, ORDINARY)) == 1
    assert answers(patched, TRIGGERS["another class"]) == []
    assert answers(patched, TRIGGERS["a label longer than the datagram"]) == []


def test_two_questions_evade_where_a_rule_says_so(tmp_path: Path) -> None:
    two = query(wire_name(b"blocked", b"example"), counts=(2, 0, 0, 0))
    assert len(answers(rules(tmp_path), two)) == 1
    assert answers(rules(tmp_path, ", dns.questions: 1"), two) == []


def test_another_reading_of_the_same(tmp_path: Path) -> None:
    path = tmp_path / "rfc.yaml"
    path.write_text(TEXT.replace(" CLASS", "").replace("{header: ignored, names: flat}", "{}"))
    by_the_rfc = load_rules([path])
    unread = {"a dot inside a label", "a NUL inside a label", "any counts", "any opcode"}
    unread.add("a label longer than the datagram")
    assert {name for name, datagram in TRIGGERS.items() if not answers(by_the_rfc, datagram)} == unread


def test_in_a_box_of_its_own_it_leaves_other_protocols_alone(tmp_path: Path) -> None:
    boxed = TEXT.replace(" CLASS", "").replace("engine:\n  dns:", "boxes:\n  dns:\n    dns:")
    boxed = boxed.replace("    action: poison\n", "    box: dns\n    action: poison\n")
    quic = "  - {name: quic, match: {quic.version: [1, 2]}, action: drop}\n"
    connection = QuicConnection(configuration=QuicConfiguration(server_name="www.example", alpn_protocols=["h3"]))
    connection.connect(("203.0.113.80", 443), now=0.0)
    initial = connection.datagrams_to_send(now=0.0)[0][0]
    dropped = {}
    for name, text in (("boxed", boxed), ("together", TEXT.replace(" CLASS", ""))):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text + quic)
        book = load_rules([path])
        assert len(answers(book, TRIGGERS["a dot inside a label"])) == 1
        dropped[name] = Playbook(book).packet(UdpTalk(port=443).to_server(initial)).verdict is Verdict.DROP
    assert dropped == {"boxed": True, "together": False}, "together, the lenient reader takes QUIC for DNS"
