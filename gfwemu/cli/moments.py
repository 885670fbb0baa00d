"""Options about the censor's clock, and moments as people write them."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])

_YEARS = range(1970, 3000)
"""In which the censor's clock may begin: calendars end with the year 9999, and it runs on, faster perhaps."""


class ScaleRange(click.FloatRange):
    """A range that `nan` is not in, with which no comparison holds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def _moment(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """`2025-08-20T00:30+08:00` as seconds since the epoch; without an offset it is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
        seconds = (moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError):
        message = f"'{text}' is no moment; write it as in 2025-08-20T00:30+08:00"
        raise click.BadParameter(message, context, parameter) from None
    if moment.year not in _YEARS or seconds < 0:
        message = f"'{text}' is not in the years {_YEARS[0]} to {_YEARS[-1]}"
        raise click.BadParameter(message, context, parameter)
    return seconds


def with_clock_options(function: _Function) -> _Function:
    """`--time-scale` and `--start-time`."""
    start = click.option(
        "--start-time",
        callback=_moment,
        metavar="WHEN",
        help="What the censor's clock shows at first, as in 2025-08-20T00:30+08:00; the real time by default.",
    )
    scale = click.option(
        "--time-scale",
        type=ScaleRange(0.001, 100_000),
        default=1.0,
        metavar="X",
        help="Run the censor's clock X times faster.",
    )
    return scale(start(function))


def clock_text(time_scale: float, start_time: float | None) -> str:
    """What is unusual about the censor's clock; empty where nothing is."""
    parts = []
    if time_scale != 1:
        parts.append(f"the censor's clock runs {time_scale:g} times faster")
    if start_time is not None:
        moment = datetime.datetime.fromtimestamp(start_time, datetime.UTC)
        subject = "it" if parts else "the censor's clock"
        parts.append(f"{subject} starts at {moment:%Y-%m-%dT%H:%M:%SZ}")
    return ", ".join(parts)
