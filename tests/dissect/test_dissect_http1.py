"""HTTP/1 requests: ordinary, odd, pipelined, cut and broken."""

from __future__ import annotations

import pytest
from flow_kit import CAPTURES, TO_CLIENT, TO_SERVER, captured_flows, cut_events, play
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.dissect.http1 import HTTP1
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import NEED_MORE, Confirm, Outcome, Reject

NO_REQUEST_LINE = "HTTP: no request line"
ORDINARY = b"GET /path?q=1 HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n"


def feed(data: bytes, options: DissectOptions | None = None) -> Outcome:
    return HTTP1.open(options or DissectOptions()).feed(TO_SERVER, data)


def requests(data: bytes) -> list[dict[str, object]]:
    played = play(HTTP1, [(TO_SERVER, data)])
    assert played.kind == "confirm", played.reason
    return played.facts


def host(data: bytes) -> object:
    (facts,) = requests(data)
    return facts.get("http.host")


def test_every_fact_of_an_ordinary_request() -> None:
    outcome = feed(ORDINARY)
    assert isinstance(outcome, Confirm)
    assert not outcome.final
    (message,) = outcome.messages
    assert dict(message.facts) == {
        "http.method": "GET",
        "http.path": "/path?q=1",
        "http.version": "1.1",
        "http.host": "www.example.com",
        "http.user_agent": "curl/7.88.1",
        "http.keyword": "/path?q=1\nwww.example.com",
    }
    assert set(message.facts) == {field.name for field in HTTP1.fields}
    spans = {name: ORDINARY[span.offset : span.offset + span.length] for name, span in message.spans.items()}
    assert spans == {"http.path": b"/path?q=1", "http.host": b"www.example.com"}


def test_the_probe_of_studies_has_no_blank_line() -> None:
    assert host(b"GET / HTTP/1.1\r\nHost: www.example.com\r\n") == "www.example.com"


def test_a_host_line_that_is_not_complete_is_waited_for() -> None:
    session = HTTP1.open(DissectOptions())
    assert session.feed(TO_SERVER, b"GET / HTTP/1.1\r\nHost: www.exam") == NEED_MORE
    outcome = session.feed(TO_SERVER, b"ple.com\r\n")
    assert isinstance(outcome, Confirm)
    assert outcome.messages[0].facts["http.host"] == "www.example.com"
    assert session.feed(TO_SERVER, b"User-Agent: x\r\n\r\n") == NEED_MORE


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b"Host: WWW.Example.COM\r\n", "www.example.com"),
        (b"hOsT: www.example.com\r\n", "www.example.com"),
        (b"Host:www.example.com\r\n", "www.example.com"),
        (b"Host:   \t www.example.com \t\r\n", "www.example.com"),
        (b"Host : www.example.com\r\n", "www.example.com"),
        (b"Host: www.example.com:8080\r\n", "www.example.com"),
        (b"Host: www.example.com:\r\n", "www.example.com"),
        (b"Host: www.example.com.\r\n", "www.example.com"),
        (b"Host: [2001:db8::1]:80\r\n", "2001:db8::1"),
        (b"Host: [2001:db8::1]\r\n", "2001:db8::1"),
        (b"Host: 192.0.2.1:80\r\n", "192.0.2.1"),
        (b"Host: one.example\r\nHost: two.example\r\n", "one.example"),
        (b"Host:\r\n one.example\r\n", "one.example"),
        (b"Host: one.example\r\n two.example\r\n", "one.example"),
        (b"Host:\r\nHost: two.example\r\n", "two.example"),
        (b"X: 1\r\n Host: no.example\r\nHost: one.example\r\n", "one.example"),
        (b"\tHost: no.example\r\n", None),
        (b"Hosts: no.example\r\n", None),
        (b"no colon\r\nHost: one.example\r\n", "one.example"),
        (b"Host: " + b" " * 3391 + b"one.example\r\n", "one.example"),
        (b"Host: caf\xc3\xa9.example\r\n", "caf\\xc3\\xa9.example"),
        (b"Host:\r\n", None),
        (b"", None),
    ],
)
@pytest.mark.parametrize("ending", [b"\r\n", b"\n"])
def test_host_lines(lines: bytes, expected: str | None, ending: bytes) -> None:
    assert host((b"GET / HTTP/1.1\r\n" + lines + b"\r\n").replace(b"\r\n", ending)) == expected


