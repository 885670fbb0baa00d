"""What came of a case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gfwemu.conformance.cases import Case
from gfwemu.conformance.language import Expect, Forged
from gfwemu.conformance.play import Outcome
from gfwemu.conformance.rates import interval
from gfwemu.conformance.specs import Range

PASS, FAIL, INCONCLUSIVE, GAP = "pass", "FAIL", "inconclusive", "gap"
"""A gap is a failure that the case file owns up to."""
_ENOUGH = 0.9
"""Of the repetitions of a rate, this share must have been conclusive."""


@dataclass(frozen=True, slots=True)
class Result:
    """A case's verdict with what was expected and what was seen."""

    case: Case
    verdict: str
    observed: str
    wrong: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        case = self.case
        return {
            "id": case.id,
            "mechanism": case.mechanism,
            "behaviour": case.behaviour,
            "cite": case.cite,
            "evidence": case.evidence,
            "rules": list(case.rules),
            "must_not": case.must_not,
            "note": case.note,
            "gap": case.gap,
            "expected": expected(case),
            "observed": self.observed,
            "wrong": self.wrong,
            "verdict": self.verdict.lower(),
        }


def judge(case: Case, outcomes: Sequence[Outcome]) -> Result:
    """All repetitions together."""
    good = [one for one in outcomes if not one.inconclusive]
    if not good or len(good) < _ENOUGH * len(outcomes):
        reason = next(one.inconclusive for one in outcomes if one.inconclusive)
        return Result(case, INCONCLUSIVE, reason)
    observed = "; ".join(part for part in dict.fromkeys(good[0].observed) if part) or "nothing"
    wrong: list[str] = []
    if case.rate is not None:
        hits = sum(not one.wrong for one in good)
        low, high = interval(case.rate.published, case.rate.tolerance, len(good))
        observed = f"{hits} of {len(good)} ({hits / len(good):.0%})"
        if not low <= hits <= high:
            wrong.append(f"{hits} of {len(good)} is not within {low} to {high}")
    else:
        failed = [one for one in good if one.wrong]
        if failed:
            wrong += failed[0].wrong
            observed = "; ".join(part for part in dict.fromkeys(failed[0].observed) if part) or "nothing"
            if len(good) > 1:
                wrong.append(f"in {len(failed)} of {len(good)} repetitions")
    if case.delays is not None:
        said, amiss = _delays(case, [one.delay for one in good if one.delay is not None])
        observed, wrong = f"{observed}; {said}" if case.rate else said, wrong + amiss
    return Result(case, PASS if not wrong else GAP if case.gap else FAIL, observed, wrong)


def _delays(case: Case, delays: Sequence[float]) -> tuple[str, list[str]]:
    if not delays:
        return "no injection", ["there is no delay to measure"]
    ordered = sorted(delays)
    assert case.delays is not None
    said, amiss = [], []
    for name, share in (("p5", 0.05), ("p50", 0.5), ("p95", 0.95)):
        bounds = getattr(case.delays, name)
        if bounds is None:
            continue
        value = ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))]
        said.append(f"{name} {value * 1000:.1f} ms")
        if not bounds[0] <= value <= bounds[1]:
            amiss.append(f"{name} is {value * 1000:.1f} ms, not within {bounds[0] * 1000:g} to {bounds[1] * 1000:g}")
    return ", ".join(said), amiss


def expected(case: Case) -> str:
    """What the case expects, in words."""
    parts = []
    for step in case.steps:
        if step.verb == "expect" and step.expect is not None:
            parts.append(_expectation(step.expect))
        elif step.verb == "try":
            parts.append(f"a later flow: {step.outcome}")
    if case.expect is not None:
        parts.append(_expectation(case.expect))
    text = "; ".join(part for part in parts if part)
    if case.rate is not None:
        text += f"; in {case.rate.published:.0%} of {case.repeat}"
        if case.rate.not_:
            text += f" (not {', '.join(f'{one:.0%}' for one in case.rate.not_)})"
    elif case.repeat > 1:
        text += f"; each of {case.repeat}"
    if case.delays is not None:
        bounds = {name: getattr(case.delays, name) for name in ("p5", "p50", "p95")}
        said = [
            f"{name} {low * 1000:g}-{high * 1000:g} ms" for name, pair in bounds.items() if pair for low, high in [pair]
        ]
        text += f"; delay {', '.join(said)}"
    return text


def _expectation(expect: Expect) -> str:
    parts = []
    for place, forged in (("client", expect.at_client), ("server", expect.at_server)):
        if isinstance(forged, Range):
            parts.append(f"{forged} injected at the {place}" if forged.high else f"nothing injected at the {place}")
        elif forged is not None:
            parts.append(f"at the {place}: {', '.join(map(_forged, forged)) or 'nothing injected'}")
    for name in ("delivered", "answered", "packets_delivered", "packets_answered"):
        if getattr(expect, name) is not None:
            parts.append(f"{name.replace('_', ' ')} {getattr(expect, name)}")
    if expect.server_reads is not None:
        parts.append("the server reads all" if expect.server_reads else "the server does not read all")
    if expect.connection is not None:
        parts.append(f"connection {expect.connection}")
    if expect.probes is not None:
        parts.append(f"{expect.probes} probes")
    if expect.suspected is not None:
        parts.append("probes ordered" if expect.suspected else "no probes ordered")
    if expect.real_answer is not None:
        parts.append(f"real answer {expect.real_answer}")
    if expect.exit is not None:
        parts.append(f"exit {expect.exit}")
    if expect.took is not None:
        parts.append(f"took {expect.took[0]:g}-{expect.took[1]:g} s")
    if expect.output is not None:
        parts.append(f"output '{expect.output}'")
    return ", ".join(parts)


def _forged(kind: Forged) -> str:
    told = []
    for name, value in kind.model_dump(exclude_defaults=True, exclude={"count", "flags", "dns"}).items():
        shown = getattr(kind, name)
        if name == "delay":
            shown = f"{value[0] * 1000:g}-{value[1] * 1000:g} ms"
        elif name == "id":
            shown = kind.id.in_hex if kind.id else ""
        elif isinstance(shown, list | tuple):
            shown = "/".join(map(str, shown))
        told.append(f"{name} {shown}")
    if kind.dns is not None:
        for name in (one for one in type(kind.dns).model_fields if one in kind.dns.model_fields_set):
            shown = getattr(kind.dns, name)
            if name == "flags":
                shown = kind.dns.flags.in_hex if kind.dns.flags else ""
            told.append(f"DNS {name} {' '.join(shown) if isinstance(shown, list) else shown}")
    what = kind.flags or ("answer" if kind.dns else "packet")
    return f"{kind.count} x {what}" + (f" ({', '.join(told)})" if told else "")
