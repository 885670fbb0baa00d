"""Options about the censor's clock, and moments as people write them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _moment(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """`2025-08-20T00:30+08:00` as seconds since the epoch; without an offset it is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
        return aware.timestamp()
    except (ValueError, OverflowError):
        message = f"'{text}' is no moment; write it as in 2025-08-20T00:30+08:00"
        raise click.BadParameter(message, context, parameter) from None


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
        type=click.FloatRange(min=0, min_open=True),
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
