"""UDP packets a second that one worker decides when none may be left to the kernel."""

from __future__ import annotations

from benchmarks.censor import MeasureError
from benchmarks.figures import Figure, Rounds, Target
from benchmarks.stage import Bench, Stage
from benchmarks.workload import ALLOWED_SERVER, UNSETTLED_PORT

NAME = "packets"
_SIZE = 200
_FLOWS = 50
_HEADROOM = 1.2
"""So much more than the censor decides must arrive without it; else the generator is what was measured."""


def measure(bench: Bench) -> list[Figure]:
    rounds = Rounds()
    seconds = bench.scale.seconds
    with (
        bench.both() as (plain, censored),
        plain.serve("sink", UNSETTLED_PORT),
        censored.serve("sink", UNSETTLED_PORT),
    ):
        for _ in range(bench.scale.rounds):
            before = plain.received()
            spent = flood(plain, seconds)
            rounds.add(plain=(plain.received() - before) / spent)
            start = censored.work()
            spent = flood(censored, seconds)
            end = censored.work()
            rounds.add(queued=end.since(start).queued / spent)
    plain_figure = Figure(
        "packets-plain", f"UDP packets of {_SIZE} bytes, plain forwarding", "/s", rounds["plain"], note="the generator"
    )
    figure = Figure("packets", "UDP packets that stay queued, one worker", "/s", rounds["queued"])
    if not figure.median:
        raise MeasureError("no packet was queued")
    limit = end.since(start).words(spent)
    if plain_figure.median < _HEADROOM * figure.median:
        limit = f"the generator is the limit; {limit}"
    return [
        plain_figure,
        Figure(figure.name, figure.title, figure.unit, figure.values, Target(60_000, "at least"), limit),
    ]


def flood(stage: Stage, seconds: float) -> float:
    """How many seconds it lasted."""
    found = stage.traffic("datagrams", ALLOWED_SERVER, UNSETTLED_PORT, _SIZE, _FLOWS, seconds, timeout=seconds + 30)
    return float(found["seconds"])
