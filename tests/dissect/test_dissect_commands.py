"""FTP and SMTP: commands, envelopes, and what is not theirs."""

from __future__ import annotations

import pytest
from flow_kit import CAPTURES, TO_CLIENT, TO_SERVER, Event, Played, captured_flows, cut_events, play
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.ftp import FTP
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.smtp import SMTP

GREETING = (TO_CLIENT, b"220 ready\r\n")


def client(data: bytes, dissector: Dissector, *, greeted: bool = False) -> Played:
    return play(dissector, [*([GREETING] if greeted else []), (TO_SERVER, data)])


def commands(played: Played) -> list[tuple[object, object]]:
    name = "ftp" if any("ftp.command" in facts for facts in played.facts) else "smtp"
    return [(facts[f"{name}.command"], facts.get(f"{name}.argument")) for facts in played.facts]


def test_a_captured_ftp_session() -> None:
    control = captured_flows(CAPTURES / "ftp-curl.pcap")[0]
    assert commands(play(FTP, control.events)) == [
        ("USER", "anonymous"),
        ("PASS", "ftp@example.com"),
        ("PWD", None),
        ("EPSV", None),
        ("TYPE", "I"),
        ("SIZE", "file"),
        ("RETR", "file"),
        ("QUIT", None),
    ]


def test_a_captured_smtp_session() -> None:
    (flow,) = captured_flows(CAPTURES / "smtp-curl.pcap")
    played = play(SMTP, flow.events)
    assert commands(played) == [
        ("EHLO", "mail"),
        ("MAIL", "FROM:<a@example.test>"),
        ("RCPT", "TO:<b@example.test>"),
        ("DATA", None),
        ("QUIT", None),
    ]
    assert played.facts[1]["smtp.mail_from"] == "a@example.test"
    assert played.facts[2]["smtp.rcpt_to"] == "b@example.test"


def test_the_probes_of_studies() -> None:
    # Bock et al., "Geneva" (CCS 2019) and "Come as You Are" (SIGCOMM 2020), with a name of ours for the mailbox.
    assert client(b"RETR ultrasurf\r\n", FTP).facts == [{"ftp.command": "RETR", "ftp.argument": "ultrasurf"}]
    (facts,) = client(b"MAIL FROM: blocked@mail.example\r\n", SMTP).facts
    assert facts["smtp.mail_from"] == "blocked@mail.example"


@pytest.mark.parametrize(
    ("line", "field", "mailbox"),
    [
        (b"MAIL FROM:<User@Mail.Example>", "smtp.mail_from", "user@mail.example"),
        (b"mail from:<user@mail.example> SIZE=1000", "smtp.mail_from", "user@mail.example"),
        (b"MAIL FROM:user@mail.example", "smtp.mail_from", "user@mail.example"),
        (b"MAIL FROM:<@one.example,@two.example:user@mail.example>", "smtp.mail_from", "user@mail.example"),
        (b"MAIL FROM:<>", "smtp.mail_from", None),
        (b"RCPT TO:<user@mail.example>", "smtp.rcpt_to", "user@mail.example"),
        (b"RCPT TO: \t<user@mail.example> NOTIFY=NEVER", "smtp.rcpt_to", "user@mail.example"),
        ("RCPT TO:<用户@mail.example>".encode(), "smtp.rcpt_to", "用户@mail.example"),
        (b"RCPT TO:<\xff@mail.example>", "smtp.rcpt_to", "\\xff@mail.example"),
        (b"EHLO mail.example", "smtp.mail_from", None),
    ],
)
def test_mailboxes(line: bytes, field: str, mailbox: str | None) -> None:
    played = client(line + b"\r\n", SMTP)
    (facts,) = played.facts
    assert facts.get(field) == mailbox
    span = played.messages[0].spans.get(field)
    assert (span is None) == (mailbox is None)
    if span is not None and mailbox is not None and mailbox.isascii() and "\\" not in mailbox:
        assert line[span.offset : span.offset + span.length].lower() == mailbox.encode()


