"""HTTP, FTP and SMTP by rules: what the server says reaches the dissectors that need it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gfwemu.engine.records import RuleHit
from gfwemu.model import Direction
from gfwemu.rules.load import load_rules
from gfwemu.testing.playbook import Playbook, TcpTalk

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
Event = tuple[Direction, bytes]

TEXT = """
version: 1
engine: {http: {header_name_limit: 64, pipelined: first_only}}
rules:
  - name: host
    match: {http.host: blocked.example}
    action: reset
  - name: keyword
    match: {http.keyword: 禁词, http.path: {contains: search}}
    action: reset
  - name: file
    match: {ftp.command: retr, ftp.argument: {contains: ultrasurf}}
    action: reset
  - name: sender
    match: {smtp.mail_from: User@Blocked.Example}
    action: reset
"""
GET = b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n"


def hits(directory: Path, events: list[Event], text: str = TEXT) -> list[str]:
    path = directory / "rules.yaml"
    path.write_text(text)
    book = Playbook(load_rules([path]))
    talk = TcpTalk()
    for packet in talk.handshake():
        book.packet(packet)
    found = []
    for direction, data in events:
        sent = talk.to_server(data) if direction is TO_SERVER else talk.to_client(data)
        reaction = book.packet(sent)
        found += [hit.rule for hit in reaction.told(RuleHit) if isinstance(hit, RuleHit)]
        assert bool(reaction.injected) == bool(reaction.told(RuleHit))
    return found


@pytest.mark.parametrize(
    ("events", "rules"),
    [
        ([(TO_SERVER, GET % b"blocked.example")], ["host"]),
        ([(TO_SERVER, GET % b"a.example" + GET % b"blocked.example")], []),
        ([(TO_SERVER, GET % b"a.example"), (TO_SERVER, GET % b"blocked.example")], []),
        (
            [
                (TO_SERVER, GET % b"a.example"),
                (TO_CLIENT, b"HTTP/1.1 200 OK\r\n\r\n"),
                (TO_SERVER, GET % b"blocked.example"),
            ],
            ["host"],
        ),
        ([(TO_SERVER, b"GET / HTTP/1.1\r\n" + b"X" * 64 + b": 1\r\nHost: blocked.example\r\n\r\n")], []),
        ([(TO_SERVER, b"GET /search?q=%E7%A6%81%E8%AF%8D HTTP/1.1\r\nHost: a.example\r\n")], ["keyword"]),
        ([(TO_SERVER, b"GET /search?q=%BD%FB%B4%CA HTTP/1.1\r\nHost: a.example\r\n")], ["keyword"]),
        ([(TO_SERVER, b"GET /?q=%E7%A6%81%E8%AF%8D HTTP/1.1\r\nHost: a.example\r\n")], []),
        (
            [
                (TO_CLIENT, b"220 ready\r\n"),
                (TO_SERVER, b"USER anonymous\r\n"),
                (TO_CLIENT, b"230 in\r\n"),
                (TO_SERVER, b"RETR ultrasurf.zip\r\n"),
            ],
            ["file"],
        ),
        ([(TO_CLIENT, b"220 ready\r\n"), (TO_SERVER, b"RETR other.zip\r\n")], []),
        ([(TO_CLIENT, b"+OK pop3\r\n"), (TO_SERVER, b"RETR ultrasurf\r\n")], []),
        (
            [
                (TO_CLIENT, b"220 mail.example ESMTP\r\n"),
                (TO_SERVER, b"EHLO me.example\r\n"),
                (TO_CLIENT, b"250 hello\r\n"),
                (TO_SERVER, b"MAIL FROM: user@blocked.example\r\n"),
            ],
            ["sender"],
        ),
        ([(TO_SERVER, b"MAIL FROM:<user@allowed.example>\r\n")], []),
    ],
)
def test_what_meets_a_rule(events: list[Event], rules: list[str], tmp_path: Path) -> None:
    assert hits(tmp_path, events) == rules


@pytest.mark.parametrize("pipelined", ["first_only", "all"])
def test_without_other_protocols_an_answer_still_ends_the_row(pipelined: str, tmp_path: Path) -> None:
    text = TEXT.partition("  - name: keyword")[0].replace("first_only", pipelined)
    get, blocked = (TO_SERVER, GET % b"a.example"), (TO_SERVER, GET % b"blocked.example")
    assert hits(tmp_path, [get, (TO_CLIENT, b"HTTP/1.1 200 OK\r\n\r\n"), blocked], text) == ["host"]
    assert hits(tmp_path, [get, blocked], text) == (["host"] if pipelined == "all" else [])
