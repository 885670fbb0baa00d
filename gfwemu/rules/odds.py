"""How likely something is: always the same, or by the hour of the censor's day; and for what the dice are thrown.

`0.5`, or `{value: 0.35, per: endpoints}`, or `{hours: {0: 0.15, 6: 0.5}, timezone: Asia/Shanghai}`: what an hour names
lasts until the next hour named, over midnight, too.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, InstanceOf

from gfwemu.rules.zones import time_zone

Per = Literal["match", "packet", "flow", "endpoints", "addresses"]
"""match: anew each time. packet: anew, also where the same flow was spared before. flow: once for each flow. endpoints:
by client address and port and server address, the same for ever (all or nothing by path: Bhaskar and Pearce, 2022).
addresses: by client and server address."""

_KEYS = ("value", "hours", "timezone", "per")


@dataclass(frozen=True, slots=True)
class Odds:
    """`values`: one probability, or 24, one for each hour in `zone`."""

    values: tuple[float, ...]
    per: Per = "match"
    zone: datetime.tzinfo = datetime.UTC

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @property
    def plain(self) -> bool:
        """Whether it is no more than one number."""
        return len(self.values) == 1 and self.per == "match"

    def at(self, censor_now: float) -> float:
        """The probability at that moment of the censor's clock (seconds since the epoch)."""
        if len(self.values) == 1:
            return self.values[0]
        return self.values[datetime.datetime.fromtimestamp(censor_now, self.zone).hour]


CERTAIN = Odds((1.0,))


def parse_odds(value: object) -> Odds:
    """Raises ValueError with the reason."""
    if isinstance(value, Odds):
        return value
    if not isinstance(value, dict):
        return Odds((_probability(value),))
    for key in value:
        if key not in _KEYS:
            raise ValueError(f"unknown key '{str(key)[:40]}'; known: {', '.join(_KEYS)}")
    if ("value" in value) == ("hours" in value):
        raise ValueError("a probability needs either 'value' or 'hours'")
    if "timezone" in value and "hours" not in value:
        raise ValueError("'timezone' belongs to 'hours'")
    per = value.get("per", "match")
    if per not in get_args(Per):
        raise ValueError(f"'per' is one of {', '.join(get_args(Per))}")
    if "value" in value:
        return Odds((_probability(value["value"]),), per)
    return Odds(_day(value["hours"]), per, time_zone(str(value.get("timezone", "UTC"))))


def _probability(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("expected a number from 0 to 1, or {hours: {0: 0.15, 6: 0.5}, timezone: Asia/Shanghai}")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"expected a number, found '{str(value)[:40]}'") from None
    if math.isnan(number) or number > 1:
        raise ValueError(f"{str(value)[:40]} must be at most 1.0")
    if number < 0:
        raise ValueError(f"{str(value)[:40]} must be at least 0.0")
    return number


def _day(hours: Any) -> tuple[float, ...]:
    if not isinstance(hours, dict) or not hours:
        raise ValueError("'hours' says which probability holds from which hour on, as in {0: 0.15, 6: 0.5}")
    named: dict[int, float] = {}
    for key, value in hours.items():
        hour = int(key) if isinstance(key, int) or (isinstance(key, str) and key.isascii() and key.isdigit()) else -1
        if not 0 <= hour <= 23:
            raise ValueError(f"'{str(key)[:40]}' is not an hour; hours run from 0 to 23")
        if hour in named:
            raise ValueError(f"the hour {hour} stands there twice")
        named[hour] = _probability(value)
    latest = named[max(named)]
    day = []
    for hour in range(24):
        latest = named.get(hour, latest)
        day.append(latest)
    return tuple(day)


Chance = Annotated[InstanceOf[Odds], BeforeValidator(parse_odds)]
