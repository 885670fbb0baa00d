"""New TCP connections, each with a ClientHello of an allowed name, against plain forwarding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.censor import MeasureError
from benchmarks.figures import Figure, Rounds, Target
from benchmarks.stage import Bench, Stage
from benchmarks.workload import ALLOWED_SERVER

NAME = "connections"
_PORTS = (443, 8443, 9443, 10443)
"""Several, so that the client does not run out of ports of its own."""
_AT_ONCE = 32
_ANSWER = 100
_MOST_FAILED = 0.001
_LEAST_QUEUED = 0.9
"""Packets for each connection. Below that, ClientHellos passed unseen."""
_NEAR = 0.9
"""A plain rate above this share of the generator's own is the generator's."""


def measure(bench: Bench) -> list[Figure]:
    rounds = Rounds()
    hellos, seconds = bench.hellos(), bench.scale.seconds
    answers = "answers", _ANSWER, *_PORTS
    with bench.both() as (plain, censored), plain.serve(*answers), censored.serve(*answers):
        rounds.add(ceiling=connection_rate(plain, "127.0.0.1", hellos, seconds, "internet"))
        for _ in range(bench.scale.rounds):
            rounds.add(plain=connection_rate(plain, ALLOWED_SERVER, hellos, seconds))
            start = censored.work()
            rounds.add(censored=connection_rate(censored, ALLOWED_SERVER, hellos, seconds))
            end = censored.work()
            each = end.since(start).queued / (rounds["censored"][-1] * seconds)
            if each < _LEAST_QUEUED:
                raise MeasureError("fewer packets were queued than there were ClientHellos")
    plain_figure = Figure("connections-plain", "new connections, plain forwarding", "/s", rounds["plain"])
    ceiling = rounds["ceiling"][0]
    bound = ": it is the limit here" if plain_figure.median > _NEAR * ceiling else ""
    return [
        Figure(
            plain_figure.name,
            plain_figure.title,
            plain_figure.unit,
            plain_figure.values,
            note=f"generator over loopback: {ceiling:,.0f}/s{bound}",
        ),
        Figure(
            "connections",
            f"new connections with a ClientHello, {bench.scale.names:,} suffixes",
            "of plain",
            rounds.ratios("censored", "plain"),
            Target(0.6, "at least"),
            f"{each:.1f} packets queued a connection; {end.since(start).words(seconds)}",
        ),
    ]


def connection_rate(stage: Stage, server: str, hellos: Path, seconds: float, node: str = "client") -> float:
    """Answered connections a second. Raises MeasureError where some fail."""
    found: dict[str, Any] = stage.traffic(
        "connections", server, hellos, seconds, _AT_ONCE, *_PORTS, timeout=seconds + 30, node=node
    )
    if found["failed"] > _MOST_FAILED * found["answered"]:
        raise MeasureError(f"{found['failed']} of {found['answered'] + found['failed']} connections failed")
    return float(found["answered"] / found["seconds"])
