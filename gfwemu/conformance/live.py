"""Runs cases with real packets in a lab."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gfwemu.conformance.cases import Case
from gfwemu.conformance.result import Result
from gfwemu.errors import UsageError


def play_live(
    path: Path, cases: Sequence[Case], *, time_scale: float, jobs: int, on_result: Callable[[Result], None]
) -> list[Result]:
    raise UsageError("cases cannot be played in a lab yet; say --replay.")
