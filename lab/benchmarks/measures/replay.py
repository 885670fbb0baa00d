"""`gfwemu replay` of a capture of ordinary traffic. What it takes to start and to load the lists does not count."""

from __future__ import annotations

import contextlib
import fcntl
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.capture import write_capture
from benchmarks.censor import Censor, MeasureError
from benchmarks.figures import Figure, Rounds, Target
from benchmarks.stage import Bench

NAME = "replay"


def measure(bench: Bench) -> list[Figure]:
    rounds = Rounds()
    count = bench.scale.replay_packets
    capture = bench.kept("ordinary.pcap", lambda path: write_capture(path, count)).read_bytes()
    for _ in range(bench.scale.rounds):
        _replay(capture, count, bench.profile(), rounds)
    note = f"{count:,}, {min(rounds['cpu']) * 1e6:.1f} us of CPU each; {min(rounds['start']):.1f} s of start left out"
    return [
        Figure(
            "replay",
            f"replay of ordinary traffic, {bench.scale.names:,} suffixes",
            "packets/s",
            rounds["rate"],
            Target(100_000, "at least"),
            note,
        )
    ]


def _replay(capture: bytes, count: int, rules: Path, rounds: Rounds) -> None:
    """The capture comes by a pipe: once more than a pipe holds is gone, the lists are loaded and the clock starts."""
    argv = [sys.executable, "-P", "-m", "gfwemu", "replay", "-", "--rules", str(rules), "--json"]
    began, used = time.perf_counter(), _children_cpu()
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    with process:
        assert process.stdin is not None
        held = fcntl.fcntl(process.stdin, fcntl.F_GETPIPE_SZ) + 1
        started, cpu = began, 0.0
        # It says itself why it ended early.
        with contextlib.suppress(BrokenPipeError):
            _write_all(process, capture[:held])
            started, cpu = time.perf_counter(), Censor(process.pid).cpu()
            _write_all(process, capture[held:])
        out, err = process.communicate()
        ended = time.perf_counter()
    if process.returncode:
        raise MeasureError(err.decode(errors="replace").strip()[-500:])
    packets = int(json.loads(out)["totals"]["packets"])
    if packets != count:
        raise MeasureError(f"replay read {packets} of {count} packets")
    cpu = _children_cpu() - used - cpu
    rounds.add(rate=packets / (ended - started), start=started - began, cpu=cpu / packets)


def _write_all(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    view = memoryview(data)
    while view:
        view = view[process.stdin.write(view) :]


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
