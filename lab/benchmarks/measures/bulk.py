"""Bulk TCP: a download by iperf3, plain, allowed by the big profile, and counted by one of its rules for ever.

Over links with offloads, as network cards have them: else splitting and joining packets is most of what is measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from benchmarks.censor import MeasureError
from benchmarks.figures import Figure, Rounds, Target
from benchmarks.stage import Bench, Stage
from benchmarks.workload import ALLOWED_SERVER, FROZEN_SERVER

NAME = "bulk"
_LEAST_QUEUED = 0.3
"""Of a counted flow's bytes, in packets as large as they get before they are split into segments."""

_LARGEST_PACKET = 65_536


def measure(bench: Bench) -> list[Figure]:
    rounds = Rounds()
    seconds = bench.scale.seconds
    listening = ["iperf3", "--server", "--forceflush"], b"listening"
    with bench.both(offloads=True) as (plain, censored), plain.serving(*listening), censored.serving(*listening):
        rounds.add(ceiling=_gigabits(plain, "127.0.0.1", seconds, "internet"))
        for _ in range(bench.scale.rounds):
            rounds.add(plain=_gigabits(plain, ALLOWED_SERVER, seconds))
            with _tracked(plain):
                rounds.add(tracked=_gigabits(plain, ALLOWED_SERVER, seconds))
            start = censored.work()
            rounds.add(allowed=_gigabits(censored, ALLOWED_SERVER, seconds))
            middle = censored.work()
            rounds.add(counted=_gigabits(censored, FROZEN_SERVER, seconds))
            end = censored.work()
            packets = rounds["counted"][-1] * 1e9 / 8 * seconds / _LARGEST_PACKET
            if end.queued - middle.queued < _LEAST_QUEUED * packets:
                raise MeasureError(
                    f"only {end.queued - middle.queued} packets for {packets:.0f} times 64 KB were queued"
                )
    return [
        Figure(
            "bulk-plain",
            "bulk TCP, plain forwarding",
            "Gbit/s",
            rounds["plain"],
            note=f"iperf3 over one namespace's loopback: {rounds['ceiling'][0]:.1f} Gbit/s",
        ),
        Figure(
            "bulk-tracked",
            "bulk TCP, connection tracking and nothing else",
            "of plain",
            rounds.ratios("tracked", "plain"),
            note="what the kernel's own answer for decided flows costs at least",
        ),
        Figure(
            "bulk-allowed",
            "bulk TCP, allowed flow, big profile",
            "of plain",
            rounds.ratios("allowed", "plain"),
            Target(0.95, "at least"),
            middle.since(start).words(seconds),
        ),
        Figure(
            "bulk-queued",
            "bulk TCP, every packet stays queued",
            "of plain",
            rounds.ratios("counted", "plain"),
            Target(0.5, "at least"),
            end.since(middle).words(seconds),
        ),
    ]


@contextlib.contextmanager
def _tracked(stage: Stage) -> Iterator[None]:
    """The plain router tracks connections inside the block, as it must for any answer by connection mark."""
    chain = "add chain inet tracked forward { type filter hook forward priority 0; }"
    rule = "add rule inet tracked forward ct state established accept"
    stage.run(["nft", f"add table inet tracked; {chain}; {rule}"], timeout=10, node="censor", as_root=True)
    try:
        yield
    finally:
        stage.run(["nft", "delete table inet tracked"], timeout=10, node="censor", as_root=True)


def _gigabits(stage: Stage, server: str, seconds: int, node: str = "client") -> float:
    """What the receiver got."""
    argv = ["iperf3", "--client", server, "--reverse", "--json", "--time", str(seconds)]
    found = stage.json(argv, timeout=seconds + 30, node=node)
    return float(found["end"]["sum_received"]["bits_per_second"]) / 1e9
