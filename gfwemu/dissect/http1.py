"""HTTP/1 requests over TCP (RFC 9112), pipelined and on kept connections; responses are not read.

A request is reported once: at the end of its header block, or already at the end of a feed by which its Host line is
complete. Censors act without the blank line (the probes of Wu et al., S&P 2025, section 4.1, end after the Host line).
A cut of the stream therefore changes at most http.user_agent, which is unknown where the cut falls between both lines.

More is tolerated than the RFC allows, as servers do: bare LF, several blanks between the parts of the request line,
blanks before a colon, lines without a colon. A folded line continues the line before only where that one is empty.
"""

from __future__ import annotations

import re
from collections.abc import Generator

from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.fields import Field, FieldKind
from gfwemu.dissect.http1_request import Request, check_request_line_start, read_request_line
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import NEED_MORE, Confirm, Message, Outcome, Reject
from gfwemu.dissect.reader import MalformedBytes
from gfwemu.model import Direction, Transport

FIELDS = (
    Field(
        "http.host",
        FieldKind.DOMAIN,
        "The first Host header, else the host of an absolute target; without port.",
        "www.example.com",
    ),
    Field("http.path", FieldKind.TEXT, "Path and query of the request target.", "/search?q=news"),
    Field("http.method", FieldKind.TEXT, "The method as written.", "GET"),
    Field("http.version", FieldKind.TEXT, "The version of the request line.", "1.1"),
    Field("http.user_agent", FieldKind.TEXT, "The first User-Agent header.", "curl/7.88.1"),
    Field(
        "http.keyword",
        FieldKind.TEXT,
        "What keyword filters see: request target and Host, a line each; where they hold %-escapes or other than "
        "ASCII, both once more, decoded as UTF-8 and as GB18030. A plain value matches as a part of it.",
        "/?q=ultrasurf",
    ),
)

# Blank lines before a request line are passed over (RFC 9112 section 2.2: at least one). The bound is a guess.
_MOST_LEADING_BYTES = 8
# RFC 9112 section 7.1.1 asks for a bound on chunk extensions without naming one. A guess.
_LONGEST_CHUNK_LINE = 4096
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?", re.DOTALL)
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")
_CR, _LF = b"\r\n"

_Parser = Generator[None, None, None]


