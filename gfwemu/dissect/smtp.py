"""SMTP (RFC 5321): the client's commands and envelope. The message itself is passed over, and replies are not read."""

from __future__ import annotations

import re

from gfwemu.dissect.commands import CommandSession, Standing, text_of
from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.fields import Field, FieldKind
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import FactValue, Message, Span
from gfwemu.model import Transport

FIELDS = (
    Field("smtp.command", FieldKind.TEXT, "A command of SMTP, in upper case.", "RCPT"),
    Field("smtp.argument", FieldKind.TEXT, "What follows that command.", "TO:<user@mail.example>"),
    Field("smtp.mail_from", FieldKind.TEXT, "The sender that MAIL FROM names, in lower case.", "user@mail.example"),
    Field("smtp.rcpt_to", FieldKind.TEXT, "The recipient that RCPT TO names, in lower case.", "user@mail.example"),
)

_OWN = frozenset(("BDAT", "EHLO", "ETRN", "EXPN", "HELO", "VRFY"))
# FTP, POP3 and others have these, too.
_SHARED = frozenset(("AUTH", "DATA", "HELP", "NOOP", "QUIT", "RSET", "STARTTLS"))
_PATHS = {"MAIL": ("smtp.mail_from", b"FROM"), "RCPT": ("smtp.rcpt_to", b"TO")}
# RFC 5321 section 4.1.2; a blank behind the colon and a path without brackets are errors that servers forgive. A
# source route before the mailbox is no part of it.
_PATH = re.compile(rb"(FROM|TO):[ \t]*(?:<(?:@[^:>]*:)?([^>]*)>|([^ \t<>]+))", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9]{1,18})(?:[ \t]|\Z)")  # RFC 3030 section 2


class SmtpSession(CommandSession):
    """What follows DATA is content up to a line with one dot, even where the server refuses it."""

    __slots__ = ("_chunk", "_in_data", "_in_line")

    name = "SMTP"
    verbs = _OWN | _SHARED | frozenset(_PATHS)
    greetings: tuple[bytes, ...] = (b"220 ", b"220-")

    def __init__(self, options: DissectOptions) -> None:
        super().__init__(options)
        self._chunk = 0  # bytes of a BDAT chunk that are still to come
        self._in_data = False
        self._in_line = False  # of the content: its line goes on

    def standing(self, verb: str, argument: bytes) -> Standing:
        if verb in _OWN or self._path(verb, argument):
            return Standing.OWN
        return Standing.SHARED if verb in _SHARED else Standing.FOREIGN

    @staticmethod
    def _path(verb: str, argument: bytes) -> re.Match[bytes] | None:
        found = _PATH.match(argument)
        return found if found and verb in _PATHS and found[1].upper() == _PATHS[verb][1] else None

    def message(self, verb: str, argument: bytes, start: int, offset: int) -> Message:
        self._in_data = verb == "DATA"
        if verb == "BDAT" and (size := _CHUNK.match(argument)):
            self._chunk = int(size[1])
        facts: dict[str, FactValue] = {"smtp.command": verb}
        spans = {"smtp.command": Span(start, len(verb))}
        if argument:
            facts["smtp.argument"] = text_of(argument)
            spans["smtp.argument"] = Span(offset, len(argument))
        if path := self._path(verb, argument):
            group = 2 if path[2] is not None else 3
            if path[group]:
                facts[_PATHS[verb][0]] = text_of(path[group]).lower()
                spans[_PATHS[verb][0]] = Span(offset + path.start(group), len(path[group]))
        return Message(facts, spans)

    def skip_content(self) -> bool:
        step = min(self._chunk, len(self._buffer))
        self._chunk -= step
        self.drop(step)
        while self._in_data and (end := self._buffer.find(b"\n")) >= 0:
            self._in_data = self._in_line or self._buffer[:end].removesuffix(b"\r") != b"."
            self._in_line = False
            self.drop(end + 1)
        if self._in_data and len(self._buffer) > len(b".\r"):
            self._in_line = True
            self.drop(len(self._buffer))
        return not self._in_data


SMTP = Dissector("smtp", frozenset({Transport.TCP}), FIELDS, SmtpSession)
