"""Tables of results, for the terminal and for the document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gfwemu.conformance.cases import Case, eras_of_cases, load_cases
from gfwemu.conformance.replay import replay_cases
from gfwemu.conformance.result import FAIL, GAP, INCONCLUSIVE, PASS, Result, expected
from gfwemu.errors import UsageError
from gfwemu.rules.catalogue import find_profile, profiles
from gfwemu.rules.load import load_rules

_COLOURS = {PASS: "green", FAIL: "bold red", INCONCLUSIVE: "yellow", GAP: "magenta"}
_EVASIONS = ("Evasions", "Servers that confuse")
"""How the mechanisms of such cases begin."""
_EVIDENCE = {
    "found": "read in a primary source",
    "secondary": "read in a summary of the source",
    "computed": "computed from published raw data",
    "anecdote": "a user's report, not a controlled measurement",
    "recall": "from memory of the literature",
    "inference": "a reading, not a measured fact",
    "guess": "a guess, because something had to be chosen",
}


def print_list(cases: Sequence[Case]) -> None:
    for mechanism, group in groupby(cases, key=lambda case: case.mechanism):
        click.echo(mechanism)
        for case in group:
            click.echo(f"  {case.id:40} {case.evidence:10} {case.where:7} {case.behaviour}")


def print_results(results: Sequence[Result], console: Console, *, quiet: bool) -> None:
    table = Table(show_lines=True, expand=True)
    for name, ratio in (("behaviour", 5), ("source", 3), ("evidence", 0), ("expected", 5), ("observed", 5), ("", 0)):
        table.add_column(name, ratio=ratio or None, no_wrap=not ratio)
    for one in results:
        if quiet and one.verdict == PASS:
            continue
        case = one.case
        observed = one.observed if one.verdict not in (FAIL, GAP) else "; ".join(one.wrong)
        if one.verdict == GAP:
            observed = f"{case.gap}: {observed}"
        table.add_row(
            f"[bold]{escape(case.id)}[/bold]\n{escape(case.behaviour)}",
            escape(case.cite),
            case.evidence,
            escape(expected(case)),
            escape(observed),
            f"[{_COLOURS[one.verdict]}]{one.verdict}[/]",
        )
    if table.row_count:
        console.print(table)


def tally(results: Sequence[Result]) -> str:
    counts = Counter(one.verdict for one in results)
    parts = [f"{counts[PASS]} of {len(results)} cases pass"]
    for verdict, said in ((FAIL, "fail"), (INCONCLUSIVE, "inconclusive"), (GAP, "known gaps")):
        if counts[verdict]:
            names = ", ".join(one.case.id for one in results if one.verdict == verdict)
            parts.append(f"{counts[verdict]} {said}: {names}")
    return "; ".join(parts) + "."


def write_document(path: Path) -> int:
    """Replays every era and writes one document. Returns the exit code. Raises UsageError for a path that cannot be
    written to, before the work begins."""
    try:
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    known = profiles()
    sections, failed, every = [], False, []
    overview = ["| profile | cases | replayed | pass | only live |", "|---|---|---|---|---|"]
    for era in eras_of_cases():
        if era not in known:
            continue
        cases = load_cases(era)
        every += cases
        rules = load_rules([find_profile(era)])
        results = replay_cases(rules, [case for case in cases if case.replayed])
        passed = sum(one.verdict == PASS for one in results)
        failed |= any(one.verdict not in (PASS, GAP) for one in results)
        overview.append(f"| `{era}` | {len(cases)} | {len(results)} | {passed} | {len(cases) - len(results)} |")
        sections.append(_section(era, cases, results, {rule.name: rule.guessed for rule in rules.rules}))
    evidence = "\n".join(f"| {grade} | {meaning} |" for grade, meaning in _EVIDENCE.items())
    text = _HEAD.format(counts=_counts(every), overview="\n".join(overview), evidence=evidence) + "\n".join(sections)
    path.write_text(text, encoding="utf-8")
    click.echo(f"Wrote {path}.")
    return 1 if failed else 0


def _counts(cases: Sequence[Case]) -> str:
    """One sentence; a case that holds for several profiles counts once."""
    unlike = {case.id: case for case in cases}
    kinds = {
        "show what must not happen": {case.id for case in cases if case.must_not},
        "try an evasion": {case.id for case in cases if case.mechanism.startswith(_EVASIONS)},
        "measure a rate": {case.id for case in cases if case.rate is not None},
        "measure delays": {case.id for case in cases if case.delays is not None},
        "are known gaps in some profile": {case.id for case in cases if case.gap},
    }
    told = ", ".join(f"{len(found)} {said}" for said, found in kinds.items())
    return f"{len(unlike)} cases, which hold {len(cases)} times in all profiles together; of them {told}."


def _section(era: str, cases: Sequence[Case], results: Sequence[Result], guessed: Mapping[str, Sequence[str]]) -> str:
    """guessed: of each rule, which of its values are."""
    verdicts = {one.case.id: one for one in results}
    lines = [f"## {era}", ""]
    for mechanism, group in groupby(cases, key=lambda case: case.mechanism):
        mine = list(group)
        lines += [
            f"### {mechanism}",
            "",
            *([mine[0].about, ""] if mine[0].about else []),
            "| case | behaviour | source | evidence | guessed in its rules | expected | observed | |",
        ]
        lines.append("|---|---|---|---|---|---|---|---|")
        for case in mine:
            one = verdicts.get(case.id)
            observed = "a program of the lab: live only" if one is None else one.observed
            verdict = "live" if one is None else f"gap: {case.gap}" if one.verdict == GAP else one.verdict
            behaviour = f"{case.behaviour} *{case.note}*" if case.note else case.behaviour
            guesses = ", ".join(dict.fromkeys(value for rule in case.rules for value in guessed.get(rule, ())))
            cells = (case.id, behaviour, case.cite, case.evidence, guesses, expected(case), observed, verdict)
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


_HEAD = """# Conformance

What was measured, and whether the profiles show it. This page is written by `gfwemu conformance --write`; the cases are
scripts in `rules/cases`, explained in [cases.md](cases.md). Here the engine alone plays them; with
`gfwemu conformance PROFILE` real packets do, in a lab.

{counts}

{overview}

On two cores, a replay of the largest profile takes about 15 seconds, and of all of them two minutes; live, with
`--time-scale 10`, `china` and most others take less than a minute, and `china-2019`, whose probers take their time,
less than three.

Evidence is graded:

| grade | meaning |
|---|---|
{evidence}

"""
