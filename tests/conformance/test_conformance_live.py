"""The cases with real packets: all of the newest era, some of the others, and some that must notice a missing rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from insertion_packets import IGNORED, SHAPES

from gfwemu.conformance.cases import choose, load_cases
from gfwemu.conformance.live import play_live
from gfwemu.conformance.result import FAIL, GAP, INCONCLUSIVE, PASS
from gfwemu.conformance.without import load_without
from gfwemu.rules.catalogue import find_profile

PROFILE = "china"
SAMPLE = ["tls-three-injectors", "quic-dropped", "dns-two-injectors", "tls-program"]

SOME = 12
"""So many of the cases of another era that the newest does not have."""
LONG = 200.0
"""Seconds of the censor's clock."""

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.needs("curl", "dig")]


def test_every_case_passes_in_a_lab() -> None:
    cases = [case for case in load_cases(PROFILE) if case.live]
    results = play_live(find_profile(PROFILE), cases, time_scale=10, jobs=24, on_result=lambda _: None)
    wrong = [f"{one.case.id}: {'; '.join(one.wrong)}" for one in results if one.verdict == FAIL]
    assert wrong == []
    # A busy machine may spoil a few, and then says so.
    conclusive = [one for one in results if one.verdict in (PASS, GAP)]
    spoilt = [f"{one.case.id}: {one.observed}" for one in results if one.verdict == INCONCLUSIVE]
    assert len(conclusive) >= 0.9 * len(cases), spoilt


@pytest.mark.parametrize("era", ["china-2013", "china-2019", "china-2021", "china-henan"])
def test_some_cases_of_other_eras_pass_in_a_lab(era: str) -> None:
    known = {case.id for case in load_cases(PROFILE)}
    own = [case for case in load_cases(era) if case.live and case.id not in known and case.repeat == 1]
    brief = [case for case in own if sum((step.at or 0.0) + (step.wait or 0.0) for step in case.steps) < LONG]
    cases = brief[:: max(1, len(brief) // SOME)]
    assert len(cases) >= SOME
    results = play_live(find_profile(era), cases, time_scale=10, jobs=24, on_result=lambda _: None)
    assert [f"{one.case.id}: {'; '.join(one.wrong)}" for one in results if one.verdict == FAIL] == []
    spoilt = [f"{one.case.id}: {one.observed}" for one in results if one.verdict == INCONCLUSIVE]
    assert len(spoilt) <= SOME / 4, spoilt


def test_cases_notice_in_a_lab_that_their_rules_are_gone() -> None:
    cases = choose(load_cases(PROFILE), SAMPLE)
    rules = sorted({rule for case in cases for rule in case.rules})
    with load_without(find_profile(PROFILE), rules) as reduced:
        results = play_live(reduced.path, cases, time_scale=10, jobs=24, on_result=lambda _: None)
    assert {one.case.id: one.verdict for one in results} == dict.fromkeys(SAMPLE, FAIL)


def test_linux_reads_what_the_model_server_reads(tmp_path: Path) -> None:
    scripts = [([{"connect": 443}, packet, {"send": "a request"}], reads) for packet, reads in IGNORED]
    scripts += [([{"connect": 443}, {"send": "a request in many pieces", **shape}], True) for shape in SHAPES]
    common = {"behaviour": "b", "cite": "c", "evidence": "found", "must_not": True}
    cases = [
        {"id": f"c{number}", "steps": steps, "expect": {"server_reads": reads, "at_client": 0}, **common}
        for number, (steps, reads) in enumerate(scripts)
    ]
    path = tmp_path / "cases.yaml"
    path.write_text(json.dumps({"version": 1, "mechanism": "m", "profiles": ["p"], "cases": cases}))
    loaded = load_cases("p", [path])
    results = play_live(find_profile("open"), loaded, time_scale=1, jobs=24, on_result=lambda _: None)
    assert [(one.case.id, one.wrong) for one in results if one.verdict != PASS] == []
