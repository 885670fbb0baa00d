"""The shipped cases: each passes, each notices when its rule is gone, and each rule has one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from gfwemu.conformance.cases import Case, eras_of_cases, load_cases
from gfwemu.conformance.replay import replay_cases
from gfwemu.conformance.result import FAIL, GAP, PASS, Result
from gfwemu.conformance.without import load_without
from gfwemu.rules.catalogue import find_profile, profiles
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.load import load_rules

ERAS = [era for era in eras_of_cases() if era in profiles()]
DEAF = """
version: 1
description: Loses whatever carries data.
rules:
  - {name: all, match: {payload.length: ">=1"}, action: drop}
"""


SAME = {"china": "china-2025"}
"""Eras with the rules of another: what holds there holds here."""
ENOUGH = 60
"""Repetitions that show the loss of a rule."""
RARE = 0.01

DIFFERENT = [era for era in ERAS if era not in SAME]
slow_eras = pytest.mark.parametrize("era", [pytest.param(era, marks=pytest.mark.slow) for era in DIFFERENT])


@cache
def ruleset(era: str) -> RuleSet:
    return load_rules([find_profile(era)])


@cache
def rules_of(era: str) -> tuple[str, ...]:
    return tuple(rule.name for rule in ruleset(era).rules)


@cache
def first_of() -> dict[str, list[Case]]:
    """Each case in the first of its eras."""
    seen: set[str] = set()
    found = {}
    for era in DIFFERENT:
        found[era] = [case for case in load_cases(era) if case.replayed and case.id not in seen]
        seen.update(case.id for case in found[era])
    return found


@cache
def first_results(era: str) -> list[Result]:
    return replay_cases(ruleset(era), first_of()[era])


@cache
def results_of(era: str) -> list[Result]:
    first = {case.id for case in first_of()[era]}
    others = [case for case in load_cases(era) if case.replayed and case.id not in first]
    return [*first_results(era), *replay_cases(ruleset(era), others)]


def told(results: list[Result]) -> list[str]:
    return [
        f"{one.case.id} at {one.case.place}: {one.verdict}: {'; '.join(one.wrong) or one.observed}" for one in results
    ]


def test_there_are_cases_for_china() -> None:
    assert "china" in ERAS
    assert len(load_cases("china")) >= 200


@pytest.mark.parametrize(("era", "other"), SAME.items())
def test_an_era_is_the_same_as_another(era: str, other: str) -> None:
    one, another = ruleset(era), ruleset(other)
    assert [str(rule.place) for rule in one.rules] == [str(rule.place) for rule in another.rules]
    assert (one.options, one.boxes) == (another.options, another.boxes)
    assert [case.id for case in load_cases(era)] == [case.id for case in load_cases(other)]


@pytest.mark.parametrize("era", DIFFERENT)
def test_every_case_passes_in_one_era(era: str) -> None:
    """Each case once, in the first of its eras; that of the others takes longer."""
    assert told([one for one in first_results(era) if one.verdict not in (PASS, GAP)]) == []


@slow_eras
def test_every_case_passes(era: str) -> None:
    assert told([one for one in results_of(era) if one.verdict not in (PASS, GAP)]) == []


@slow_eras
def test_no_gap_is_closed_already(era: str) -> None:
    assert not [one.case.id for one in results_of(era) if one.case.gap and one.verdict == PASS]


@pytest.mark.parametrize("era", ERAS)
def test_every_case_names_rules_of_its_profile(era: str) -> None:
    unknown = {(case.id, rule) for case in load_cases(era) for rule in case.rules if rule not in rules_of(era)}
    assert not unknown


def test_every_rule_has_a_case() -> None:
    """In one of the eras that have the rule: variants include an era whole.

    That a rule acts once in more than 100 times would take thousands of repetitions to see; there, it suffices that a
    case says how rare it is.
    """
    cases = [case for era in DIFFERENT for case in load_cases(era)]
    shown = {rule for case in cases if not case.must_not for rule in case.rules}
    told_rare = {rule for case in cases if case.must_not and case.rate for rule in case.rules}
    rare = {rule.name for era in DIFFERENT for rule in ruleset(era).rules if rule.probability < RARE} & told_rare
    assert sorted({rule for era in DIFFERENT for rule in rules_of(era)} - shown - rare) == []


@slow_eras
def test_every_case_fails_without_its_rule(era: str) -> None:
    """Each case once, in the first of its eras, for each rule that it names."""
    unmoved = []
    demanding = [replace(case, repeat=min(case.repeat, ENOUGH)) for case in first_of()[era] if not case.must_not]
    for rule in rules_of(era):
        cases = [case for case in demanding if rule in case.rules and not case.gap]
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
    cases = [
        replace(case, repeat=min(case.repeat, ENOUGH)) for case in first_of()[era] if case.must_not and not case.gap
    ]
    assert not [one.case.id for one in replay_cases(load_rules([path]), cases) if one.verdict == PASS]


def test_the_document_is_up_to_date() -> None:
    """If not: gfwemu conformance --write docs/conformance.md."""
    path = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
    sections = {part.split("\n", 1)[0]: part for part in path.read_text().split("\n## ")}
    missing = {
        (era, case.id) for era in ERAS for case in load_cases(era) if f"\n| {case.id} |" not in sections.get(era, "")
    }
    assert not missing
