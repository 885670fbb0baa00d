"""Schedules: hours, over midnight, days, dates, time zones."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from gfwemu.rules.models import ScheduleEntry
from gfwemu.rules.schedule import compile_schedule


def active(moment: str, **entry: Any) -> bool:
    now = datetime.datetime.fromisoformat(moment).timestamp()
    return compile_schedule(ScheduleEntry(**entry)).active(now)


@pytest.mark.parametrize(
    ("moment", "entry", "expected"),
    [
        ("2025-06-18T18:00+00:00", {"hours": "18:00-02:00"}, True),
        ("2025-06-18T17:59+00:00", {"hours": "18:00-02:00"}, False),
        ("2025-06-18T01:59+00:00", {"hours": "18:00-02:00"}, True),
        ("2025-06-18T02:00+00:00", {"hours": "18:00-02:00"}, False),
        ("2025-06-18T23:59+00:00", {"hours": "00:00-24:00"}, True),
        ("2025-06-18T09:30+00:00", {"hours": ["08:00-09:00", "09:15-10:00"]}, True),
        ("2025-06-18T09:05+00:00", {"hours": ["08:00-09:00", "09:15-10:00"]}, False),
        ("2025-06-18T12:00+00:00", {"days": ["wed"]}, True),
        ("2025-06-18T12:00+00:00", {"days": ["thu", "fri"]}, False),
        ("2025-06-19T01:00+00:00", {"hours": "18:00-02:00", "days": ["wed"]}, True),
        ("2025-06-18T01:00+00:00", {"hours": "18:00-02:00", "days": ["wed"]}, False),
        ("2025-06-18T00:00+00:00", {"dates": "2025-06-18..2025-06-25"}, True),
        ("2025-06-25T23:59+00:00", {"dates": "2025-06-18..2025-06-25"}, True),
        ("2025-06-26T00:00+00:00", {"dates": "2025-06-18..2025-06-25"}, False),
        ("2025-06-18T12:00+00:00", {"dates": ["2025-06-17", "2025-06-18"]}, True),
        ("2025-06-18T20:00+00:00", {"hours": "04:00-05:00", "timezone": "+08:00"}, True),
        ("2025-06-18T20:00+00:00", {"hours": "04:00-05:00", "days": ["thu"], "timezone": "+08:00"}, True),
        ("2025-06-18T04:30+00:00", {"hours": "04:00-05:00", "timezone": "+08:00"}, False),
        ("2025-01-18T12:30+00:00", {"hours": "04:00-05:00", "timezone": "-0800"}, True),
    ],
)
def test_active(moment: str, entry: dict[str, Any], expected: bool) -> None:
    assert active(moment, **entry) is expected


def test_a_range_of_a_week_meets_each_day() -> None:
    compile_schedule(ScheduleEntry(dates="2025-06-18..2025-06-24", days=["tue"]))
    with pytest.raises(ValueError, match="none of these dates falls on one of these days"):
        compile_schedule(ScheduleEntry(dates="2025-06-18..2025-06-23", days=["tue"]))
