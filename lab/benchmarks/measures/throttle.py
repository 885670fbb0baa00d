"""The daemon's CPU while it holds a download to a rate: what would be saved if the kernel did it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.censor import MeasureError
from benchmarks.figures import Figure, Rounds
from benchmarks.stage import Bench
from benchmarks.workload import ALLOWED_SERVER

NAME = "throttle"
_RATE = 10
"""Mbit/s. Our choice: far above what censors throttle to, so that there is something to measure."""
_FAR = 0.3
"""Of the rate. So far off, something else is the limit."""

_RULES = f"""\
version: 1
rules:
  - name: slow
    match: {{transport: tcp, ip.server: {ALLOWED_SERVER}}}
    action: throttle
    with: {{rate: {_RATE}mbit, mode: shape}}
"""


def measure(bench: Bench) -> list[Figure]:
    rounds, seconds = Rounds(), bench.scale.seconds
    argv = ["iperf3", "--client", ALLOWED_SERVER, "--reverse", "--json", "--time", str(seconds)]
    with tempfile.TemporaryDirectory(dir=bench.directory) as folder:
        rules = Path(folder) / "rules.yaml"
        rules.write_text(_RULES, encoding="ascii")
        with bench.censored(rules) as stage, stage.serving(["iperf3", "--server", "--forceflush"], b"listening"):
            for _ in range(bench.scale.rounds):
                start = stage.work()
                found = stage.json(argv, timeout=seconds + 30)
                end = stage.work()
                got = found["end"]["sum_received"]["bits_per_second"] / 1e6
                if abs(got - _RATE) > _FAR * _RATE:
                    raise MeasureError(f"{got:.1f} Mbit/s came through, {_RATE} were to")
                rounds.add(cpu=end.since(start).cpu / seconds * 100)
    note = end.since(start).words(seconds)
    return [Figure("throttle", f"download held to {_RATE} Mbit/s", "% of a CPU", rounds["cpu"], note=note)]
