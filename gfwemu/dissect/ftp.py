"""FTP's control connection (RFC 959): the commands of the client, each with its argument."""

from __future__ import annotations

from gfwemu.dissect.commands import CommandSession, Standing, text_of
from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.fields import Field, FieldKind
from gfwemu.dissect.outcome import FactValue, Message, Span
from gfwemu.model import Transport

FIELDS = (
    Field("ftp.command", FieldKind.TEXT, "A command of FTP's control connection, in upper case.", "RETR"),
    Field("ftp.argument", FieldKind.TEXT, "What follows that command: a path, a user's name.", "ultrasurf.zip"),
)

# IANA "FTP Commands and Extensions". The first table has commands that no other protocol of text lines has.
_OWN = frozenset(
    (
        "ABOR",
        "ADAT",
        "ALLO",
        "APPE",
        "CDUP",
        "CLNT",
        "CWD",
        "EPRT",
        "EPSV",
        "FEAT",
        "MDTM",
        "MKD",
        "MLSD",
        "MLST",
        "NLST",
        "OPTS",
        "PASV",
        "PBSZ",
        "PORT",
        "PROT",
        "PWD",
        "REIN",
        "RMD",
        "RNFR",
        "RNTO",
        "SITE",
        "SIZE",
        "SMNT",
        "STOR",
        "STOU",
        "STRU",
        "SYST",
        "XCUP",
        "XCWD",
        "XMKD",
        "XPWD",
        "XRMD",
    )
)
# POP3, NNTP, IRC and others have these, too: they prove FTP behind its greeting.
_BEHIND_GREETING = frozenset(("ACCT", "DELE", "HOST", "LIST", "MODE", "PASS", "REST", "RETR", "STAT", "TYPE", "USER"))
# SMTP has these as well, behind a greeting that looks like FTP's.
_SHARED = frozenset(("AUTH", "HELP", "NOOP", "QUIT"))
# RFC 4217 section 4 and RFC 2228; SMTP's AUTH names SASL mechanisms.
_AUTH_ARGUMENTS = frozenset((b"TLS", b"TLS-C", b"TLS-P", b"SSL"))
# RFC 959 section 4.1.3: ABOR may come behind Telnet's interrupt and synch signals.
_TELNET = b"\xff\xf4\xf2"


class FtpSession(CommandSession):
    """The replies are not read, but for the code of the greeting: 220, or 120 where it takes a while."""

    __slots__ = ()

    name = "FTP"
    verbs = _OWN | _BEHIND_GREETING | _SHARED
    greetings: tuple[bytes, ...] = (b"220 ", b"220-", b"120 ", b"120-")

    def standing(self, verb: str, argument: bytes) -> Standing:
        if verb in _OWN or (verb in _BEHIND_GREETING and self.greeted):
            return Standing.OWN
        if verb == "AUTH":
            return Standing.OWN if argument.upper() in _AUTH_ARGUMENTS else Standing.SHARED
        if verb == "RETR" and not argument.isdigit():  # POP3 retrieves by number
            return Standing.OWN
        return Standing.SHARED if verb in self.verbs else Standing.FOREIGN

    def clean(self, line: bytes) -> bytes:
        return line.lstrip(_TELNET) if self.confirmed else line

    def message(self, verb: str, argument: bytes, start: int, offset: int) -> Message:
        facts: dict[str, FactValue] = {"ftp.command": verb}
        spans = {"ftp.command": Span(start, len(verb))}
        if argument:
            facts["ftp.argument"] = text_of(argument)
            spans["ftp.argument"] = Span(offset, len(argument))
        return Message(facts, spans)


FTP = Dissector("ftp", frozenset({Transport.TCP}), FIELDS, FtpSession)
