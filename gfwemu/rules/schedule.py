"""When a rule is in force: hours of the day, days of the week, dates, in a time zone."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from gfwemu.rules.models import ScheduleEntry
from gfwemu.rules.zones import time_zone

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_DAY_MINUTES = 24 * 60
_HOURS = re.compile(r"([0-9]{1,2}):([0-9]{2})\s*-\s*([0-9]{1,2}):([0-9]{2})")
_ONE_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Calendar:
    """Minutes of the day (start inclusive, end exclusive; over midnight where the end comes first), days, dates.

    Empty parts do not restrict. A span over midnight belongs to the day on which it begins.
    """

    zone: datetime.tzinfo
    hours: tuple[tuple[int, int], ...] = ()
    days: frozenset[int] = frozenset()
    dates: tuple[tuple[datetime.date, datetime.date], ...] = ()

    def active(self, now: float) -> bool:
        local = datetime.datetime.fromtimestamp(now, self.zone)
        today = local.date()
        minute = local.hour * 60 + local.minute
        if not self.hours:
            return self._on(today)
        for start, end in self.hours:
            if start < end:
                if start <= minute < end and self._on(today):
                    return True
            elif (minute >= start and self._on(today)) or (minute < end and self._on(today - _ONE_DAY)):
                return True
        return False

    def _on(self, date: datetime.date) -> bool:
        if self.days and date.weekday() not in self.days:
            return False
        return not self.dates or any(first <= date <= last for first, last in self.dates)

    def never(self) -> bool:
        """Whether no moment at all is in force."""
        if not self.dates:
            return False
        for first, last in self.dates:
            span = min((last - first).days, 6)
            if any(self._on(first + index * _ONE_DAY) for index in range(span + 1)):
                return False
        return True


def compile_schedule(entry: ScheduleEntry) -> Calendar:
    """Raises ValueError with the reason."""
    hours = tuple(_span(text) for text in _texts(entry.hours))
    dates = tuple(_dates(text) for text in _texts(entry.dates))
    if entry.hours is None and entry.days is None and entry.dates is None:
        raise ValueError("a schedule needs 'hours', 'days' or 'dates'")
    if entry.hours == [] or entry.days == [] or entry.dates == []:
        raise ValueError("an empty list means never; leave the key out")
    calendar = Calendar(time_zone(entry.timezone), hours, frozenset(map(DAYS.index, entry.days or ())), dates)
    if calendar.never():
        raise ValueError("none of these dates falls on one of these days: the rule can never fire")
    return calendar


def _texts(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []


def _span(text: str) -> tuple[int, int]:
    found = _HOURS.fullmatch(text.strip())
    if not found:
        raise ValueError(f"'{text[:40]}' are not hours; write them as 18:00-02:00")
    start = int(found[1]) * 60 + int(found[2])
    end = int(found[3]) * 60 + int(found[4])
    if int(found[2]) > 59 or int(found[4]) > 59 or start >= _DAY_MINUTES or end > _DAY_MINUTES:
        raise ValueError(f"'{text}' is no time of day; hours run from 00:00 to 24:00")
    if start == end:
        raise ValueError(f"'{text}' has no length; for the whole day leave 'hours' out")
    return start, end


def _dates(text: str) -> tuple[datetime.date, datetime.date]:
    first_text, dots, last_text = text.strip().partition("..")
    try:
        first = datetime.date.fromisoformat(first_text.strip())
        last = datetime.date.fromisoformat(last_text.strip()) if dots else first
    except ValueError:
        raise ValueError(f"'{text[:40]}' are not dates; write 2025-06-18 or 2025-06-18..2025-06-25") from None
    if last < first:
        raise ValueError(f"the dates '{text}' run backwards")
    return first, last
