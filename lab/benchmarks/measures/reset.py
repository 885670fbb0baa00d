"""How long after a forbidden ClientHello the client has the in-path reset."""

from __future__ import annotations

from benchmarks.censor import MeasureError
from benchmarks.figures import Figure, Rounds, Target, quantile
from benchmarks.stage import Bench
from benchmarks.workload import ALLOWED_SERVER, FORBIDDEN, client_hello

NAME = "reset"
_PORT = 443


def measure(bench: Bench) -> list[Figure]:
    rounds = Rounds()
    hello = bench.kept("forbidden.hellos", lambda path: path.write_text(client_hello(FORBIDDEN).hex(), "ascii"))
    count = bench.scale.exchanges
    with bench.censored() as stage, stage.serve("answers", 100, _PORT):
        for _ in range(bench.scale.rounds):
            found = stage.traffic("exchanges", ALLOWED_SERVER, _PORT, hello, count, 20, timeout=60)
            if set(found["outcomes"]) != {"reset"}:
                raise MeasureError(f"connections ended otherwise than with a reset: {found['outcomes']}")
            times = [seconds * 1e3 for seconds in found["reaction"]]
            rounds.add(median=quantile(times, 0.5), p99=quantile(times, 0.99))
    note = f"{count:,} resets a round"
    return [
        Figure(
            "reset-median",
            "in-path reset after the ClientHello: median",
            "ms",
            rounds["median"],
            Target(1.0, "at most"),
            note,
        ),
        Figure(
            "reset-p99", "in-path reset after the ClientHello: p99", "ms", rounds["p99"], Target(5.0, "at most"), note
        ),
    ]
