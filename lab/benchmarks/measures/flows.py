"""Memory of the engine with many TCP flows that it still reads: handshake done, half a ClientHello seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.censor import MeasureError
from benchmarks.figures import Figure, Rounds, Target
from benchmarks.stage import Bench

NAME = "flows"
_MOST_ROUNDS = 2
"""It takes long, and is nearly the same each time."""
_LAB = Path(__file__).resolve().parents[2]


def measure(bench: Bench) -> list[Figure]:
    rounds = Rounds()
    flows = bench.scale.flows
    for _ in range(min(bench.scale.rounds, _MOST_ROUNDS)):
        # A process of its own each time: memory that an earlier round gave back would not count.
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.live_flows", str(bench.profile()), str(flows)],
            cwd=_LAB,
            capture_output=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            raise MeasureError(done.stderr.decode(errors="replace").strip()[-500:])
        found = json.loads(done.stdout)
        if found["flows"] != flows:
            raise MeasureError(f"the engine remembers {found['flows']} flows, not {flows}")
        rounds.add(added=found["added"], idle=found["idle"])
    return [
        Figure(
            "flows-memory",
            f"memory for {flows:,} live flows under inspection",
            "MB",
            rounds["added"],
            Target(250, "at most"),
            f"engine alone, {max(rounds['idle']):.0f} MB before",
        )
    ]
