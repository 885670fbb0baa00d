"""HTTP/1 as censors read it: each limit at its edge, and what keyword filters decode."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from flow_kit import TO_CLIENT, TO_SERVER, Event, cut_events, play
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.dissect.http1 import HTTP1
from gfwemu.dissect.options import DissectOptions

CHINA = DissectOptions(
    http_header_name_limit=64, http_uri_limit=2048, http_keyword_window=1281, http_pipelined="first_only"
)
PROBE = b"GET / HTTP/1.1\r\nHost: blocked.example\r\n"


def facts(data: bytes, options: DissectOptions = CHINA) -> dict[str, object]:
    (found,) = play(HTTP1, [(TO_SERVER, data)], options).facts
    return found


def request(*headers: bytes, target: bytes = b"/") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\n" + b"".join(header + b"\r\n" for header in headers)


def test_the_probe_of_studies_needs_no_blank_line() -> None:
    assert facts(PROBE)["http.host"] == "blocked.example"


@pytest.mark.parametrize(
    ("headers", "host"),
    [
        ((b"X" * 63 + b": 1", b"Host: blocked.example"), "blocked.example"),
        ((b"X" * 64 + b": 1", b"Host: blocked.example"), None),
        ((b"X" * 64 + b" : 1", b"Host: blocked.example"), None),
        ((b"X" * 200 + b":", b"Host: blocked.example"), None),
        ((b"Host: blocked.example", b"X" * 64 + b": 1"), "blocked.example"),
        ((b"A: 1", b"X" * 64 + b": 1", b"B: 2", b"Host: blocked.example"), None),
        ((b"A: " + b"X" * 64, b"Host: blocked.example"), "blocked.example"),
        ((b"X" * 64, b"Host: blocked.example"), "blocked.example"),
    ],
)
def test_a_long_header_name_ends_the_search_for_host(headers: tuple[bytes, ...], host: str | None) -> None:
    found = facts(request(*headers))
    assert found.get("http.host") == host
    assert found["http.keyword"] == "/\nblocked.example"
    assert facts(request(*headers), DissectOptions())["http.host"] == "blocked.example"


@pytest.mark.parametrize(("before", "seen"), [(2048 - 10, True), (2048 - 9, False)])
def test_keywords_behind_the_limit_of_the_uri_are_not_seen(before: int, seen: bool) -> None:
    target = b"/" + b"a" * (before - 1) + b"forbidden!"
    found = facts(request(b"Host: www.example", target=target))
    assert ("forbidden!" in str(found["http.keyword"])) == seen
    assert found["http.path"] == target.decode(), "the path itself is whole"


@pytest.mark.parametrize(("offset", "seen"), [(1280, True), (1281, False)])
def test_a_host_value_far_behind_the_request_line_is_no_keyword(offset: int, seen: bool) -> None:
    filler = b"A: " + b"x" * (offset - len(b"A: \r\nHost: "))
    found = facts(request(filler, b"Host: blocked.example"))
    assert found["http.keyword"] == ("/\nblocked.example" if seen else "/")
    assert found["http.host"] == "blocked.example"


def test_the_sandwich_hides_from_both() -> None:
    headers = (b"X" * 64 + b": 1", b"A: " + b"x" * 1300, b"Host: blocked.example", b"B: " + b"x" * 129)
    found = facts(request(*headers) + b"\r\n")
    assert "http.host" not in found
    assert found["http.keyword"] == "/"


def hosts(events: list[Event], options: DissectOptions = CHINA) -> list[object]:
    return [message.get("http.host") for message in play(HTTP1, events, options).facts]


def test_of_pipelined_requests_the_first_alone_is_read() -> None:
    one, two, three = (b"GET / HTTP/1.1\r\nHost: %s.example\r\n\r\n" % name for name in (b"one", b"two", b"three"))
    pipelined = [(TO_SERVER, one + two + three)]
    assert hosts(pipelined) == ["one.example"]
    assert hosts(pipelined, DissectOptions()) == ["one.example", "two.example", "three.example"]
    answered = [(TO_SERVER, one + two), (TO_CLIENT, b"HTTP/1.1 200 OK\r\n\r\n"), (TO_SERVER, three)]
    assert hosts(answered) == ["one.example", "three.example"]
    posted = b"POST / HTTP/1.1\r\nHost: four.example\r\nContent-Length: 5\r\n\r\nhello"
    assert hosts([(TO_SERVER, posted + two)]) == ["four.example"]


WORD = "禁词"


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
@pytest.mark.parametrize("escaped", [True, False])
def test_keywords_in_either_encoding(encoding: str, escaped: bool) -> None:
    raw = WORD.encode(encoding)
    target = b"/?q=" + (quote(raw).encode() if escaped else raw)
    data = request(b"Host: www.example", target=target)
    assert WORD in str(facts(data)["http.keyword"])
    undecoded = facts(data, DissectOptions(http_percent_decoding=False))["http.keyword"]
    assert (WORD in str(undecoded)) == (not escaped)


def test_overlong_utf8_is_not_decoded() -> None:
    target = b"/?q=%e0%81%a1bc"  # an overlong "a"
    assert "abc" not in str(facts(request(b"Host: www.example", target=target))["http.keyword"])


STREAMS = [
    PROBE + b"X: y\r\n\r\n",
    request(b"X" * 64 + b": 1", b"Host: blocked.example") + b"\r\n" + PROBE + b"\r\n",
    request(b"A: " + b"x" * 1300, b"Host: blocked.example", target=b"/" + b"a" * 3000) + b"\r\n" + PROBE,
]


@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 5000), max_size=5))
def test_cuts_do_not_change_what_is_read(stream: bytes, cuts: list[int]) -> None:
    assert play(HTTP1, cut_events([(TO_SERVER, stream)], cuts), CHINA) == play(HTTP1, [(TO_SERVER, stream)], CHINA)


@given(
    st.lists(st.tuples(st.sampled_from([TO_SERVER, TO_CLIENT]), st.binary(max_size=60)), max_size=6),
    st.booleans(),
)
def test_any_bytes_have_one_of_three_outcomes(events: list[Event], begins_well: bool) -> None:
    first = [(TO_SERVER, PROBE)] if begins_well else []
    assert play(HTTP1, first + events, CHINA).kind in ("need_more", "reject", "confirm")