@pytest.mark.parametrize(
    ("line", "method", "path", "of_host"),
    [
        (b"GET http://one.example/a/b?c HTTP/1.1", "GET", "/a/b?c", "one.example"),
        (b"GET HTTP://User@One.Example:81 HTTP/1.1", "GET", "/", "one.example"),
        (b"GET http://one.example?c HTTP/1.0", "GET", "?c", "one.example"),
        (b"CONNECT one.example:443 HTTP/1.1", "CONNECT", "one.example:443", "one.example"),
        (b"OPTIONS * HTTP/1.1", "OPTIONS", "*", None),
        (b"X-ANY! / HTTP/1.1", "X-ANY!", "/", None),
        (b"gET / HTTP/1.1", "gET", "/", None),
        (b"GET  \t /  HTTP/1.1 ", "GET", "/", None),
        (b"GET /a b HTTP/1.1", "GET", "/a b", None),
        (b"GET / HTTP/9.9", "GET", "/", None),
        (b"GET /\xe6\xb3\x95 HTTP/1.1", "GET", "/\\xe6\\xb3\\x95", None),
        (b"\r\n\r\nGET / HTTP/1.1", "GET", "/", None),
    ],
)
def test_request_lines(line: bytes, method: str, path: str, of_host: str | None) -> None:
    (facts,) = requests(line + b"\r\n\r\n")
    assert (facts["http.method"], facts["http.path"], facts.get("http.host")) == (method, path, of_host)


def test_the_host_header_comes_before_an_absolute_target() -> None:
    assert host(b"GET http://one.example/ HTTP/1.1\r\nHost: two.example\r\n\r\n") == "two.example"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (b"/?q=ultrasurf", ["/?q=ultrasurf"]),
        (b"/%E6%B3%95%E8%BD%AE", ["/%E6%B3%95%E8%BD%AE", "\u6cd5\u8f6e"]),
        (b"/%B7%A8%C2%D6", ["\u6cd5\u8f6e"]),
        (b"/\xe6\xb3\x95\xe8\xbd\xae", ["\u6cd5\u8f6e"]),
        (b"/%75ltra", ["/%75ltra", "/ultra"]),
        (b"/%zz%", ["/%zz%"]),
    ],
)
def test_keyword_text(target: bytes, words: list[str]) -> None:
    (facts,) = requests(b"GET " + target + b" HTTP/1.1\r\nHost: www.example\r\n\r\n")
    text = facts["http.keyword"]
    assert isinstance(text, str)
    assert "www.example" in text.split("\n")
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        b"EHLO client.example\r\n",
        b"GET /\r\n",
        b"GET / HTTP/1.1x\r\n",
        b"GET / http/1.1\r\n",
        b"GET / HTTP/1\r\n",
        b"GET\r\n",
        b"\x16\x03\x01",
        b"G\x00",
        b"GET /\x00",
        b"GET / HTTP/1.1\rX",
        b" GET / HTTP/1.1\r\n",
        b"A" * 33,
        b"(",
    ],
)
def test_what_is_no_request(data: bytes) -> None:
    assert feed(data) == Reject(NO_REQUEST_LINE)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP: the preface of HTTP/2"),
        (b"\r\n" * 5, "HTTP: blank lines without a request"),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n", "HTTP: unreadable Content-Length"),
    ],
)
def test_what_is_rejected(data: bytes, reason: str) -> None:
    assert feed(data) == Reject(reason)