def test_commands_that_prove_nothing_are_told_once_one_does() -> None:
    assert client(b"NOOP\r\nHELP\r\n", SMTP).kind == "need_more"
    assert commands(client(b"NOOP\r\nEHLO mail.example\r\n", SMTP)) == [("NOOP", None), ("EHLO", "mail.example")]
    assert commands(client(b"NOOP\r\nFEAT\r\n", FTP)) == [("NOOP", None), ("FEAT", None)]
    assert client(b"NOOP\r\nFEAT\r\n", SMTP).reason == "SMTP: no command"
    assert client(b"NOOP\r\nEHLO mail.example\r\n", FTP).reason == "FTP: no command"
    assert client(b"NOOP\r\n" * 17, FTP).reason == "FTP: no command that proves it"


@pytest.mark.parametrize("line", [b"USER someone", b"PASS x", b"LIST", b"RETR 1", b"TYPE I"])
def test_some_commands_are_ftp_s_behind_its_greeting_only(line: bytes) -> None:
    assert client(line + b"\r\n", FTP).kind == "need_more"
    assert client(line + b"\r\n", FTP, greeted=True).kind == "confirm"


def test_auth_is_ftp_s_for_tls_and_smtp_s_behind_ehlo() -> None:
    assert commands(client(b"AUTH TLS\r\n", FTP)) == [("AUTH", "TLS")]
    assert client(b"AUTH PLAIN AGEAYg==\r\n", FTP, greeted=True).kind == "need_more"
    lines = b"EHLO mail.example\r\nAUTH LOGIN\r\ndXNlcg==\r\ncGFzcw==\r\nMAIL FROM:<user@mail.example>\r\n"
    assert [command for command, _ in commands(client(lines, SMTP))] == ["EHLO", "AUTH", "MAIL"]


@pytest.mark.parametrize(("dissector", "line"), [(FTP, b"AUTH TLS\r\n"), (SMTP, b"EHLO mail.example\r\nSTARTTLS\r\n")])
def test_tls_ends_the_reading(dissector: Dissector, line: bytes) -> None:
    hello = b"\x16\x03\x01\x00\x05hello"
    played = play(dissector, [GREETING, (TO_SERVER, line), (TO_CLIENT, b"220 go\r\n"), (TO_SERVER, hello)])
    assert played.final
    assert len(played.messages) == line.count(b"\n")


@pytest.mark.parametrize(
    "content", [b"", b"QUIT\r\n", b"x" * 100_000 + b"\r\n", b"..\r\n.x\r\n", b"\0\xff\r\n", b"a\nb\n"]
)
def test_the_message_is_passed_over(content: bytes) -> None:
    lines = b"EHLO mail.example\r\nDATA\r\n" + content + b".\r\nRSET\r\n"
    assert [command for command, _ in commands(client(lines, SMTP))] == ["EHLO", "DATA", "RSET"]
    size = str(len(content)).encode()
    lines = b"EHLO mail.example\r\nBDAT " + size + b" LAST\r\n" + content + b"RSET\r\n"
    assert [command for command, _ in commands(client(lines, SMTP))] == ["EHLO", "BDAT", "RSET"]


def test_a_dot_that_ends_a_long_line_of_the_message_ends_nothing_else() -> None:
    events = [(TO_SERVER, data) for data in (b"EHLO a\r\nDATA\r\n", b"words", b".\r\n", b"QUIT\r\n.\r\n", b"RSET\r\n")]
    assert [command for command, _ in commands(play(SMTP, events))] == ["EHLO", "DATA", "RSET"]


def test_telnet_signals_before_abor() -> None:
    played = client(b"CWD /\r\n\xff\xf4\xff\xf2ABOR\r\n", FTP)
    assert commands(played) == [("CWD", "/"), ("ABOR", None)]
    assert played.messages[1].spans["ftp.command"].offset == len(b"CWD /\r\n\xff\xf4\xff\xf2")


