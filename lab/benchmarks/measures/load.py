"""Start of the daemon with very large lists: until it is ready, and its memory then."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, Rounds, Target
from benchmarks.stage import Bench, MeasureError, Stage
from benchmarks.workload import write_profile

NAME = "load"
_LONGEST = 120.0
_READY = b"gfwemu: ready:"


def measure(bench: Bench) -> list[Figure]:
    rounds = Rounds()
    scale = bench.scale
    folder = bench.kept("huge", lambda path: write_profile(path, scale.huge_names, scale.huge_networks))
    with bench.plain() as stage:
        for _ in range(scale.rounds):
            _start(stage, folder / "rules.yaml", rounds)
    lists = f"{scale.huge_names:,} domains + {scale.huge_networks:,} prefixes"
    return [
        Figure("load-time", f"start with {lists}", "s", rounds["seconds"], Target(10, "at most")),
        Figure(
            "load-memory",
            f"daemon's memory with {lists}",
            "MB",
            rounds["memory"],
            Target(600, "at most"),
            f"{max(rounds['peak']):.0f} MB at most while it loaded",
        ),
    ]


def _start(stage: Stage, rules: Path, rounds: Rounds) -> None:
    argv = [sys.executable, "-P", "-m", "gfwemu", "daemon", "-c", str(rules), "--inside", "inside"]
    argv += ["--outside", "outside"]
    began = time.perf_counter()
    process = stage.lab.popen(
        "censor", argv, as_root=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        said = b""
        for line in process.stderr:
            said += line
            if line.startswith(_READY):
                break
        else:
            raise MeasureError(f"the daemon did not start: {said.decode(errors='replace').strip()[-500:]}")
        seconds = time.perf_counter() - began
        (daemon,) = _children(process.pid)
        rounds.add(seconds=seconds, memory=memory(daemon, "VmRSS"), peak=memory(daemon, "VmHWM"))
    finally:
        process.terminate()
        process.wait(_LONGEST)
        process.stderr.close()


def memory(pid: int, field: str) -> float:
    """In MB (10^6 bytes), as proc(5) names the fields of status."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise MeasureError(f"/proc/{pid}/status has no {field}")
    return int(found[1]) * 1024 / 1e6


def _children(pid: int) -> Iterator[int]:
    return map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
