"""Figures: what was measured in each round, what is to be reached, and what an earlier run had."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

_SIGNIFICANT = 3
_LEAST_CHANGE = 0.05
"""Medians of two runs closer than this count as equal. Our choice."""


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on the median."""

    bound: float
    sense: Literal["at least", "at most"]

    def met(self, value: float) -> bool:
        return value >= self.bound if self.sense == "at least" else value <= self.bound

    def shortfall(self, value: float) -> float:
        """How many times the value misses the bound: 2.0 for half of what is wanted or twice what is allowed."""
        numerator, divisor = (self.bound, value) if self.sense == "at least" else (value, self.bound)
        return numerator / divisor if divisor > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: a value for each round.

    `target` None: a figure that others are compared with. `note`: what limits it, and what else was seen.
    """

    name: str
    title: str
    unit: str
    values: tuple[float, ...]
    target: Target | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.name, "title": self.title, "unit": self.unit, "values": [*self.values]}
        found["median"] = self.median
        if self.target is not None:
            found["target"] = {"sense": self.target.sense, "bound": self.target.bound}
            found["met"] = self.target.met(self.median)
        if self.note:
            found["note"] = self.note
        return found


@dataclass(slots=True)
class Rounds:
    """Values gathered round by round, under the names of figures."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> tuple[float, ...]:
        return tuple(self.values[name])

    def ratios(self, name: str, base: str) -> tuple[float, ...]:
        """Round by round, so that what disturbed both of a round's runs cancels."""
        return tuple(value / against for value, against in zip(self[name], self[base], strict=True))

    def differences(self, name: str, base: str) -> tuple[float, ...]:
        return tuple(value - against for value, against in zip(self[name], self[base], strict=True))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the values do not exceed (nearest rank). Raises ValueError on none."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def shown(value: float) -> str:
    """Three significant digits, thousands separated."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    digits = _SIGNIFICANT - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def with_unit(value: float, unit: str) -> str:
    return f"{shown(value)} {unit}".rstrip()


@dataclass(frozen=True, slots=True)
class Change:
    """How a figure moved against an earlier run. factor: new median over old."""

    factor: float
    verdict: Literal["same", "better", "worse"]


def change(figure: Figure, earlier: dict[str, Any]) -> Change | None:
    """None where the earlier run has no such figure, or it cannot be compared.

    Worse or better only where the rounds of the two runs do not overlap: a spread is no change. Figures without a
    target are the machine's own and never better or worse.
    """
    old = next((one for one in earlier.get("figures", ()) if one["name"] == figure.name), None)
    if old is None or old["unit"] != figure.unit or old["median"] <= 0 or figure.median <= 0:
        return None
    factor = figure.median / old["median"]
    apart = min(figure.values) > max(old["values"]) or max(figure.values) < min(old["values"])
    if figure.target is None or not apart or abs(factor - 1) < _LEAST_CHANGE:
        return Change(factor, "same")
    return Change(factor, "better" if (factor > 1) == (figure.target.sense == "at least") else "worse")
