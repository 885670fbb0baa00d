"""Start of the daemon with very large lists: until it is ready, and its memory then."""

from __future__ import annotations

from benchmarks.figures import Figure, Rounds, Target
from benchmarks.stage import Bench

NAME = "load"


def measure(bench: Bench) -> list[Figure]:
    rounds = Rounds()
    scale = bench.scale
    for _ in range(scale.rounds):
        with bench.censored(bench.huge_profile()) as stage:
            censor = stage.censor
            assert censor is not None
            rounds.add(seconds=censor.start_seconds, cpu=censor.cpu())
            rounds.add(memory=censor.memory("VmRSS"), peak=censor.memory("VmHWM"))
    lists = f"{scale.huge_names:,} domains + {scale.huge_networks:,} prefixes"
    return [
        Figure(
            "load-time",
            f"start with {lists}",
            "s",
            rounds["seconds"],
            Target(10, "at most"),
            f"{min(rounds['cpu']):.1f} s of CPU",
        ),
        Figure(
            "load-memory",
            f"daemon's memory with {lists}",
            "MB",
            rounds["memory"],
            Target(600, "at most"),
            f"{max(rounds['peak']):.0f} MB at most while it loaded",
        ),
    ]
