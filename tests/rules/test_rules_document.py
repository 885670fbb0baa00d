"""docs/rules.md: its tables are those of the code, and its examples are right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from gfwemu.cli.catalogue import list_
from gfwemu.rules.load import load_rules

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "rules.md"


@pytest.mark.parametrize("what", ["fields", "actions"])
def test_tables_are_current(what: str) -> None:
    found = re.search(rf"<!-- {what} -->\n(.*)<!-- /{what} -->", DOCUMENT.read_text(), re.DOTALL)
    assert found
    assert found[1] == CliRunner().invoke(list_, [what, "--markdown"]).stdout, f"gfwemu list {what} --markdown"


def test_the_first_example_is_a_rule_file(tmp_path: Path) -> None:
    (tmp_path / "news.txt").write_text("news.example\n")
    path = tmp_path / "my.yaml"
    path.write_text(re.findall(r"```yaml\n(version.*?)```", DOCUMENT.read_text(), re.DOTALL)[0])
    assert [rule.name for rule in load_rules([path]).rules] == ["no-news", "slow-video"]
