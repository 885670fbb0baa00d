"""The shipped cases: each passes, each notices when its rule is gone, and each rule has one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from gfwemu.conformance.cases import Case, eras_of_cases, load_cases
from gfwemu.conformance.replay import replay_cases
from gfwemu.conformance.result import FAIL, GAP, PASS, Result
from gfwemu.conformance.without import load_without
from gfwemu.rules.catalogue import find_profile, profiles
from gfwemu.rules.load import load_rules

ERAS = [era for era in eras_of_cases() if era in profiles()]
DEAF = """
version: 1
description: Loses whatever carries data.
rules:
  - {name: all, match: {payload.length: ">=1"}, action: drop}
"""


slow_eras = pytest.mark.parametrize("era", [pytest.param(era, marks=pytest.mark.slow) for era in ERAS])


@cache
def rules_of(era: str) -> tuple[str, ...]:
    return tuple(rule.name for rule in load_rules([find_profile(era)]).rules)


@cache
def results_of(era: str) -> dict[str, Result]:
    cases = [case for case in load_cases(era) if case.replayed]
    return {one.case.id: one for one in replay_cases(load_rules([find_profile(era)]), cases)}


def told(results: list[Result]) -> list[str]:
    return [
        f"{one.case.id} at {one.case.place}: {one.verdict}: {'; '.join(one.wrong) or one.observed}" for one in results
    ]


def demanding(era: str) -> list[Case]:
    return [case for case in load_cases(era) if not case.must_not]


def test_there_are_cases_for_china() -> None:
    assert "china" in ERAS
    assert len(load_cases("china")) >= 40


def test_every_case_passes_in_one_era() -> None:
    """Each case once, in the first of its eras; that of the others takes longer."""
    seen: set[str] = set()
    wrong = []
    for era in ERAS:
        cases = [case for case in load_cases(era) if case.replayed and case.id not in seen]
        seen.update(case.id for case in cases)
        results = replay_cases(load_rules([find_profile(era)]), cases)
        wrong += [one for one in results if one.verdict not in (PASS, GAP)]
    assert told(wrong) == []


@slow_eras
def test_every_case_passes(era: str) -> None:
    wrong = [one for one in results_of(era).values() if one.verdict not in (PASS, GAP)]
    assert told(wrong) == []


@slow_eras
def test_no_gap_is_closed_already(era: str) -> None:
    assert not [one.case.id for one in results_of(era).values() if one.case.gap and one.verdict == PASS]


@pytest.mark.parametrize("era", ERAS)
def test_every_case_names_rules_of_its_profile(era: str) -> None:
    unknown = {(case.id, rule) for case in load_cases(era) for rule in case.rules if rule not in rules_of(era)}
    assert not unknown


def test_every_rule_has_a_case() -> None:
    """In one of the eras that have the rule: variants include an era whole."""
    covered = {rule for era in ERAS for case in demanding(era) for rule in case.rules}
    bare = {(era, rule) for era in ERAS for rule in rules_of(era) if rule not in covered}
    assert sorted(bare) == []


@slow_eras
def test_every_case_fails_without_its_rule(era: str) -> None:
    unmoved = []
    for rule in rules_of(era):
        cases = [case for case in demanding(era) if rule in case.rules and case.replayed and not case.gap]
        if not cases:
            continue
        with load_without(find_profile(era), [rule]) as reduced:
            unmoved += [
                f"{one.case.id} without {rule}" for one in replay_cases(reduced.rules, cases) if one.verdict != FAIL
            ]
    assert not unmoved


@slow_eras
def test_what_must_not_be_touched_would_be_noticed(era: str, tmp_path: Path) -> None:
    path = tmp_path / "deaf.yaml"
    path.write_text(DEAF)
    cases = [case for case in load_cases(era) if case.must_not and case.replayed and not case.gap]
    assert not [one.case.id for one in replay_cases(load_rules([path]), cases) if one.verdict == PASS]


def test_the_document_is_up_to_date() -> None:
    """If not: gfwemu conformance --write docs/conformance.md."""
    path = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
    sections = {part.split("\n", 1)[0]: part for part in path.read_text().split("\n## ")}
    missing = {
        (era, case.id) for era in ERAS for case in load_cases(era) if f"\n| {case.id} |" not in sections.get(era, "")
    }
    assert not missing
