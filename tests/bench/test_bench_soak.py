"""The long run: what it calls wrong, and three minutes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.soak import Sample, problems_of, soak
from benchmarks.stage import QUICK, Bench

SECONDS = 180
STEADY = [Sample(float(number), 80.0, 13, 1000 * number, number % 3, 0) for number in range(60)]
END = replace(STEADY[-1], waiting=0)
WELL = {"allowed answer": 5, "forbidden reset": 5, "query answer": 9, "datagrams": 100, "unanswered": 0}


def test_a_steady_run_has_nothing_wrong() -> None:
    assert problems_of([*STEADY, END], WELL) == []


def test_memory_of_the_warm_up_does_not_count() -> None:
    early = [replace(one, memory=80.0 + one.seconds) for one in STEADY[:20]]
    late = [replace(one, memory=100.0) for one in STEADY[20:]]
    assert problems_of([*early, *late, END], WELL) == []


@pytest.mark.parametrize(
    ("samples", "outcomes", "wrong"),
    [
        ([replace(one, memory=80 + one.seconds) for one in STEADY], WELL, "memory grew from 114 to 134 MB"),
        ([replace(one, descriptors=13 + one.queued // 9000) for one in STEADY], WELL, "descriptors grew from 16 to 19"),
        ([*STEADY[:-1], replace(END, waiting=7)], WELL, "7 packets have no verdict"),
        ([*STEADY, replace(END, dropped=3)], WELL, "queues dropped 3 packets"),
        ([replace(one, queued=5, waiting=0) for one in STEADY], WELL, "no packet was queued"),
        ([*STEADY, END], {**WELL, "forbidden answer": 2}, "5 forbidden reset, but 2 forbidden answer"),
        ([*STEADY, END], {**WELL, "query answer": 0}, "0 query answer, but nothing else"),
        ([*STEADY, END], {**WELL, "unanswered": 1}, "1 were never answered"),
    ],
)
def test_what_went_wrong_is_named(samples: list[Sample], outcomes: dict[str, int], wrong: str) -> None:
    assert wrong in problems_of(samples, outcomes)


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.needs("dnsperf")
def test_minutes_of_mixed_load_leave_everything_as_it_was(tmp_path: Path) -> None:
    said: list[str] = []
    found = soak(Bench(QUICK, tmp_path), SECONDS, said.append)
    assert found.problems == (), "\n".join(said)
    assert found.outcomes["allowed answer"] > SECONDS