def test_arguments_are_utf8_where_they_can_be() -> None:
    assert client("RETR 极速\r\n".encode(), FTP).facts[0]["ftp.argument"] == "极速"
    assert client(b"RETR \xbc\xab\r\n", FTP).facts[0]["ftp.argument"] == "\\xbc\\xab"


def test_strange_lines_are_passed_over_up_to_a_bound() -> None:
    played = client(b"CWD /\r\n" + b"some words\r\n" * 16 + b"PWD\r\n", FTP)
    assert commands(played) == [("CWD", "/"), ("PWD", None)]
    assert client(b"CWD /\r\n" + b"some words\r\n" * 17 + b"PWD\r\n", FTP).final


@pytest.mark.parametrize("dissector", [FTP, SMTP], ids=["ftp", "smtp"])
@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([(TO_CLIENT, b"+OK\r\n")], "no greeting"),
        ([(TO_CLIENT, b"22"), (TO_CLIENT, b"1 no\r\n")], "no greeting"),
        ([(TO_SERVER, b"GET / HTTP/1.1\r\n")], "no command"),
        ([(TO_SERVER, b"\x16\x03")], "no command"),
        ([(TO_SERVER, b"NOOP " + b"x" * 20_000)], "no command line"),
        ([(TO_SERVER, b"\r\n")], "no command"),
        ([(TO_SERVER, b"LONGCOMMAND")], "no command"),
    ],
)
def test_what_is_another_protocol_says_why(dissector: Dissector, events: list[Event], reason: str) -> None:
    assert play(dissector, events).reason == f"{dissector.name.upper()}: {reason}"


def test_mail_without_from_is_not_smtp() -> None:
    assert client(b"MAIL someone\r\n", SMTP).reason == "SMTP: lines that are no commands"


SESSIONS = [
    captured_flows(CAPTURES / "ftp-curl.pcap")[0].events,
    captured_flows(CAPTURES / "smtp-curl.pcap")[0].events,
    [GREETING, (TO_SERVER, b"EHLO a\r\nMAIL FROM:<b@c>\r\nDATA\r\nwords.\r\n.\r\nBDAT 3\r\nabcQUIT\r\n\x16\x03")],
    [GREETING, (TO_SERVER, b"NOOP\r\nCWD /\r\nsome words\r\n\xff\xf4\xff\xf2ABOR\r\nRETR x\r\n")],
    [(TO_SERVER, b"NOOP\r\nMAIL someone\r\nCWD /\r\n")],
]


@pytest.mark.parametrize("dissector", [FTP, SMTP], ids=["ftp", "smtp"])
@pytest.mark.parametrize("session", SESSIONS)
@given(cuts=st.lists(st.integers(1, 120), max_size=8))
def test_cuts_do_not_change_what_is_read(dissector: Dissector, session: list[Event], cuts: list[int]) -> None:
    assert play(dissector, cut_events(session, cuts)) == play(dissector, session)


WORDS = [
    b"EHLO a",
    b"MAIL FROM:<a@b>",
    b"DATA",
    b"BDAT 7",
    b".",
    b"CWD /",
    b"USER x",
    b"\r\n",
    b"\n",
    b" ",
    b"\xff\xf4",
]


@given(
    st.lists(
        st.tuples(st.sampled_from([TO_SERVER, TO_CLIENT]), st.sampled_from(WORDS) | st.binary(max_size=30)), max_size=12
    ),
    st.sampled_from([FTP, SMTP]),
    st.sampled_from([DissectOptions(), DissectOptions(stream_limit=20)]),
)
def test_any_bytes_have_one_of_three_outcomes(
    events: list[Event], dissector: Dissector, options: DissectOptions
) -> None:
    assert play(dissector, events, options).kind in ("need_more", "reject", "confirm")
