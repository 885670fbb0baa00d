"""One HTTP/1 request: its request line, and the facts that it yields."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import FactValue, Message, Span
from gfwemu.dissect.reader import MalformedBytes

# RFC 9110 section 5.6.2. The longest registered method has 17 letters; the bound is a guess.
_METHOD = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}"
# What a request line may begin with: bytes that are not controls, and at most a CR behind them.
_BEGINNING = re.compile(_METHOD + rb"(?:[ \t][^\x00-\x08\x0a-\x1f\x7f]*\r?)?")
_VERSION = re.compile(rb"HTTP/([0-9]\.[0-9])")
# RFC 3986 section 3: the scheme and authority of an absolute target.
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://([^/?#]*)")
_PORT = re.compile(rb":[0-9]*\Z")
_NO_REQUEST_LINE = "HTTP: no request line"


@dataclass(slots=True)
class Request:
    """What is known so far. Offsets count from the start of the client's stream.

    host_read: a Host header has come, although a censor that gave up before it may not know it. keyword_host is what
    keyword filters see of it.
    """

    method: bytes
    target: bytes
    target_offset: int
    version: str
    host: bytes = b""
    host_offset: int = 0
    host_read: bool = False
    keyword_host: bytes = b""
    user_agent: bytes = b""

    def set_host(self, value: bytes, offset: int, *, found: bool, as_keyword: bool) -> None:
        """The first Host header counts, for those who see it: the search for a host, the search for keywords."""
        if self.host_read:
            return
        self.host_read = True
        if found:
            self.host, self.host_offset = value, offset
        if as_keyword:
            self.keyword_host = value

    def set_user_agent(self, value: bytes) -> None:
        self.user_agent = self.user_agent or value

    def message(self, options: DissectOptions) -> Message:
        absolute = _ABSOLUTE.match(self.target)
        path_start = absolute.end() if absolute else 0
        path = self.target[path_start:]
        facts: dict[str, FactValue] = {
            "http.method": _text(self.method),
            "http.path": _text(path) or "/",
            "http.version": self.version,
            "http.keyword": keyword_text(self.target, self.keyword_host, options),
        }
        spans = {"http.path": Span(self.target_offset + path_start, len(path))}
        if self.host:
            authority, offset = self.host, self.host_offset
        elif absolute:
            authority, offset = absolute[1], self.target_offset + absolute.start(1)
        elif self.method == b"CONNECT":
            authority, offset = self.target, self.target_offset
        else:
            authority, offset = b"", 0
        if host := _host_text(authority):
            facts["http.host"] = host
            spans["http.host"] = Span(offset, len(authority))
        if self.user_agent:
            facts["http.user_agent"] = _text(self.user_agent)
        return Message(facts, spans)


def check_request_line_start(data: bytes | bytearray, end: int) -> None:
    """Raises MalformedBytes where no request line begins as `data` does. `end`: where its LF stands, -1 if not yet."""
    match = _BEGINNING.match(data) if data else None
    if data and (match is None or match.end() < (len(data) if end < 0 else end)):
        raise MalformedBytes(_NO_REQUEST_LINE)


def read_request_line(line: bytes, offset: int) -> Request:
    """The line has passed `check_request_line_start` and stood at `offset`. Raises MalformedBytes."""
    words = line.split(None, 1)
    rest = words[1].rsplit(None, 1) if len(words) == 2 else []
    version = _VERSION.fullmatch(rest[1]) if len(rest) == 2 else None
    if version is None:
        raise MalformedBytes(_NO_REQUEST_LINE)
    if words[0] == b"PRI" and version[1] == b"2.0":
        raise MalformedBytes("HTTP: the preface of HTTP/2")
    return Request(words[0], rest[0], offset + line.index(rest[0], len(words[0])), version[1].decode("ascii"))


def _text(data: bytes) -> str:
    """Bytes other than ASCII become `\\xNN`."""
    return data.decode("ascii", "backslashreplace")


def _host_text(authority: bytes) -> str:
    """Lower case, without user, port, brackets and trailing dot."""
    host = authority.rpartition(b"@")[2]
    host = _PORT.sub(b"", host).strip()
    return _text(host.removeprefix(b"[").removesuffix(b"]").removesuffix(b".")).lower()


def keyword_text(target: bytes, host: bytes, options: DissectOptions) -> str:
    """Target and Host, a line each, then decoded where that makes a difference (Rambert et al., WWW 2021)."""
    if options.http_uri_limit:
        target = target[: options.http_uri_limit]
    lines = [_text(target), _text(host)] if host else [_text(target)]
    decoded = unquote_to_bytes(target) if options.http_percent_decoding else target
    if decoded != target or not target.isascii() or not host.isascii():
        decoded += b"\n" + host if host else b""
        lines += [decoded.decode("utf-8", "replace"), decoded.decode("gb18030", "replace")]
    return "\n".join(lines)
