"""What the censor adds to connect, ClientHello and answer, one connection after the other."""

from __future__ import annotations

from pathlib import Path

from benchmarks.censor import MeasureError
from benchmarks.figures import Figure, Rounds, Target, quantile
from benchmarks.stage import Bench, Stage
from benchmarks.workload import ALLOWED_SERVER

NAME = "latency"
_PORT = 443
_ANSWER = 100


def measure(bench: Bench) -> list[Figure]:
    rounds = Rounds()
    hellos = bench.hellos()
    answers = "answers", _ANSWER, _PORT
    with bench.both() as (plain, censored), plain.serve(*answers), censored.serve(*answers):
        for _ in range(bench.scale.rounds):
            for name, stage in (("plain", plain), ("censored", censored)):
                times = _times(stage, hellos, bench.scale.exchanges)
                rounds.add(**{f"{name}_median": quantile(times, 0.5), f"{name}_p99": quantile(times, 0.99)})
    title = f"connect + ClientHello + answer, {bench.scale.names:,} suffixes"
    count = f"{bench.scale.exchanges:,} connections a round"
    return [
        Figure("latency-plain-median", "connect + ClientHello + answer, plain: median", "us", rounds["plain_median"]),
        Figure("latency-plain-p99", "connect + ClientHello + answer, plain: p99", "us", rounds["plain_p99"]),
        Figure(
            "latency-median",
            f"{title}: added median",
            "us",
            rounds.differences("censored_median", "plain_median"),
            Target(300, "at most"),
            count,
        ),
        Figure(
            "latency-p99",
            f"{title}: added p99",
            "us",
            rounds.differences("censored_p99", "plain_p99"),
            Target(2000, "at most"),
            count,
        ),
    ]


def _times(stage: Stage, hellos: Path, count: int) -> list[float]:
    """Microseconds."""
    found = stage.traffic("exchanges", ALLOWED_SERVER, _PORT, hellos, count, 20, timeout=60)
    if set(found["outcomes"]) != {"answer"}:
        raise MeasureError(f"connections ended otherwise than with an answer: {found['outcomes']}")
    return [seconds * 1e6 for seconds in found["whole"]]
