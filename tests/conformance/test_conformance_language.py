"""Case files that are wrong: each mistake is told with its place and its fix. And what the numbers mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from gfwemu.conformance.cases import load_cases
from gfwemu.conformance.rates import check_rate, interval, probability_within
from gfwemu.conformance.specs import Numbers, Span
from gfwemu.errors import RulesError

CASE = """
version: 1
mechanism: m
profiles: [era-a, era-b]
cases:
  - id: first
    behaviour: b
    cite: c
    evidence: {evidence}
    rule: r
    {extra}
    steps:
      - {step}
"""


def load(tmp_path: Path, text: str, era: str = "era-a") -> list[str]:
    """What is wrong, or the ids."""
    path = tmp_path / "cases.yaml"
    path.write_text(text)
    try:
        return [case.id for case in load_cases(era, [path])]
    except RulesError as error:
        return [f"{problem.place.line}: {problem.message}" for problem in error.problems]


def written(step: str = "connect: 443", extra: str = "where: both", evidence: str = "found") -> str:
    return CASE.format(step=step, extra=extra, evidence=evidence)


def test_a_good_file(tmp_path: Path) -> None:
    assert load(tmp_path, written()) == ["first"]
    assert load(tmp_path, written(), "era-c") == []


@pytest.mark.parametrize(("text", "said"), [
    (written(evidence="sure"), "expected found, secondary, computed, anecdote, recall, inference, guess, found 'sure'"),
    (written("conect: 443"), "13: unknown key 'conect'; did you mean 'connect'?"),
    (written("{connect: 443, send: x}"), "a step has one of connect, udp, send"),
    (written("{connect: 443, ttl: censor}"), "'ttl' means nothing for 'connect'"),
    (written("try: 443"), "'try' needs 'outcome': free, blocked, reset or timeout"),
    (written("send: {tls: {}, http: {}}"), "a payload is one of tls, http"),
    (written("send: {tls: {snl: a}}"), "unknown key 'snl'; did you mean 'sni'?"),
    (written("packet: XY"), "'XY' are not TCP flags: write letters of FSRPAUEC, as in 'RA', or 'none'"),
    (written("expect: fine"), "'fine' is no expectation: write passes, evades, reset, resets, dropped, or a mapping"),
    (written("expect: {at_client: few}"), "'few' is not a number, a range (2-5) or an open one (2+)"),
    (written("expect: {delivered: most}"), "'most' is not 'all', 'none', a number or 'M of N'"),
    (written(extra="eras: {era-c: {where: live}}"), "has changes for 'era-c', which is none of its profiles"),
    (written(extra="clock: noon"), "11: 'clock': 'noon' is no date and time with an offset"),
    (written(extra="rate: {published: 0.5, tolerance: 0.1}"), "with repeat: 1 a rate of 0.5 leaves 0.5 +- 0.1"),
    (written(extra="delays: {p50: 1ms-2ms}"), "'delays' needs repeat: 50 or more"),
    (written().replace("    rule: r\n", ""), "'rule' is missing: which rule makes this true?"),
    (written().replace("version: 1", "version: 2"), "'version'"),
])  # fmt: skip
def test_what_is_wrong_is_told(tmp_path: Path, text: str, said: str) -> None:
    told = load(tmp_path, text)
    assert any(said in one for one in told), told


def test_an_id_is_given_once(tmp_path: Path) -> None:
    text = written() + written().split("cases:\n")[1]
    assert load(tmp_path, text) == [f"14: the case 'first' is already in {tmp_path / 'cases.yaml'}:6:5"]


def test_an_era_changes_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "cases.yaml"
    path.write_text(written(extra="eras: {era-b: {expect: dropped, evidence: guess, rule: [s, t], must_not: true}}"))
    (a,), (b,) = load_cases("era-a", [path]), load_cases("era-b", [path])
    assert (a.evidence, a.rules, a.must_not, a.expect) == ("found", ("r",), False, None)
    assert (b.evidence, b.rules, b.must_not) == ("guess", ("s", "t"), True)
    assert b.expect is not None
    assert b.expect.delivered == "none"


@pytest.mark.parametrize(("text", "inside", "outside"), [
    (5, [5], [4, 6]), ("2-3", [2, 3], [1, 4]), ("0x10-0x20", [16, 32], [15, 33]), ("2+", [2, 10**9], [1]),
    (">=61", [61, 300], [60]),
])  # fmt: skip
def test_numbers(text: object, inside: list[int], outside: list[int]) -> None:
    numbers = TypeAdapter(Numbers).validate_python(text)
    assert all(map(numbers.holds, inside))
    assert not any(map(numbers.holds, outside))


def test_spans() -> None:
    span = TypeAdapter(Span)
    assert span.validate_python("10ms-1.5s") == (0.01, 1.5)
    for wrong in ("10ms", "2s-1s", "soon-later"):
        with pytest.raises(ValidationError):
            span.validate_python(wrong)


def test_binomial_tails() -> None:
    assert interval(0.75, 0.1, 20) == (13, 17)
    assert probability_within(0.5, 4, 2, 2) == pytest.approx(6 / 16)
    assert probability_within(0.25, 3, 0, 3) == pytest.approx(1)
    assert (probability_within(1.0, 9, 9, 9), probability_within(0.0, 9, 1, 9)) == (1.0, 0.0)


def test_too_few_repetitions_are_refused() -> None:
    check_rate(0.75, 0.1, [0.5, 0.95], 250)
    with pytest.raises(ValueError, match=r"with repeat: 40 a rate of 0.75 leaves 0.75 \+- 0.1 too often"):
        check_rate(0.75, 0.1, [], 40)
    with pytest.raises(ValueError, match=r"repeat: 250 does not tell 0.75 from 0\.8"):
        check_rate(0.75, 0.1, [0.8], 250)
