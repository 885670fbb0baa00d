"""China era by era: which rule belongs where, who is on which list, and that every rule says how well it is known."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import yaml

from gfwemu.rules.catalogue import find_profile, profiles
from gfwemu.rules.compiled import CompiledRule, RuleSet
from gfwemu.rules.load import load_rules

DATA = Path(__file__).parent.parent / "data" / "rules"
ERAS = ("china-2013", "china-2019", "china-2021", "china-2023", "china-2025")
CHINA = sorted(name for name in profiles() if name.partition("-")[0] == "china")
GRADES = {"found", "secondary", "computed", "anecdote", "recall", "inference", "guess"}

WHEN = {
    "china-dns": "13 19 21 23 25",
    "china-dns-google": "   19 21 23 25",
    "china-dns-third": "   19 21 23 25",
    "china-dns-tcp": "   19 21 23 25",
    "china-http-host": "13 19 21 23 25",
    "china-http-keyword": "13 19 21 23 25",
    "china-tls-sni": "   19 21 23 25",
    "china-tls-sni-doh": "   19 21 23 25",
    "china-ftp": "   19 21 23 25",
    "china-smtp": "   19 21 23 25",
    "china-no-answers": "13 19 21 23 25",
    "china-no-requests": "13 19 21 23 25",
    "china-esni": "      21 23 25",
    "china-dot": "      21 23 25",
    "china-doh": "      21 23 25",
    "china-tls-proxies": "      21 23 25",
    "china-tls-backup": "      21      ",
    "china-fet": "      21      ",
    "china-syn-reset": "         23 25",
    "china-redirect-301": "         23 25",
    "china-redirect-302": "         23 25",
    "china-quic-sni": "            25",
    "china-data-reset": "            25",
}
"""The mechanisms of each era; those of active probing have tests of their own."""

_TABLE = """
google.com DHTQ          dropbox.com DHT
youtube.com DHTQ         x.com T
facebook.com DHT         twitter.com DHT
wikipedia.org DTQ        zh.wikipedia.org DHT
telegram.org DHT         t.me -
whatsapp.com HT          whatsapp.net DT
signal.org DT            torproject.org DHTQ
nytimes.com DHT          bbc.com DHT
reddit.com DHT           discord.com DT
cloudflare-dns.com TQ    dns.nextdns.io TQ
workers.dev DT           pages.dev Q
line.me DHT              kakao.com DHT
docker.com T             expressvpn.com DH
nordvpn.com DHTQ         gfw.report DT
github.com -             openai.com -
"""
MEMBERS = _TABLE.split()
"""Zohaib et al., USENIX Security 2025, overlap dataset: DNS, HTTP, TLS, QUIC."""

FIELDS = {
    "D": ("china-dns", "dns.qname"),
    "H": ("china-http-host", "http.host"),
    "T": ("china-tls-sni", "tls.sni"),
    "Q": ("china-quic-sni", "quic.sni"),
}


@cache
def rules_of(profile: str) -> RuleSet:
    return load_rules([find_profile(profile)])


def named(profile: str, name: str) -> list[CompiledRule]:
    return [rule for rule in rules_of(profile).rules if rule.name == name]


def lists(profile: str, rule: str, field: str, name: str) -> bool:
    return any(
        condition.matcher.match(name) is not None
        for one in named(profile, rule)
        for condition in one.conditions
        if condition.field == field
    )


@pytest.mark.parametrize("era", ERAS)
def test_each_era_has_its_mechanisms(era: str) -> None:
    expected = {rule for rule, years in WHEN.items() if era[-2:] in years.split()}
    found = {rule.name for rule in rules_of(era).rules if not rule.name.startswith(("china-shadowsocks", "china-tor"))}
    assert found == expected


def test_the_newest_is_china() -> None:
    newest, china = rules_of("china-2025"), rules_of("china")
    assert [rule.name for rule in newest.rules] == [rule.name for rule in china.rules]
    assert [rule.residual for rule in newest.rules] == [rule.residual for rule in china.rules]
    assert newest.boxes == china.boxes


@pytest.mark.parametrize("profile", CHINA)
def test_every_rule_says_where_it_comes_from_and_how_well_it_is_known(profile: str) -> None:
    for rule in rules_of(profile).rules:
        assert rule.cite, rule.name
        assert rule.observed, rule.name
        assert rule.evidence in GRADES, rule.name


@pytest.mark.parametrize(("name", "where"), list(zip(MEMBERS[::2], MEMBERS[1::2], strict=True)))
def test_who_is_on_which_list(name: str, where: str) -> None:
    found = {letter for letter, (rule, field) in FIELDS.items() if lists("china-2025", rule, field, name)}
    # The lab reads entries with their subdomains; the dataset holds exact names.
    if name == "zh.wikipedia.org":
        found.discard("Q")
    assert found == set(where.replace("-", ""))


def test_the_lists_of_the_injectors_hold_one_another() -> None:
    (first,), (second,), (third,) = (
        [condition.matcher for condition in rule.conditions if condition.field == "dns.qname"]
        for name in ("china-dns-google", "china-dns", "china-dns-third")
        for rule in named("china-2019", name)
    )
    names = [*MEMBERS[::2], "www.shadowvpn.com", "shadowvpn.com.x.example", "a69.mux.example", "blocked.example"]
    for name in names:
        if first.match(name) or third.match(name):
            assert second.match(name), name
    assert second.match("second.example")
    assert not third.match("second.example")
    # Injector 3's patterns, as its code has them: anchored at the start, or nowhere.
    assert third.match("shadowvpn.com.x.example")
    assert not third.match("www.shadowvpn.com")
    assert third.match("a69.mux.example")


@pytest.mark.parametrize(
    ("era", "seconds"), [("china-2019", 60), ("china-2021", 60), ("china-2023", 180), ("china-2025", 180)]
)
def test_how_long_tls_names_are_remembered(era: str, seconds: int) -> None:
    for rule in named(era, "china-tls-sni"):
        assert rule.residual is not None
        assert (rule.residual.seconds.low, rule.residual.seconds.high) == (seconds, seconds)


@pytest.mark.parametrize(
    ("era", "key", "seconds"), [("china-2013", "2tuple", 43_200), ("china-2017", "2tuple", 90), ("china", "3tuple", 90)]
)
def test_how_long_http_hosts_are_remembered(era: str, key: str, seconds: int) -> None:
    (rule,) = named(era, "china-http-host")
    assert rule.residual is not None
    assert (rule.residual.key, rule.residual.seconds.high) == (key, seconds)


@pytest.mark.parametrize("era", ERAS[1:])
def test_each_protocol_has_its_box(era: str) -> None:
    boxes = {box.name: box.options for box in rules_of(era).boxes}
    assert {"", "dns", "dns-tcp", "http", "https", "ftp", "smtp"} <= set(boxes)
    assert ("backup" in boxes) == (era == "china-2021")
    # Bock et al., SIGCOMM 2020: what tells the boxes apart.
    tcp = {name: options.tcp for name, options in boxes.items()}
    assert tcp["https"] != tcp["http"]
    assert tcp["ftp"] != tcp["http"]


def test_what_is_read_differs_between_eras() -> None:
    def box(era: str, name: str) -> object:
        (found,) = (one.options for one in rules_of(era).boxes if one.name == name)
        return found

    assert box("china-2019", "https") != box("china-2023", "https")
    assert box("china-2019", "http") != box("china-2021", "http")
    assert box("china-2023", "dns-tcp") != box("china-2025", "dns-tcp")
    assert box("china-2025", "https") != box("china-cernet", "https")


def test_henan_stands_first_in_its_profile_and_knows_nothing_of_handshakes() -> None:
    names = [box.name for box in rules_of("china-henan").boxes]
    assert names.index("henan") < names.index("https")
    (henan,) = (box for box in rules_of("china-henan").boxes if box.name == "henan")
    assert henan.options.tcp.create_on == "any"


def test_the_probed_lengths_are_those_that_are_tested() -> None:
    """The engine's tests hold the table of lengths and entropies to its rates; the profile has the same table."""
    tested = yaml.safe_load((DATA / "china-shadowsocks.yaml").read_text())["rules"]
    shipped = yaml.safe_load((find_profile("china").parent / "china" / "probing.yaml").read_text())["rules"]
    table = {"china-" + rule["name"]: (rule["match"], rule["probability"]) for rule in tested}
    assert len(table) == 14
    assert {
        rule["name"]: (rule["match"], rule["probability"]) for rule in shipped if rule["name"] != "china-tor"
    } == table
    assert set(table) <= {rule.name for rule in rules_of("china-2019").rules}
    assert not set(table) & {rule.name for rule in rules_of("china-2021").rules}
