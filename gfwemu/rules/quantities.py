"""Durations, rates, sizes and numbers as rule files write them, fixed or varied.

Durations: `180s`, `15ms`, `2m`, `1h`, `0.2us` or a bare number of seconds. Rates: `128kbit` (per second, as tc
counts: 1000), `1.5mbit`, `600bps` (bytes per second). Sizes: `16KB` (1000), `16KiB` (1024), `1500B` or a bare number.
A varied quantity is `A-B` (uniform), a list (one of them, equally likely) or `{quantiles: {p5: 12ms, p50: 15ms}}`
(piecewise linear between the named quantiles).
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

_UNITS: dict[str, Mapping[str, float]] = {
    "duration": {
        "us": 1e-6,
        "ms": 1e-3,
        "s": 1.0,
        "": 1.0,
        "m": 60.0,
        "min": 60.0,
        "h": 3600.0,
        "d": 86400.0,
    },
    "rate": {
        "bit": 1 / 8,
        "kbit": 125.0,
        "mbit": 125_000.0,
        "gbit": 125_000_000.0,
        "bps": 1.0,
        "kbps": 1000.0,
    },
    "size": {"": 1.0, "b": 1.0, "kb": 1e3, "kib": 1024.0, "mb": 1e6, "mib": 1048576.0},
    "number": {"": 1.0},
}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_LARGEST = 1e12


@dataclass(frozen=True, slots=True)
class Varied:
    """A quantity to be drawn: points (quantile in 0..1, value), ascending. One point is a constant."""

    points: tuple[tuple[float, float], ...]
    choices: tuple[float, ...] = ()

    @classmethod
    def constant(cls, value: float) -> Varied:
        return cls(((0.0, value),))

    @property
    def low(self) -> float:
        return min(self.choices) if self.choices else self.points[0][1]

    @property
    def high(self) -> float:
        return max(self.choices) if self.choices else self.points[-1][1]

    def sample(self, rng: random.Random) -> float:
        if self.choices:
            return rng.choice(self.choices)
        if len(self.points) == 1:
            return self.points[0][1]
        quantile = rng.random()
        previous = self.points[0]
        for point in self.points[1:]:
            if quantile <= point[0]:
                width = point[0] - previous[0]
                share = (quantile - previous[0]) / width if width > 0 else 1.0
                return previous[1] + max(0.0, share) * (point[1] - previous[1])
            previous = point
        return self.points[-1][1]

    def sample_int(self, rng: random.Random) -> int:
        if not self.choices and len(self.points) == 2 and self.points[0][0] == 0.0 and self.points[1][0] == 1.0:
            return rng.randint(int(self.points[0][1]), int(self.points[1][1]))
        return round(self.sample(rng))


@dataclass(frozen=True, slots=True)
class Rising:
    """A header field that counts up by one from packet to packet of one burst, from a value drawn for the burst.

    The three resets to a SYN for 1.1.1.1:443 have windows and TTLs like this (net4people/bbs issue 285, 2023), as
    those of the Great Cannon had (Marczak et al., FOCI 2015).
    """

    increment_from: Varied


HeaderValue = Varied | Rising | Literal["mirror", "increment"]


def parse_quantity(value: object, kind: str) -> float:
    """One fixed quantity in seconds, bytes per second, bytes, or as a number. Raises ValueError with the reason."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"expected a {kind}")
    if isinstance(value, str):
        found = _NUMBER.fullmatch(value)
        unit = found.group(2).lower() if found else ""
        if found is None or unit not in _UNITS[kind]:
            units = ", ".join(sorted(unit for unit in _UNITS[kind] if unit))
            suffix = f" (units: {units})" if units else ""
            raise ValueError(f"'{value}' is not a {kind}{suffix}")
        amount = float(found.group(1)) * _UNITS[kind][unit]
    else:
        if kind == "rate":
            raise ValueError(f"the rate {value} needs a unit, as in '128kbit'")
        amount = float(value)
    if not math.isfinite(amount) or amount < 0 or amount > _LARGEST:
        raise ValueError(f"the {kind} {value} is out of range")
    return amount


def parse_varied(value: object, kind: str) -> Varied:
    """A fixed or varied quantity. Raises ValueError with the reason."""
    if isinstance(value, Varied):
        return value
    if isinstance(value, list):
        if not value:
            raise ValueError(f"an empty list is not a {kind}")
        return Varied((), tuple(parse_quantity(item, kind) for item in value))
    if isinstance(value, dict):
        return _parse_quantiles(value, kind)
    if isinstance(value, str) and "-" in value:
        first, _, last = value.partition("-")
        if re.fullmatch(r"\s*[0-9.]+\s*", first):
            first += _NUMBER.fullmatch(last).group(2) if _NUMBER.fullmatch(last) else ""  # type: ignore[union-attr]
        low, high = parse_quantity(first, kind), parse_quantity(last, kind)
        if low > high:
            raise ValueError(f"the range '{value}' runs backwards")
        return Varied(((0.0, low), (1.0, high)))
    return Varied.constant(parse_quantity(value, kind))


def _parse_quantiles(value: dict[Any, Any], kind: str) -> Varied:
    quantiles = value.get("quantiles")
    if set(value) != {"quantiles"} or not isinstance(quantiles, dict) or len(quantiles) < 2:
        raise ValueError(f"expected a {kind}, 'A-B', a list, or {{quantiles: {{p5: ..., p50: ...}}}}")
    points: list[tuple[float, float]] = []
    for name, amount in quantiles.items():
        found = re.fullmatch(r"p([0-9]{1,2}(?:\.[0-9]+)?|100)", str(name))
        if found is None:
            raise ValueError(f"'{name}' is not a quantile; write p0 to p100")
        points.append((float(found.group(1)) / 100, parse_quantity(amount, kind)))
    points.sort()
    if any(left[1] > right[1] for left, right in itertools.pairwise(points)):
        raise ValueError("quantiles must not fall")
    return Varied(tuple(points))


def parse_header_value(value: object, kind: str) -> HeaderValue:
    """A number, fixed or varied, or one of the ways to count. Raises ValueError with the reason."""
    if isinstance(value, Rising) or value == "mirror" or value == "increment":
        return value
    if isinstance(value, dict) and "quantiles" not in value:
        if set(value) != {"increment_from"}:
            raise ValueError("expected a number, 'A-B', a list, mirror, increment, or {increment_from: 60-200}")
        return Rising(parse_varied(value["increment_from"], kind))
    try:
        return parse_varied(value, kind)
    except ValueError as error:
        if isinstance(value, str) and value.isalpha():
            raise ValueError(f"'{value[:40]}' is not a {kind}; write one, or mirror, or increment") from None
        raise error


def _validator(kind: str, parse: Callable[[object, str], Any]) -> BeforeValidator:
    return BeforeValidator(lambda value: parse(value, kind))


Duration = Annotated[float, _validator("duration", parse_quantity)]
Rate = Annotated[float, _validator("rate", parse_quantity)]
Size = Annotated[float, _validator("size", parse_quantity)]
VariedDuration = Annotated[Varied, _validator("duration", parse_varied)]
VariedNumber = Annotated[Varied, _validator("number", parse_varied)]
VariedSize = Annotated[Varied, _validator("size", parse_varied)]
HeaderField = Annotated[HeaderValue, _validator("number", parse_header_value)]
