"""`gfwemu replay` of a capture of ordinary traffic. What it takes to start and to load the lists does not count."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.capture import write_capture
from benchmarks.figures import Figure, Rounds, Target
from benchmarks.stage import Bench, MeasureError

NAME = "replay"


def measure(bench: Bench) -> list[Figure]:
    rounds = Rounds()
    count = bench.scale.replay_packets
    large = bench.kept("ordinary.pcap", lambda path: write_capture(path, count))
    small = bench.kept("short.pcap", lambda path: write_capture(path, 10))
    for _ in range(bench.scale.rounds):
        base, _ = _replay(small, bench.profile())
        seconds, found = _replay(large, bench.profile())
        packets = int(found["totals"]["packets"])
        if packets < count:
            raise MeasureError(f"replay read {packets} of {count} packets")
        rounds.add(rate=packets / (seconds - base), base=base)
    return [
        Figure(
            "replay",
            f"replay of ordinary traffic, {bench.scale.names:,} suffixes",
            "packets/s",
            rounds["rate"],
            Target(100_000, "at least"),
            f"{packets:,} packets; start and lists take {max(rounds['base']):.1f} s, which are left out",
        )
    ]


def _replay(capture: Path, rules: Path) -> tuple[float, dict[str, Any]]:
    argv = [sys.executable, "-P", "-m", "gfwemu", "replay", str(capture), "--rules", str(rules), "--json"]
    began = time.perf_counter()
    done = subprocess.run(argv, capture_output=True, timeout=300, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise MeasureError(done.stderr.decode(errors="replace").strip()[-500:])
    found: dict[str, Any] = json.loads(done.stdout)
    return seconds, found
