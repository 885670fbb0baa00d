"""`gfwemu replay` of a capture of ordinary traffic. What it takes to start and to load the lists does not count."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.capture import write_capture
from benchmarks.censor import MeasureError
from benchmarks.figures import Figure, Rounds, Target
from benchmarks.stage import Bench

NAME = "replay"


def measure(bench: Bench) -> list[Figure]:
    rounds = Rounds()
    count = bench.scale.replay_packets
    large = bench.kept("ordinary.pcap", lambda path: write_capture(path, count))
    small = bench.kept("short.pcap", lambda path: write_capture(path, 10))
    for _ in range(bench.scale.rounds):
        base, base_cpu, _ = _replay(small, bench.profile())
        seconds, cpu, found = _replay(large, bench.profile())
        packets = int(found["totals"]["packets"])
        if packets < count:
            raise MeasureError(f"replay read {packets} of {count} packets")
        rounds.add(rate=packets / (seconds - base), base=base, cpu=(cpu - base_cpu) / packets * 1e6)
    return [
        Figure(
            "replay",
            f"replay of ordinary traffic, {bench.scale.names:,} suffixes",
            "packets/s",
            rounds["rate"],
            Target(100_000, "at least"),
            f"{packets:,}, {min(rounds['cpu']):.1f} us of CPU each; {max(rounds['base']):.1f} s of start left out",
        )
    ]


def _replay(capture: Path, rules: Path) -> tuple[float, float, dict[str, Any]]:
    """Seconds, seconds of CPU, and what it says."""
    argv = [sys.executable, "-P", "-m", "gfwemu", "replay", str(capture), "--rules", str(rules), "--json"]
    began, used = time.perf_counter(), _children_cpu()
    done = subprocess.run(argv, capture_output=True, timeout=300, check=False)
    seconds, cpu = time.perf_counter() - began, _children_cpu() - used
    if done.returncode:
        raise MeasureError(done.stderr.decode(errors="replace").strip()[-500:])
    found: dict[str, Any] = json.loads(done.stdout)
    return seconds, cpu, found


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
