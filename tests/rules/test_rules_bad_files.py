"""Each file in tests/data/bad_rules says itself what is wrong with it: `#! [FILE:]LINE message`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gfwemu.errors import RulesError
from gfwemu.rules.load import load_rules

BAD_RULES = Path(__file__).parent.parent / "data" / "bad_rules"
EXPECTED = re.compile(r"#! (?:([^ :]+):)?([0-9]+) (.+)")


def expected_of(path: Path) -> list[str]:
    found = [EXPECTED.fullmatch(line) for line in path.read_text().splitlines() if line.startswith("#!")]
    assert found, f"{path.name} says nothing about what is wrong with it"
    return sorted(f"{one[1] or path.name}:{one[2]} {one[3]}" for one in found if one)


@pytest.mark.parametrize("name", sorted(path.name for path in BAD_RULES.glob("*.yaml")))
def test_says_what_it_expects(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD_RULES)
    with pytest.raises(RulesError) as caught:
        load_rules([Path(name)])
    found = sorted(f"{problem.place.file}:{problem.place.line} {problem.message}" for problem in caught.value.problems)
    assert found == expected_of(BAD_RULES / name)
    assert caught.value.exit_code == 3


def test_every_problem_has_a_column_where_yaml_gives_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD_RULES)
    with pytest.raises(RulesError) as caught:
        load_rules([Path("unknown_keys.yaml")])
    assert "unknown_keys.yaml:5:19: unknown key 'snl'; did you mean 'sni'?" in str(caught.value).splitlines()


def test_problems_of_all_files_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD_RULES)
    with pytest.raises(RulesError) as caught:
        load_rules([Path("alias.yaml"), Path("tab.yaml"), Path("subscribers.yaml")])
    assert {problem.place.file for problem in caught.value.problems} == {"alias.yaml", "tab.yaml", "subscribers.yaml"}
