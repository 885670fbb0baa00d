"""The shipped profiles: right, cited, and findable."""

from __future__ import annotations

from pathlib import Path

import pytest

from gfwemu.errors import UsageError
from gfwemu.rules.catalogue import find_profile, profiles
from gfwemu.rules.load import load_rules

NAMES = sorted(profiles())


def test_the_promised_profiles_are_there() -> None:
    promised = {
        "open", "sni-reset", "sni-drop", "ip-blacklist", "dns-poison", "dns-nxdomain", "http-blockpage",
        "http-keyword-reset", "quic-sni-drop", "throttle-domain", "openvpn-block", "wireguard-block", "freeze-16kb",
        "china", "russia",
    }  # fmt: skip
    assert promised <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_is_right_and_every_rule_is_cited(name: str) -> None:
    rules = load_rules([find_profile(name)])
    assert rules.description
    for rule in rules.rules:
        assert rule.cite, rule.name
        assert rule.observed, rule.name
    if name != "open":
        assert rules.rules


@pytest.mark.parametrize("name", NAMES)
def test_can_be_included_beside_rules_of_ones_own(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    own = "{name: mine, match: {tls.sni: mine.example}, action: alert}"
    path.write_text(f"version: 1\ninclude: [{name}]\nrules: [{own}]\n")
    rules = load_rules([path]).rules
    assert [rule.name for rule in rules if not rule.box][-1] == "mine"


def test_every_profile_blocks_the_same_example_names() -> None:
    china = load_rules([find_profile("china")])
    blocked = {
        condition.field
        for rule in china.rules
        for condition in rule.conditions
        if condition.matcher.match("www.blocked.example") is not None
    }
    assert {"dns.qname", "http.host", "tls.sni", "quic.sni"} <= blocked


def test_a_path_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_profile("china").name == "china.yaml"
    Path("china").write_text("version: 1\n")
    assert find_profile("china") == Path("china")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chima", "there is no profile 'chima'; did you mean 'china'?"),
        ("sni-reset.yaml", "there is no rule file 'sni-reset.yaml'; did you mean 'sni-reset'?"),
        ("zzz", "there is no profile 'zzz'; `gfwemu list profiles` shows the profiles"),
        ("a\0b", "there is no profile 'a\\x00b'"),
        ("x" * 5000, "is neither a file nor a profile"),
    ],
)
def test_unknown_profiles(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_profile(name)
    assert message in str(caught.value)
