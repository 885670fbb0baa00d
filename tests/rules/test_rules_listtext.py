"""Lists are read in blocks; that must not be seen: each line means what it means alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule_files import load_text, problems_of

from gfwemu.rules.listformats import FORMATS, ListReading
from gfwemu.rules.listtext import ListText
from gfwemu.rules.networks import _checked_network as checked_network
from gfwemu.rules.networks import parse_network

WORDS = "a,b-c,_x,-,9,192.0.2.1,xn--p1ai,A,é,.,..,example,test,localhost,*.,full:,domain:,keyword:,||,@@,|,/,0x1"
SIGNS = "address=/,server=/,#,!,@cn,include:, , # x,0.0.0.0 ,::1 ,\t,\r,\x0b,\x85,\u2028"
PARTS = st.sampled_from([*WORDS.split(","), *SIGNS.split(","), "a" * 31, "a" * 64])
LINES = st.lists(PARTS, max_size=5).map("".join)
NAMED_FORMATS = [name for name, form in FORMATS.items() if form.plain is not None]


def read_by_line(form: str, text: str) -> tuple[ListReading, list[tuple[int, str]]]:
    reading, problems = ListReading(), []
    one = FORMATS[form]
    for place, line in ListText(text, "list", one.comments, one.inline_comments).lines():
        try:
            one.parse(line, reading)
        except ValueError as error:
            problems.append((place.line, str(error)))
    return reading, problems


def read_in_blocks(form: str, text: str) -> tuple[ListReading, list[tuple[int, str]]]:
    reading, problems = ListReading(), []
    one = FORMATS[form]
    assert one.plain is not None
    lines = ListText(text, "list", one.comments, one.inline_comments)
    for place, line in lines.other_lines(one.plain.pattern, getattr(reading.builder, one.plain.into).update):
        try:
            one.parse(line, reading)
        except ValueError as error:
            problems.append((place.line, str(error)))
    return reading, problems


@pytest.mark.parametrize("form", NAMED_FORMATS)
@given(lines=st.lists(LINES, max_size=6))
def test_blocks_read_as_lines_do(form: str, lines: list[str]) -> None:
    text = "\n".join(lines)
    assert read_in_blocks(form, text) == read_by_line(form, text)


@pytest.mark.parametrize(
    ("form", "line", "kind", "name"),
    [
        ("domains", "{}", "suffixes", "example"),
        ("hosts", "0.0.0.0 {}", "full", "www.example"),
        ("dnsmasq", "server=/{}/192.0.2.53", "suffixes", "www.example"),
        ("gfwlist", "||{}", "suffixes", "www.example"),
        ("v2fly", "domain:{}", "suffixes", "www.example"),
    ],
)
def test_ordinary_lines_need_no_look(form: str, line: str, kind: str, name: str) -> None:
    found: list[str] = []
    one = FORMATS[form]
    assert one.plain is not None
    text = ListText(line.format(name), "list", one.comments, one.inline_comments)
    assert list(text.other_lines(one.plain.pattern, found.extend)) == []
    assert found == [name]
    assert one.plain.into == kind


@pytest.mark.parametrize("odd", [0, 1, 4999, 5000, 11_111, 49_999])
def test_odd_line_among_many_has_its_number(tmp_path: Path, odd: int) -> None:
    lines = [f"name{number}.example" for number in range(50_000)]
    lines[odd] = "not a name"
    (tmp_path / "names").write_text("\n".join(lines) + "\n")
    text = "version: 1\nlists: {n: {file: names}}\nrules: [{name: r, match: {tls.sni: '@n'}, action: drop}]\n"
    assert problems_of(tmp_path, text) == [f"{odd + 1} 'not a name' is not a domain name"]


def test_lines_that_end_as_on_windows_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(b"# head\r\na.example\r\nb.example # tail\r\n\r\nfull:c.example\r\n")
    text = "version: 1\nlists: {n: {file: names}}\nrules: [{name: r, match: {tls.sni: '@n'}, action: drop}]\n"
    assert dict(load_text(tmp_path, text).lists) == {"n": 3}


@given(
    st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]{1,3})?", fullmatch=True)
    | st.ip_addresses(v=6).map(str)
    | st.builds("{}/{}".format, st.ip_addresses(), st.integers(0, 130))
    | st.text("0123456789abcdef:./% \0é", max_size=20)
)
def test_quick_reading_of_a_network_is_the_standard_librarys(text: str) -> None:
    try:
        expected: object = checked_network(text.strip())
    except ValueError as error:
        expected = str(error)
    try:
        found: object = parse_network(text)
    except ValueError as error:
        found = str(error)
    assert found == expected
