"""What FTP and SMTP share: command lines of a client, behind a greeting of the server (RFC 959, RFC 5321)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from enum import Enum

from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import NEED_MORE, Confirm, Message, Outcome, Reject
from gfwemu.dissect.reader import MalformedBytes
from gfwemu.model import Direction

# RFC 4954 section 4: the longest line of any SMTP extension. FTP names no limit.
_LONGEST_LINE = 12_288
# Lines that prove nothing, before the protocol is known, and lines that are no commands, once it is. Guesses.
_MOST_LINES = 16
_VERB = re.compile(rb"[A-Za-z]{3,8}(?=[ \r\n]|\Z)")
_VERB_BEGINS = re.compile(rb"[A-Za-z]{0,8}\Z")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class Standing(Enum):
    """What a command says of the protocol: that it is this one, nothing yet, or that it is another."""

    OWN = "own"
    SHARED = "shared"
    FOREIGN = "foreign"


class CommandSession(ABC):
    """Reports each command of the client, and what it held back while the protocol was in doubt.

    A first line that is no command of the protocol rejects, and so does a server that greets otherwise. Later lines
    that are no commands are passed over; control characters end the reading, as what follows STARTTLS does.
    """

    __slots__ = ("_base", "_buffer", "_greeting", "_held", "_limit", "_messages", "_strange", "confirmed")

    name: str
    verbs: frozenset[str]
    greetings: tuple[bytes, ...]

    def __init__(self, options: DissectOptions) -> None:
        self._limit = min(options.stream_limit, _LONGEST_LINE)
        self._buffer = bytearray()
        self._base = 0  # stream offset of the buffer
        self._greeting = b""
        self._held: list[Message] = []
        self._messages: list[Message] = []
        self._strange = 0
        self.confirmed = False

    @abstractmethod
    def standing(self, verb: str, argument: bytes) -> Standing:
        """What the command says of the protocol. `verb` is in upper case."""

    @abstractmethod
    def message(self, verb: str, argument: bytes, start: int, offset: int) -> Message:
        """The facts of a command that stood at `start`, its argument at `offset`. What it announces is noted here."""

    def clean(self, line: bytes) -> bytes:
        """The line without what may stand before a command."""
        return line

    def skip_content(self) -> bool:
        """Drop bytes of the buffer that are no commands. False where the rest of them is still to come."""
        return True

    @property
    def greeted(self) -> bool:
        """Whether the server's first bytes are those of a greeting."""
        return self._greeting in self.greetings

    def feed(self, direction: Direction, data: bytes) -> Outcome:
        try:
            if direction is Direction.TO_CLIENT:
                self._read_greeting(data)
                return NEED_MORE
            self._buffer += data
            self._read_lines()
        except MalformedBytes as malformed:
            if not self.confirmed:
                return Reject(str(malformed))
            return Confirm(self._take_messages(), final=True)
        messages = self._take_messages()
        return Confirm(messages, final=False) if messages else NEED_MORE

    def _take_messages(self) -> tuple[Message, ...]:
        messages, self._messages = tuple(self._messages), []
        return messages

    def _read_greeting(self, data: bytes) -> None:
        """What a server says after its client has spoken is no greeting."""
        if self._base or self._buffer or self.greeted:
            return
        self._greeting += data[: len(self.greetings[0]) - len(self._greeting)]
        if not any(greeting.startswith(self._greeting) for greeting in self.greetings):
            raise MalformedBytes(f"{self.name}: no greeting")

    def _read_lines(self) -> None:
        while self.skip_content() and self._buffer:
            end = self._buffer.find(b"\n")
            raw = bytes(self._buffer if end < 0 else self._buffer[:end])
            line = self.clean(raw)
            self._check(line, whole=end >= 0)
            if end < 0:
                return
            offset = self._base + len(raw) - len(line)
            self.drop(end + 1)
            self._read_line(line.removesuffix(b"\r"), offset)

    def drop(self, count: int) -> None:
        """Take bytes off the buffer's front."""
        del self._buffer[:count]
        self._base += count

    def _check(self, line: bytes, *, whole: bool) -> None:
        """Raises MalformedBytes where no line of the protocol begins so: nothing else must be waited for."""
        if not self.confirmed:
            verb = _VERB.match(line)
            ended = whole or (verb is not None and verb.end() < len(line))
            known = verb is not None and verb[0].decode().upper() in self.verbs
            if not (known if ended else _VERB_BEGINS.match(line)):
                raise MalformedBytes(f"{self.name}: no command")
        if len(line) > self._limit or _CONTROL.search(line):
            raise MalformedBytes(f"{self.name}: no command line")

    def _read_line(self, line: bytes, offset: int) -> None:
        found = _VERB.match(line)
        verb = found[0].decode().upper() if found else ""
        argument = line[len(verb) :].strip()
        standing = self.standing(verb, argument) if verb else Standing.FOREIGN
        if standing is Standing.FOREIGN:
            self._strange += 1
            if self._strange > _MOST_LINES or not self.confirmed:
                raise MalformedBytes(f"{self.name}: lines that are no commands")
            return
        message = self.message(verb, argument, offset, offset + line.index(argument, len(verb)))
        if self.confirmed:
            self._messages.append(message)
            return
        self._held.append(message)
        if standing is Standing.OWN:
            self.confirmed = True
            self._messages, self._held = self._held, []
        elif len(self._held) > _MOST_LINES:
            raise MalformedBytes(f"{self.name}: no command that proves it")


def text_of(data: bytes) -> str:
    """UTF-8 (RFC 2640, RFC 6531); other bytes stay visible as `\\xNN`."""
    return data.decode("utf-8", "backslashreplace")
