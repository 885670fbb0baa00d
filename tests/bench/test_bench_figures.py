from __future__ import annotations

import math
from typing import Any

import pytest
from benchmarks.figures import Figure, Rounds, Target, change, quantile, shown
from hypothesis import given
from hypothesis import strategies as st

FASTER = Target(0.5, "at least")
SHORTER = Target(10, "at most")


def figure(*values: float, target: Target | None = FASTER, unit: str = "of plain") -> Figure:
    return Figure("speed", "how fast", unit, values, target)


def earlier(*values: float, unit: str = "of plain") -> dict[str, Any]:
    return {"figures": [figure(*values, unit=unit).as_json()]}


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([5.0], 0.5, 5.0),
        ([5.0], 0.99, 5.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([4.0, 3.0, 2.0, 1.0], 0.5, 2.0),
        (list(range(1, 101)), 0.99, 99),
        (list(range(1, 1001)), 0.99, 990),
        ([1.0, 2.0], 0.0, 1.0),
        ([1.0, 2.0], 1.0, 2.0),
    ],
)
def test_quantile_is_the_nearest_rank(values: list[float], share: float, expected: float) -> None:
    assert quantile(values, share) == expected


def test_no_values_have_no_quantile() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


@given(st.lists(st.floats(0, 1e9), min_size=1), st.floats(0.01, 1))
def test_so_large_a_share_does_not_exceed_the_quantile(values: list[float], share: float) -> None:
    found = quantile(values, share)
    below = sum(value < found for value in values)
    assert found in values
    assert below < share * len(values) <= sum(value <= found for value in values) + 1e-6


@pytest.mark.parametrize(
    ("target", "value", "met", "shortfall"),
    [
        (FASTER, 0.5, True, 1.0),
        (FASTER, 0.25, False, 2.0),
        (FASTER, 0.0, False, math.inf),
        (SHORTER, 10.0, True, 1.0),
        (SHORTER, 30.0, False, 3.0),
    ],
)
def test_target_says_whether_and_by_how_much(target: Target, value: float, met: bool, shortfall: float) -> None:
    assert target.met(value) is met
    assert target.shortfall(value) == shortfall


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.9512, "0.951"), (12.34, "12.3"), (1234.5, "1,230"), (99_950.0, "100,000"), (-4.321, "-4.32")],
)
def test_numbers_are_shown_with_three_digits(value: float, text: str) -> None:
    assert shown(value) == text


def test_infinity_is_shown() -> None:
    assert shown(math.inf) == "inf"


def test_ratios_and_differences_are_of_the_same_round() -> None:
    rounds = Rounds()
    rounds.add(plain=10.0, censored=5.0)
    rounds.add(plain=20.0, censored=18.0)
    assert rounds.ratios("censored", "plain") == (0.5, 0.9)
    assert rounds.differences("censored", "plain") == (-5.0, -2.0)


def test_unequal_rounds_are_a_mistake() -> None:
    rounds = Rounds()
    rounds.add(plain=10.0, censored=5.0)
    rounds.add(plain=20.0)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        rounds.ratios("censored", "plain")


@pytest.mark.parametrize(
    ("now", "before", "target", "verdict"),
    [
        ((0.8, 0.9, 1.0), (0.4, 0.5, 0.6), FASTER, "better"),
        ((0.4, 0.5, 0.6), (0.8, 0.9, 1.0), FASTER, "worse"),
        ((8.0, 9.0, 10.0), (4.0, 5.0, 6.0), SHORTER, "worse"),
        ((4.0, 5.0, 6.0), (8.0, 9.0, 10.0), SHORTER, "better"),
        # The rounds overlap.
        ((0.5, 0.9, 1.0), (0.4, 0.5, 0.6), FASTER, "same"),
        # They do not, but are nearly equal.
        ((0.902, 0.903, 0.904), (0.900, 0.901, 0.9015), FASTER, "same"),
        # The machine's own.
        ((8.0, 9.0, 10.0), (4.0, 5.0, 6.0), None, "same"),
    ],
)
def test_change_is_more_than_spread(
    now: tuple[float, ...], before: tuple[float, ...], target: Target | None, verdict: str
) -> None:
    found = change(figure(*now, target=target), earlier(*before))
    assert found is not None
    assert found.verdict == verdict
    assert found.factor == pytest.approx(now[1] / before[1])


@pytest.mark.parametrize("record", [{}, {"figures": []}, earlier(1.0, unit="s"), earlier(0.0), earlier(-1.0)], ids=str)
def test_what_cannot_be_compared_is_not(record: dict[str, Any]) -> None:
    assert change(figure(1.0), record) is None


def test_json_says_all_of_a_figure() -> None:
    found = Figure("speed", "how fast", "of plain", (0.4, 0.2, 0.3), FASTER, "the queue").as_json()
    assert found == {
        "name": "speed",
        "title": "how fast",
        "unit": "of plain",
        "values": [0.4, 0.2, 0.3],
        "median": 0.3,
        "target": {"sense": "at least", "bound": 0.5},
        "met": False,
        "note": "the queue",
    }
