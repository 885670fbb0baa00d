"""DNS queries a second through a poisoning profile; every second query is for a listed name."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.censor import MeasureError
from benchmarks.figures import Figure, Rounds, Target
from benchmarks.stage import Bench, Stage
from benchmarks.workload import ALLOWED_SERVER

NAME = "dns"
_CLIENTS = 100
_OUTSTANDING = 200
_LEAST_POISONED = 0.3
"""Of the answers. Half of the queries are for listed names, and a forged answer may lose the race with the true one."""
_MOST_LOST = 0.01
_HEADROOM = 1.2


def measure(bench: Bench) -> list[Figure]:
    rounds = Rounds()
    scale = bench.scale
    queries = bench.queries()
    with (
        bench.both() as (plain, censored),
        plain.serve("resolver", ALLOWED_SERVER, 53),
        censored.serve("resolver", ALLOWED_SERVER, 53),
    ):
        for _ in range(scale.rounds):
            rate, _ = query_rate(plain, queries, scale.seconds)
            rounds.add(plain=rate)
            start = censored.work()
            rate, poisoned = query_rate(censored, queries, scale.seconds)
            end = censored.work()
            rounds.add(censored=rate)
            if poisoned < _LEAST_POISONED:
                raise MeasureError(f"only {poisoned:.0%} of the answers were forged; half of the names are listed")
    plain_figure = Figure("dns-plain", "DNS queries, plain forwarding", "/s", rounds["plain"], note="dnsperf")
    figure = Figure("dns", f"DNS queries, poisoning profile, {scale.names:,} names", "/s", rounds["censored"])
    note = f"{poisoned:.0%} of the answers forged; {end.since(start).words(scale.seconds)}"
    if plain_figure.median < _HEADROOM * figure.median:
        note = f"the generator is the limit; {note}"
    return [
        plain_figure,
        Figure(figure.name, figure.title, figure.unit, figure.values, Target(15_000, "at least"), note),
    ]


def query_rate(stage: Stage, queries: Path, seconds: int) -> tuple[float, float]:
    """Answered queries a second, and which share of the answers was forged (the true one is always NXDOMAIN)."""
    argv = ["dnsperf", "-s", ALLOWED_SERVER, "-d", str(queries), "-l", f"{seconds}"]
    argv += ["-c", f"{_CLIENTS}", "-q", f"{_OUTSTANDING}", "-t", "1"]
    said = stage.run(argv, timeout=seconds + 30)
    rate = _number(r"Queries per second:\s+([\d.]+)", said)
    answered, lost = _number(r"Queries completed:\s+(\d+)", said), _number(r"Queries lost:\s+(\d+)", said)
    # Queries that were on their way at the end are neither.
    if lost > _MOST_LOST * answered:
        raise MeasureError(f"{lost:.0f} queries were never answered, {answered:.0f} were")
    forged = re.search(r"NOERROR (\d+)", said)
    return rate, int(forged[1]) / answered if forged else 0.0


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise MeasureError(f"dnsperf said nothing like '{pattern}': {text[-500:]}")
    return float(found[1])
