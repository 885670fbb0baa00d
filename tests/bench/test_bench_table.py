from __future__ import annotations

import io
from typing import Any

from benchmarks.figures import Figure, Target
from benchmarks.machine import describe, disturbed
from benchmarks.table import machine_words, make_table
from rich.console import Console

PLAIN = Figure("bulk-plain", "bulk, plain", "Gbit/s", (10.0, 12.0, 11.0))
MISSED = Figure("bulk", "bulk, censored", "of plain", (0.2, 0.3, 0.25), Target(0.5, "at least"), "the daemon")
MET = Figure("wait", "waiting", "us", (100.0, 90.0, 110.0), Target(300, "at most"))
MACHINE = {"cpu": "C", "cpus": 2, "memory_gib": 8.0, "kernel": "Linux 6.1", "python": "CPython 3.11", "load": 0.1}


def lines(figures: list[Figure], failures: dict[str, str], earlier: dict[str, Any] | None = None) -> list[list[str]]:
    """The cells of the table, a line each."""
    stream = io.StringIO()
    Console(file=stream, width=300).print(make_table(figures, failures, earlier))
    rows = [line for line in stream.getvalue().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


def test_line_has_median_spread_and_whether_the_target_is_reached() -> None:
    assert lines([PLAIN, MISSED, MET], {}) == [
        ["bulk, plain", "", "11.0 Gbit/s", "10.0 - 12.0", "", ""],
        ["bulk, censored", "at least 0.5", "0.250 of plain", "0.200 - 0.300", "no, by 2.00 times", "the daemon"],
        ["waiting", "at most 300", "100 us", "90.0 - 110", "yes", ""],
    ]


def test_failed_measure_has_its_reason() -> None:
    assert lines([], {"dns": "only [3] answers"}) == [["dns", "", "", "", "failed", "only [3] answers"]]


def test_earlier_run_stands_beside() -> None:
    before = {
        "figures": [
            Figure("bulk-plain", "", "Gbit/s", (5.0, 6.0, 5.5)).as_json(),
            Figure("bulk", "", "of plain", (0.7, 0.8, 0.75), Target(0.5, "at least")).as_json(),
        ]
    }
    rows = lines([PLAIN, MISSED, MET], {"dns": "none"}, before)
    assert [row[5] for row in rows] == ["5.50", "0.750, now worse", "", ""]
    assert [row[6] for row in rows] == ["", "the daemon", "", "none"]


def test_machine_is_described() -> None:
    found = describe()
    assert found["kernel"].startswith("Linux ")
    assert found["cpus"] >= 1
    assert found["memory_gib"] > 0
    assert machine_words({**found, "hop": "xtables"}).count("xtables") == 1


def test_busy_machine_is_told() -> None:
    assert not disturbed(MACHINE)
    assert disturbed({**MACHINE, "load": 1.5})
