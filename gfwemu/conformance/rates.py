"""How many repetitions tell a rate from its neighbours: exact binomial tails."""

from __future__ import annotations

import math
from collections.abc import Sequence

FALSE_ALARM = 0.001
"""The chance that a censor with the published rate fails a case."""
MISSED = 0.01
"""The chance that a censor with a neighbouring rate passes it."""


def interval(published: float, tolerance: float, repeat: int) -> tuple[int, int]:
    """The least and the greatest number of hits that pass."""
    low = math.ceil((published - tolerance) * repeat - 1e-9)
    high = math.floor((published + tolerance) * repeat + 1e-9)
    return max(0, low), min(repeat, high)


def probability_within(rate: float, repeat: int, low: int, high: int) -> float:
    """That a binomial variable lies between low and high, both included."""
    if rate in (0.0, 1.0):
        return float(low <= rate * repeat <= high)
    logs = (
        math.lgamma(repeat + 1)
        - math.lgamma(hits + 1)
        - math.lgamma(repeat - hits + 1)
        + hits * math.log(rate)
        + (repeat - hits) * math.log1p(-rate)
        for hits in range(low, high + 1)
    )
    return math.fsum(math.exp(one) for one in logs)


def check_rate(published: float, tolerance: float, neighbours: Sequence[float], repeat: int) -> None:
    """Raises ValueError with the fix where the repetitions do not suffice."""
    low, high = interval(published, tolerance, repeat)
    if 1 - probability_within(published, repeat, low, high) > FALSE_ALARM:
        raise ValueError(
            f"with repeat: {repeat} a rate of {published:g} leaves {published:g} +- {tolerance:g} too often; "
            f"repeat more or widen 'tolerance'"
        )
    for neighbour in neighbours:
        if probability_within(neighbour, repeat, low, high) > MISSED:
            raise ValueError(
                f"repeat: {repeat} does not tell {published:g} from {neighbour:g}; repeat more or narrow 'tolerance'"
            )