def test_the_stream_limit_bounds_the_header_block() -> None:
    options = DissectOptions(stream_limit=100)
    too_long = Reject("HTTP: header block too long")
    head = b"GET / HTTP/1.1\r\nX: "
    fits = head + b"a" * (100 - len(head) - 4) + b"\r\n\r\n"
    assert isinstance(feed(fits, options), Confirm)
    for data in (head + b"a" * 82, head + b"a" * 500, fits[:-4] + b"a\r\n\r\n"):
        assert feed(data, options) == too_long
    assert feed(head + b"a" * 80, options) == NEED_MORE


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n\nGET ",
        b"Content-Length:\r\n 5\r\n\r\nhello",
        b"Content-Length: 5\r\n 6\r\n\r\nhello",
        b"Content-Length: 0\r\n\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"Transfer-Encoding: gzip, Chunked\r\n\r\n5;a=b\r\nhello\r\n00A\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_a_request_behind_a_body(body: bytes) -> None:
    data = b"POST /one HTTP/1.1\r\nHost: one.example\r\n" + body + b"GET /two HTTP/1.1\r\nHost: two.example\r\n\r\n"
    for step in (1, 2, 7, len(data)):
        played = play(HTTP1, cut_events([(TO_SERVER, data)], range(0, len(data), step)))
        assert [facts["http.host"] for facts in played.facts] == ["one.example", "two.example"]
        assert not played.final
        places = [message.spans["http.host"].offset for message in played.messages]
        assert places == [data.index(b"one.example"), data.index(b"two.example")]


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"Transfer-Encoding: gzip\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"\r\n\x16\x03\x01",
        b"X: " + b"x" * 70_000,
    ],
)
def test_what_cannot_be_followed_ends_the_session(rest: bytes) -> None:
    data = b"POST /one HTTP/1.1\r\nHost: one.example\r\n" + rest
    for step in (3, len(data)):
        played = play(HTTP1, cut_events([(TO_SERVER, data)], range(0, len(data), step)))
        assert (played.kind, played.final, len(played.messages)) == ("confirm", True, 1)


def test_responses_are_not_read() -> None:
    session = HTTP1.open(DissectOptions())
    assert session.feed(TO_CLIENT, b"HTTP/1.1 200 OK\r\n\r\n") == NEED_MORE
    assert isinstance(session.feed(TO_SERVER, ORDINARY), Confirm)
    assert session.feed(TO_CLIENT, bytes(100_000)) == NEED_MORE


def test_a_flow_in_which_only_the_server_speaks_is_given_up() -> None:
    played = play(HTTP1, [(TO_CLIENT, bytes(40_000))] * 2)
    assert (played.kind, played.reason) == ("reject", "HTTP: only the server speaks")


@pytest.mark.parametrize("name", ["http-curl", "http-download"])
def test_curl(name: str) -> None:
    for flow in captured_flows(CAPTURES / f"{name}.pcap"):
        played = play(HTTP1, flow.events)
        assert played.kind == "confirm"
        assert {facts["http.user_agent"] for facts in played.facts} == {"curl/7.88.1"}
        if name == "http-download":
            assert [facts["http.path"] for facts in played.facts] == ["/file", "/file?again"]
            assert {facts["http.host"] for facts in played.facts} == {"198.51.100.2"}


tokens = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcxyz-!#$%&'*+.^_`|~0189", min_size=1, max_size=20)
names = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-", min_size=1, max_size=20).filter(
    lambda name: name.lower() not in ("host", "user-agent", "content-length", "transfer-encoding")
)
values = st.text("abcdefghijklmnopqrstuvwxyz 0123456789,;=:/", max_size=30)


@given(
    tokens.filter(lambda method: method != "PRI"),
    st.text("abcdefghijklmnopqrstuvwxyz/?&=.%0123456789-_~", max_size=50),
    st.lists(st.tuples(names, values), max_size=6),
    st.integers(0, 6),
    st.sampled_from(["", " ", "\t", "  "]),
    st.lists(st.integers(1, 500), max_size=10),
)
def test_any_request(
    method: str, path: str, headers: list[tuple[str, str]], place: int, blank: str, cuts: list[int]
) -> None:
    lines = [f"{name}:{blank}{value}" for name, value in headers]
    lines.insert(place, f"Host:{blank}Www.Example.com:80{blank}")
    data = "\r\n".join([f"{method} /{path} HTTP/1.1", *lines, "", ""]).encode()
    (facts,) = play(HTTP1, cut_events([(TO_SERVER, data)], cuts)).facts
    assert facts == {
        "http.method": method,
        "http.path": f"/{path}",
        "http.version": "1.1",
        "http.host": "www.example.com",
        "http.keyword": facts["http.keyword"],
    }
