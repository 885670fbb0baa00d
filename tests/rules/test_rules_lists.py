"""Lists in every format: what they match, by which entry, and what they cost."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdb_writer import mmdb
from rule_files import load_text, matched, problems_of

from gfwemu.model import address_bytes
from gfwemu.rules.load import load

RULES = """
version: 1
lists:
  names: {{file: {file}, format: {form}{extra}}}
rules:
  - {{name: one, match: {{{field}: "@names"}}, action: drop}}
"""


def rules_of(file: str, form: str, *, field: str = "tls.sni", extra: str = "") -> str:
    return RULES.format(file=file, form=form, field=field, extra=extra)


DNSMASQ = """
# from a published list
address=/example.com/also.example/192.0.2.1
server=/.dotted.example/1.1.1.1
ipset=/*.star.example/blocked
local=/local.example/
"""
V2FLY = """
include:other
domain:example.com @cn
plain.example
full:full.example @ads @cn  # comment
keyword:casino
regexp:^ads[0-9]+\\.
"""
GFWLIST = """[AutoProxy 0.2.9]
! a comment
||example.com
|https://exact.example/
.dotted.example
plain.example
@@||good.example.com
/^https?:\\/\\/([^\\/]+\\.)*google\\.(ac|ad)\\/.*/
||path.example/only/this
q=keyword
%E6%B3%95
"""


@pytest.mark.parametrize(
    ("form", "text", "hits", "misses"),
    [
        ("domains", "a.example\n*.b.example # c\n\nfull:c.example\n",
         {"www.a.example": "a.example", "x.b.example": "*.b.example", "c.example": "full:c.example"},
         ["b.example", "x.c.example"]),
        ("hosts", "0.0.0.0 a.example b.example\n::1 localhost ip6-loopback\n127.0.0.1 c.example#x\n"
                  .replace("#x", " # x"),
         {"a.example": "full:a.example", "b.example": "full:b.example", "c.example": "full:c.example"},
         ["www.a.example", "localhost"]),
        ("dnsmasq", DNSMASQ,
         {"www.example.com": "example.com", "also.example": "also.example", "a.dotted.example": "dotted.example",
          "a.star.example": "*.star.example", "local.example": "local.example"},
         ["star.example", "192.0.2.1"]),
        ("v2fly", V2FLY,
         {"www.example.com": "example.com", "plain.example": "plain.example", "full.example": "full:full.example",
          "mycasino.org": "keyword:casino", "ads7.org": "regexp:^ads[0-9]+\\.", "www.other.example": "other.example"},
         ["www.full.example", "ads.org"]),
        ("gfwlist", GFWLIST,
         {"www.example.com": "example.com", "exact.example": "full:exact.example", "a.dotted.example": "dotted.example",
          "plain.example": "plain.example", "www.google.ac": "/^https?://([^/]+\\.)*google\\.(ac|ad)/.*/"},
         ["good.example.com", "www.good.example.com", "path.example", "google.com", "sub.exact.example"]),
        ("regex", "# a comment\n^ads[0-9]+\\.\ntracker$\n",
         {"ads1.example": "regexp:^ads[0-9]+\\.", "my.tracker": "regexp:tracker$"}, ["ads.example"]),
    ],
)  # fmt: skip
def test_formats(tmp_path: Path, form: str, text: str, hits: dict[str, str], misses: list[str]) -> None:
    (tmp_path / "names").write_text(text)
    (tmp_path / "other").write_text("other.example\ninclude:names\n")
    rules = load_text(tmp_path, rules_of("names", form))
    for name, entry in hits.items():
        assert matched(rules, tls__sni=name) == [f"{entry} from @names"]
    for name in misses:
        assert matched(rules, tls__sni=name) is None


def test_a_gfwlist_in_base64_is_the_same_and_says_what_it_skips(tmp_path: Path) -> None:
    encoded = base64.encodebytes(GFWLIST.encode())
    (tmp_path / "names").write_bytes(encoded)
    path = tmp_path / "rules.yaml"
    path.write_text(rules_of("names", "gfwlist"))
    loaded = load([path])
    assert matched(loaded.rules, tls__sni="www.example.com") == ["example.com from @names"]
    assert [(one.name, one.size, one.skipped) for one in loaded.lists] == [("names", 5, 3)]


def test_attributes_choose_entries_of_a_v2fly_list(tmp_path: Path) -> None:
    (tmp_path / "names").write_text(V2FLY)
    (tmp_path / "other").write_text("other.example\nmarked.example @cn\n")
    rules = load_text(tmp_path, rules_of("names", "v2fly", extra=", attributes: ['@cn']"))
    for name in ("www.example.com", "full.example", "marked.example"):
        assert matched(rules, tls__sni=name) is not None
    for name in ("plain.example", "other.example", "mycasino.org"):
        assert matched(rules, tls__sni=name) is None


def test_networks(tmp_path: Path) -> None:
    (tmp_path / "nets").write_text("# comment\n203.0.113.0/24  # here, too\n2001:db8::/32\n198.51.100.7\n")
    rules = load_text(tmp_path, rules_of("nets", "cidr", field="ip.server"))
    for address, entry in {
        "203.0.113.255": "203.0.113.0/24",
        "2001:db8:ffff::1": "2001:db8::/32",
        "198.51.100.7": "198.51.100.7/32",
    }.items():
        assert matched(rules, ip__server=address_bytes(address)) == [f"{entry} from @names"]
    assert matched(rules, ip__server=address_bytes("203.0.114.0")) is None


def test_countries_of_a_maxmind_database(tmp_path: Path) -> None:
    networks = {"198.51.100.0/24": "RU", "203.0.113.128/25": "CN", "2001:db8::/32": "RU", "192.0.2.0/24": "US"}
    (tmp_path / "geo.mmdb").write_bytes(mmdb(networks))
    extra = ", country: [ru, CN]"
    rules = load_text(tmp_path, rules_of("geo.mmdb", "mmdb", field="ip.server", extra=extra))
    for address, entry in {
        "198.51.100.9": "198.51.100.0/24",
        "203.0.113.200": "203.0.113.128/25",
        "2001:db8::1": "2001:db8::/32",
    }.items():
        assert matched(rules, ip__server=address_bytes(address)) == [f"{entry} from @names"]
    for address in ("192.0.2.1", "203.0.113.1", "2001:db9::1"):
        assert matched(rules, ip__server=address_bytes(address)) is None


def test_a_country_that_the_database_does_not_know_makes_an_empty_list(tmp_path: Path) -> None:
    (tmp_path / "geo.mmdb").write_bytes(mmdb({"198.51.100.0/24": "RU"}))
    text = rules_of("geo.mmdb", "mmdb", field="ip.server", extra=", country: [XX]")
    assert problems_of(tmp_path, text) == ["6 the list '@names' is empty; fill it or take the rule out"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 600))
def test_a_damaged_database_gives_no_traceback(tmp_path: Path, flips: list[tuple[int, int]], end: int) -> None:
    data = bytearray(mmdb({"198.51.100.0/24": "RU", "192.0.2.0/24": "US"}))
    for at, byte in flips:
        data[at % len(data)] = byte
    (tmp_path / "geo.mmdb").write_bytes(data[: max(end, 100)])
    text = rules_of("geo.mmdb", "mmdb", field="ip.server", extra=", country: [RU]")
    for problem in problems_of(tmp_path, text):
        assert "is not a MaxMind database" in problem or "is empty" in problem


def test_texts_under_operators(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("# comment\nultrasurf\ntwo words\n#not a comment inline\n")
    text = rules_of("words", "text", field="http.keyword").replace('"@names"', '{contains: "@names"}')
    rules = load_text(tmp_path, text)
    assert matched(rules, http__keyword="/?q=ultrasurf") == ["contains:ultrasurf from @names"]
    assert matched(rules, http__keyword="/?q=two words") == ["contains:two words from @names"]
    assert matched(rules, http__keyword="/?q=ultra") is None


def test_many_names_match_in_constant_time(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("".join(f"name{number}.example\n" for number in range(200_000)))
    rules = load_text(tmp_path, rules_of("names", "domains"))
    matcher = rules.rules[0].conditions[0].matcher
    start = time.perf_counter()
    for _ in range(1000):
        assert matcher.match("www.name199999.example") == "name199999.example from @names"
        assert matcher.match("www.name.example") is None
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("regex", ["(a+)+$", "(a|a)*b", "(.*)*x", "^(([a-z])+.)+[A-Z]([a-z])+$", ".*.*.*.*.*.*x"])
def test_no_expression_hangs(tmp_path: Path, regex: str) -> None:
    text = f"version: 1\nrules: [{{name: one, match: {{http.path: {{regex: '{regex}'}}}}, action: drop}}]\n"
    rules = load_text(tmp_path, text)
    matcher = rules.rules[0].conditions[0].matcher
    start = time.perf_counter()
    matcher.match("a" * 5000 + "!")
    assert time.perf_counter() - start < 1.0


def test_a_list_of_garbage_is_not_told_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("not a name\n" * 1000)
    found = problems_of(tmp_path, rules_of("names", "domains"))
    assert len(found) == 21
    assert found[-1] == "21 ... and more like these: is the list's format right?"
