"""`replace` and `evidence`: an includer's rule in the place of an included one, and how well a rule is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from gfwemu.cli.catalogue import show
from gfwemu.errors import RulesError
from gfwemu.rules.load import load_rules

OLD = """
version: 1
rules:
  - {name: first, match: {tls.sni: a.example}, action: alert}
  - {name: second, match: {tls.sni: b.example}, action: alert}
"""
NEW = """
version: 1
include: [old.yaml]
replace: [%s]
rules:
  - {name: first, match: {tls.sni: c.example}, action: reset, evidence: recall, guessed: [ttl]}
"""


def write(tmp_path: Path, replaced: str) -> Path:
    (tmp_path / "old.yaml").write_text(OLD)
    path = tmp_path / "new.yaml"
    path.write_text(NEW % replaced)
    return path


def test_the_last_rule_of_a_name_takes_the_place_of_the_first(tmp_path: Path) -> None:
    rules = load_rules([write(tmp_path, "first")]).rules
    assert [(rule.name, rule.action_name) for rule in rules] == [("first", "reset"), ("second", "alert")]
    assert (rules[0].evidence, rules[0].guessed) == ("recall", ("ttl",))
    assert (rules[1].evidence, rules[1].guessed) == ("", ())


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ("first, secnd", "'replace': no two rules are named 'secnd'; did you mean 'second'?"),
        ("first, second", "'replace': no two rules are named 'second'; the last of several rules of that name takes"),
        ("", "a rule named 'first' is already at"),
    ],
)
def test_replace_tells_what_is_wrong(tmp_path: Path, replaced: str, message: str) -> None:
    with pytest.raises(RulesError) as caught:
        load_rules([write(tmp_path, replaced)])
    assert message in str(caught.value)


def test_evidence_is_one_of_the_grades(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("version: 1\nrules: [{name: a, match: {tls.sni: a.example}, action: alert, evidence: certain}]\n")
    with pytest.raises(RulesError) as caught:
        load_rules([path])
    assert "certain" in str(caught.value)


def test_show_tells_how_well_each_rule_is_known(tmp_path: Path) -> None:
    shown = CliRunner().invoke(show, [str(write(tmp_path, "first"))]).stdout
    assert ["#", "first", "reset", "recall", "new.yaml", "ttl"] in [line.split() for line in shown.splitlines()]
    assert "# second" in shown
    (tmp_path / "plain.yaml").write_text(OLD)
    assert "# All rules" not in CliRunner().invoke(show, [str(tmp_path / "plain.yaml")]).stdout


def test_disable_takes_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(OLD)
    path = tmp_path / "new.yaml"
    path.write_text("version: 1\ninclude: [old.yaml]\ndisable: [fir*]\n")
    assert [rule.name for rule in load_rules([path]).rules] == ["second"]
    path.write_text("version: 1\ninclude: [old.yaml]\ndisable: [thi*]\n")
    with pytest.raises(RulesError, match=r"no included rule is named 'thi\*'"):
        load_rules([path])
