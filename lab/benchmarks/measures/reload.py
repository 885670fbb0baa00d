"""How long packets wait at most while very large lists are loaded anew: a pulse of datagrams that stay queued."""

from __future__ import annotations

import time

from benchmarks.censor import MeasureError
from benchmarks.figures import Figure, Rounds, Target
from benchmarks.stage import Bench
from benchmarks.workload import ALLOWED_SERVER, UNSETTLED_PORT

NAME = "reload"
_QUIET_SECONDS = 1.0
_LONGEST = 60.0


def measure(bench: Bench) -> list[Figure]:
    rounds = Rounds()
    scale = bench.scale
    rules = bench.huge_profile()
    with bench.censored(rules) as stage, stage.serve("echo", ALLOWED_SERVER, UNSETTLED_PORT):
        censor = stage.censor
        assert censor is not None
        for _ in range(scale.rounds):
            with stage.talking("pulse", ALLOWED_SERVER, UNSETTLED_PORT, _LONGEST) as quiet:
                time.sleep(_QUIET_SECONDS)
            with stage.talking("pulse", ALLOWED_SERVER, UNSETTLED_PORT, _LONGEST) as busy:
                seconds = censor.reload(_LONGEST)
            for found in (quiet, busy):
                if found["lost"]:
                    raise MeasureError(f"{found['lost']} of {found['sent']} packets were lost")
            rounds.add(quiet=quiet["longest"] * 1e3, busy=busy["longest"] * 1e3, seconds=seconds)
        memory = censor.memory("VmHWM")
    lists = f"{scale.huge_names:,} domains + {scale.huge_networks:,} prefixes"
    return [
        Figure(
            "reload-pause",
            f"longest wait of a packet while {lists} are loaded anew",
            "ms",
            rounds["busy"],
            Target(50, "at most"),
            f"{max(rounds['quiet']):.1f} ms at most without; {min(rounds['seconds']):.1f} s until the new rules "
            f"are in force; {memory:.0f} MB at most",
        )
    ]