class Http1Session:
    """Reads the client's direction. `stream_limit` bounds a header block, and a server's talk to a silent client."""

    __slots__ = (
        "_buffer",
        "_confirmed",
        "_limit",
        "_messages",
        "_options",
        "_parser",
        "_position",
        "_request",
        "_server_bytes",
        "_unanswered",
    )

    def __init__(self, options: DissectOptions) -> None:
        self._options = options
        self._limit = options.stream_limit
        self._buffer = bytearray()
        self._position = 0
        self._server_bytes = 0
        self._confirmed = False
        self._unanswered = False
        self._request: Request | None = None
        self._messages: list[Message] = []
        self._parser = self._parse()

    def feed(self, direction: Direction, data: bytes) -> Outcome:
        if direction is Direction.TO_CLIENT:
            return self._feed_server(data)
        self._buffer += data
        self._messages = []
        problem = ""
        try:
            next(self._parser, None)
        except MalformedBytes as malformed:
            problem = str(malformed)
        if self._request is not None and self._request.host_read:
            self._report()
        if self._messages:
            self._confirmed = True
        if problem and not self._confirmed:
            return Reject(problem)
        return Confirm(tuple(self._messages), bool(problem)) if self._messages or problem else NEED_MORE

    def _feed_server(self, data: bytes) -> Outcome:
        self._unanswered = False
        if self._position or self._buffer:
            return NEED_MORE
        self._server_bytes += len(data)
        if self._server_bytes > self._limit:
            return Reject("HTTP: only the server speaks")
        return NEED_MORE

    def _report(self) -> None:
        assert self._request is not None
        self._messages.append(self._request.message(self._options))
        self._request = None

    def _parse(self) -> _Parser:
        """Reads requests for ever. Suspends where the bytes end; raises MalformedBytes at what is no request."""
        while True:
            yield from self._skip_blank_lines()
            length, chunked = yield from self._header_block()
            if chunked:
                yield from self._skip_chunks()
            else:
                yield from self._skip(length)

    def _header_block(self) -> Generator[None, None, tuple[int, bool]]:
        """The length of the body, and whether it is chunked instead (RFC 9112 section 6.3)."""
        end = self._position + self._limit
        start = self._position
        line = yield from self._line(end, request_line=True)
        request = read_request_line(line, start)
        if self._options.http_pipelined == "all" or not self._unanswered:
            self._request = request
        self._unanswered = True
        headers_start = self._position
        name_limit = self._options.http_header_name_limit
        stopped = False
        length: bytes | None = None
        coding = b""
        name = b""
        while True:
            start = self._position
            line = yield from self._line(end)
            if not line:
                break
            if line[0] in b" \t":
                value = line
            else:
                name, colon, value = line.partition(b":")
                name = name.strip().lower()
                stopped = stopped or bool(colon and name_limit and len(name) >= name_limit)
            content = value.strip()
            if not content:
                continue
            if name == b"host":
                offset = start + line.find(content, len(line) - len(value))
                window = self._options.http_keyword_window
                in_window = not window or offset - headers_start < window
                request.set_host(content, offset, found=not stopped, as_keyword=in_window)
            elif name == b"user-agent":
                request.set_user_agent(content)
            elif name == b"transfer-encoding":
                coding = content.lower()
            elif name == b"content-length":
                if not _CONTENT_LENGTH.fullmatch(content) or length not in (None, content):
                    raise MalformedBytes("HTTP: unreadable Content-Length")
                length = content
            name = b""
        if self._request is request:
            self._report()
        if coding:
            if not coding.endswith(b"chunked"):
                raise MalformedBytes("HTTP: the body's end cannot be told")
            return 0, True
        return int(length or 0), False

    def _skip_chunks(self) -> _Parser:
        """RFC 9112 section 7.1."""
        while True:
            line = yield from self._line(self._position + _LONGEST_CHUNK_LINE)
            match = _CHUNK_SIZE.fullmatch(line)
            if not match:
                raise MalformedBytes("HTTP: unreadable chunk size")
            size = int(match[1], 16)
            if not size:
                break
            yield from self._skip(size)
            if (yield from self._line(self._position + _LONGEST_CHUNK_LINE)):
                raise MalformedBytes("HTTP: a chunk longer than its size")
        end = self._position + self._limit
        while (yield from self._line(end)):
            pass

    def _skip_blank_lines(self) -> _Parser:
        end = self._position + _MOST_LEADING_BYTES
        while True:
            while not self._buffer:
                yield
            if self._buffer[0] not in (_CR, _LF):
                return
            if self._position == end:
                raise MalformedBytes("HTTP: blank lines without a request")
            self._consume(1)

    def _line(self, end: int, *, request_line: bool = False) -> Generator[None, None, bytes]:
        """The next line without its end, which must lie before `end` in the stream."""
        last = end - self._position
        scanned = 0
        while True:
            found = self._buffer.find(b"\n", scanned, max(last, 0))
            if request_line:
                # What is no request must not be waited for.
                check_request_line_start(self._buffer, found)
            if found >= 0:
                break
            if len(self._buffer) >= last:
                raise MalformedBytes("HTTP: header block too long")
            scanned = len(self._buffer)
            yield
        line = bytes(self._buffer[:found])
        self._consume(found + 1)
        return line.removesuffix(b"\r")

    def _skip(self, count: int) -> _Parser:
        while count:
            while not self._buffer:
                yield
            step = min(count, len(self._buffer))
            self._consume(step)
            count -= step

    def _consume(self, count: int) -> None:
        del self._buffer[:count]
        self._position += count


HTTP1 = Dissector("http", frozenset({Transport.TCP}), FIELDS, Http1Session)
