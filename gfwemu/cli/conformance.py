"""`gfwemu conformance`: does a profile do what was measured?"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gfwemu.cli.moments import ScaleRange
from gfwemu.conformance.cases import Case, choose, load_cases
from gfwemu.conformance.replay import replay_cases
from gfwemu.conformance.report import print_list, print_results, tally, write_document
from gfwemu.conformance.result import FAIL, GAP, PASS, Result
from gfwemu.conformance.without import load_without
from gfwemu.errors import UsageError
from gfwemu.rules.catalogue import find_profile

_EPILOG = """\b
Examples:
  gfwemu conformance china
  gfwemu conformance china-2021 --replay
  gfwemu conformance china --case tls-three-injectors --case tls-residual
  gfwemu conformance china --replay --without china-tls-sni
  gfwemu conformance --write docs/conformance.md

\b
Exit codes: 0 every case passed or is a known gap, 1 one failed or was inconclusive, 2 wrong usage, 3 wrong rules
or cases, 4 the machine lacks a capability.
"""


@click.command(epilog=_EPILOG)
@click.argument("profile", default="china")
@click.option("--replay", is_flag=True, help="Through the engine alone: no lab, no waiting.")
@click.option("--case", "wanted", multiple=True, metavar="ID", help="Only this case; may be given several times.")
@click.option("--cases", "era", metavar="NAME", help="Take the cases of that profile (for a rule file of your own).")
@click.option("--list", "list_only", is_flag=True, help="Show the cases and run nothing.")
@click.option("--without", "without", multiple=True, metavar="RULE", help="Disable a rule: which cases notice?")
@click.option("--time-scale", default=10.0, show_default=True, type=ScaleRange(1, 1000),
              help="Live: how much faster the censor's clock runs.")  # fmt: skip
@click.option("--jobs", default=24, show_default=True, type=click.IntRange(1, 60), help="Live: cases at a time.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--write", "document", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Replay every era and write the document about all of them.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Neither progress nor passed cases.")
def conformance(
    profile: str,
    replay: bool,
    wanted: tuple[str, ...],
    era: str | None,
    list_only: bool,
    without: tuple[str, ...],
    time_scale: float,
    jobs: int,
    as_json: bool,
    document: Path | None,
    quiet: bool,
) -> None:
    """Run the cases of a profile and say which published behaviours it shows.

    Each case is a script in rules/cases with its citation and the grade of its evidence. Live,
    real packets cross a real router in a lab; with --replay the engine alone decides, in seconds.
    """
    if document is not None:
        sys.exit(write_document(document))
    path = find_profile(profile)
    cases = choose(load_cases(era or path.stem), wanted)
    if not cases:
        raise UsageError(f"there are no cases for '{era or path.stem}'; see docs/cases.md, or say --cases china")
    if list_only:
        print_list(cases)
        return
    there = [case for case in cases if (case.replayed if replay else case.live)]
    elsewhere = [case.id for case in cases if case not in there]
    if elsewhere and (wanted or not there):
        raise UsageError(f"the case '{elsewhere[0]}' plays only {'in a lab: leave out' if replay else 'with'} --replay")
    results = _run(path, there, without, replay, time_scale, jobs, quiet=quiet or as_json)
    if as_json:
        shown = {
            "profile": profile,
            "replay": replay,
            "without": list(without),
            "cases": [one.as_json() for one in results],
        }
        click.echo(json.dumps(shown, indent=2))
    else:
        print_results(results, Console(width=None if sys.stdout.isatty() else 200), quiet=quiet)
    if without:
        noticed = [one.case.id for one in results if one.verdict in (FAIL, GAP)]
        click.echo(
            f"Without {', '.join(without)}, {len(noticed)} of {len(results)} cases notice: {', '.join(noticed)}",
            err=True,
        )
        return
    if not as_json:
        click.echo(tally(results))
    sys.exit(0 if all(one.verdict in (PASS, GAP) for one in results) else 1)


def _run(
    path: Path,
    cases: Sequence[Case],
    without: Sequence[str],
    replay: bool,
    time_scale: float,
    jobs: int,
    *,
    quiet: bool,
) -> list[Result]:
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty(),
    )  # fmt: skip
    with progress, load_without(path, without) as loaded:
        task = progress.add_task("replaying" if replay else "playing", total=len(cases))

        def tell(result: Result) -> None:
            progress.update(task, advance=1, description=result.case.id)

        if replay:
            return replay_cases(loaded.rules, cases, on_result=tell)
        from gfwemu.conformance.live import play_live

        return play_live(loaded.path, cases, time_scale=time_scale, jobs=jobs, on_result=tell)
