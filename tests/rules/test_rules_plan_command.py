"""`gfwemu plan`, as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gfwemu.cli.plan import plan
from gfwemu.errors import UsageError
from gfwemu.rules.catalogue import profiles


def told(*arguments: str, columns: int = 120) -> str:
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(plan, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_profile_in_words_fits_one_screen() -> None:
    text = told("sni-reset")
    assert len(text.splitlines()) <= 24
    assert "SYN, FIN, RST, the client's payload" in text
    assert "icmp, udp, icmpv6, other" in text


def test_even_a_large_profile_fits_one_screen_and_tells_first_what_costs_most() -> None:
    lines = told("china", columns=80).splitlines()
    assert len(lines) <= 40
    assert lines[1] == "costs, dearest first"
    long = told("china", "--all", columns=80)
    assert len(long.splitlines()) > len(lines)
    assert " more)" in " ".join(lines)
    assert " more)" not in long


def test_the_rule_that_forces_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("version: 1\nrules:\n  - {name: count, match: {count.packets: '>9'}, action: drop}\n")
    assert "count: counts every packet (count.packets)" in " ".join(told(str(path)).split())


@pytest.mark.parametrize("name", sorted(profiles()))
def test_every_profile_is_explained(name: str) -> None:
    found = json.loads(told(name, "--json"))
    assert set(found) == {"rules", "offload", "fail_open", "spared", "queued", "kernel", "residual", "costs"}
    assert all(line["what"] for part in ("queued", "kernel", "residual", "costs") for line in found[part])
    assert "chain between {" in told(name, "--table")


def test_two_forms_at_once_are_refused() -> None:
    result = CliRunner().invoke(plan, ("sni-reset", "--json", "--table"))
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == "say either --json or --table"
