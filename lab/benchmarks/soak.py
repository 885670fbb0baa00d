"""A long run: mixed load, at most half of what the censor can do, and its memory, descriptors and queue meanwhile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measures.connections import connection_rate
from benchmarks.measures.dns import query_rate
from benchmarks.measures.packets import flood
from benchmarks.stage import Bench, Stage
from benchmarks.workload import ALLOWED_SERVER, FORBIDDEN, UNSETTLED_PORT, allowed_name, client_hello

_KINDS = 3
_SHARE = 0.5 / _KINDS
"""Of each kind's own ceiling, so that all together are half of what the censor can do."""
_SAMPLES = 60
_WARM_UP = 1 / 2
"""Of the time. The longest-lived UDP flows are forgotten after a minute."""
_MOST_GROWTH = 0.05
_LEAST_GROWTH_MB = 8.0
"""Memory below that is how an allocator breathes. Both bounds are our choice."""
_ANSWER = 20_000


@dataclass(frozen=True, slots=True)
class Sample:
    """seconds: since the load began. memory: in MB. queued, waiting, dropped: packets, all queues together."""

    seconds: float
    memory: float
    descriptors: int
    queued: int
    waiting: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Soak:
    """What a long run saw. outcomes: of connections and queries, by kind. problems: empty where all was well."""

    rates: dict[str, float]
    samples: tuple[Sample, ...]
    outcomes: dict[str, int]
    problems: tuple[str, ...]


def soak(bench: Bench, seconds: float, tell: Callable[[str], None]) -> Soak:
    """Raises MeasureError where the run itself failed."""
    hellos = bench.hellos()
    forbidden = bench.kept("forbidden.hellos", lambda path: path.write_text(client_hello(FORBIDDEN).hex(), "ascii"))
    names = bench.kept("names", _write_names)
    with (
        bench.censored() as stage,
        stage.serve("answers", _ANSWER, 443, 8443, 9443, 10443),
        stage.serve("resolver", ALLOWED_SERVER, 53),
        stage.serve("sink", UNSETTLED_PORT),
    ):
        rates = _ceilings(bench, stage)
        tell(", ".join(f"{rate:,.0f} {name}" for name, rate in rates.items()) + " a second at most")
        wanted = [rate * _SHARE for rate in rates.values()]
        samples: list[Sample] = []
        times = seconds * _WARM_UP, seconds + 60
        with stage.talking("mixed", ALLOWED_SERVER, hellos, forbidden, names, *wanted, *times) as outcomes:
            began = time.monotonic()
            for number in range(1, _SAMPLES + 1):
                time.sleep(max(0.0, began + seconds * number / _SAMPLES - time.monotonic()))
                samples.append(_sample(stage, began))
                if number % (_SAMPLES // 6) == 0:
                    tell(_words(samples[-1]))
        # What was on its way has its verdict by now, or never gets one.
        time.sleep(1.0)
        samples.append(_sample(stage, began))
        tell(_words(samples[-1]))
    return Soak(rates, tuple(samples), outcomes, tuple(problems_of(samples, outcomes)))


def _write_names(path: Path) -> None:
    names = [FORBIDDEN if number % 4 == 0 else allowed_name(number) for number in range(400)]
    path.write_text("\n".join(names) + "\n", encoding="ascii")


def _ceilings(bench: Bench, stage: Stage) -> dict[str, float]:
    """What the censor manages of one kind alone."""
    seconds = bench.scale.seconds
    found = {
        "connections": connection_rate(stage, ALLOWED_SERVER, bench.hellos(), seconds),
        "queries": query_rate(stage, bench.queries(), seconds)[0],
    }
    start = stage.work()
    spent = flood(stage, seconds)
    found["datagrams"] = stage.work().since(start).queued / spent
    return found


def _sample(stage: Stage, began: float) -> Sample:
    assert stage.censor is not None
    state = stage.queues()
    return Sample(
        time.monotonic() - began,
        stage.censor.memory("VmRSS"),
        stage.censor.descriptors(),
        state.queued,
        state.waiting,
        state.dropped,
    )


def problems_of(samples: list[Sample], outcomes: dict[str, int]) -> list[str]:
    """What is wrong with a run whose last sample is from after its end; the first ones are warm-up."""
    warm = samples[int(len(samples) * _WARM_UP) :]
    third = max(1, len(warm) // 3)
    before, after = (statistics.median(one.memory for one in part) for part in (warm[:third], warm[-third:]))
    last = samples[-1]
    found = []
    if after - before > max(_MOST_GROWTH * before, _LEAST_GROWTH_MB):
        found.append(f"memory grew from {before:.0f} to {after:.0f} MB")
    if warm[-1].descriptors > max(one.descriptors for one in warm[:third]):
        found.append(f"descriptors grew from {warm[0].descriptors} to {warm[-1].descriptors}")
    if last.waiting:
        found.append(f"{last.waiting} packets have no verdict")
    if last.dropped > samples[0].dropped:
        found.append(f"queues dropped {last.dropped - samples[0].dropped} packets")
    if last.queued == samples[0].queued:
        found.append("no packet was queued")
    for kind, right in (("allowed", "answer"), ("forbidden", "reset"), ("query", "answer")):
        expected = f"{kind} {right}"
        wrong = [f"{count} {how}" for how, count in outcomes.items() if how.startswith(f"{kind} ") and how != expected]
        if wrong or not outcomes.get(expected):
            found.append(f"{outcomes.get(expected, 0)} {expected}, but {', '.join(wrong) or 'nothing else'}")
    if outcomes.get("unanswered"):
        found.append(f"{outcomes['unanswered']} were never answered")
    return found


def _words(sample: Sample) -> str:
    return (
        f"{sample.seconds:5.0f} s  {sample.memory:6.1f} MB  {sample.descriptors} descriptors  "
        f"{sample.queued:,} packets queued, {sample.waiting} waiting, {sample.dropped} dropped"
    )
