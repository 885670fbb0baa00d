"""Runs cases through the engine alone."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from gfwemu.conformance.addresses import Addresses
from gfwemu.conformance.cases import Case
from gfwemu.conformance.paper import Paper
from gfwemu.conformance.play import Outcome, Play
from gfwemu.conformance.result import Result, judge
from gfwemu.conformance.stage import Path
from gfwemu.netlab.topology import load_topology
from gfwemu.rules.compiled import RuleSet


def lab_path() -> Path:
    """Hops and delay of the lab's default topology, so that both runners agree."""
    way = load_topology("default").path
    return Path(way.inside.hops, way.outside.hops, way.outside.rtt)


def replay_cases(
    rules: RuleSet, cases: Sequence[Case], *, on_result: Callable[[Result], None] = lambda _: None
) -> list[Result]:
    """Each case with a censor of its own; its repetitions share one."""
    path = lab_path()
    found = []
    for case in cases:
        seed = zlib.crc32(case.id.encode()) ^ rules.seed
        paper = Paper(rules, path, Addresses(), start=case.clock, seed=seed)
        outcomes = []
        for number in range(case.repeat):
            outcomes.append(_result_of(Play(case, paper.stage(), number).run()))
            paper.clear()
        result = judge(case, outcomes)
        found.append(result)
        on_result(result)
    return found


def _result_of(played: Coroutine[Any, Any, Outcome]) -> Outcome:
    """On paper nothing is ever waited for, so one step takes a script to its end."""
    try:
        played.send(None)
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome
    raise AssertionError("a script on paper waited")
