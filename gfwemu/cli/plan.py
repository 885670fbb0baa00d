"""`gfwemu plan`: what of the traffic enters user space, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gfwemu.errors import UsageError
from gfwemu.kernel.ruleset import Ends, Lifetimes, content_text, frame_text, objects_text
from gfwemu.rules.catalogue import find_profile
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.explain import Explanation, Line, explain, together
from gfwemu.rules.load import load_rules
from gfwemu.rules.plan import KernelPlan, compile_plan

_FEW, _ALL = 2, 1 << 16
"""Reasons that are named for one thing."""


@click.command()
@click.argument("rules", nargs=-1, required=True, metavar="RULES...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@click.option("--table", "as_table", is_flag=True, help="The nftables table instead; address lists are left out.")
@click.option("--all", "everything", is_flag=True, help="Every rule and every reason by name.")
def plan(rules: tuple[str, ...], as_json: bool, as_table: bool, everything: bool) -> None:
    """Explain what the kernel decides alone under RULES, what user space must see, and which rule forces it.

    RULES are paths or names of shipped profiles, loaded together. What is slow about a rule file stands under `costs`.

    \b
    gfwemu plan china
    gfwemu plan china --all
    gfwemu plan my-rules.yaml --table
    """
    if as_json and as_table:
        raise UsageError("say either --json or --table")
    loaded = load_rules([find_profile(name) for name in rules])
    made = compile_plan(loaded)
    if as_table:
        click.echo(_table_text(made), nl=False)
    elif as_json:
        click.echo(json.dumps(_summary(loaded, made), indent=2))
    else:
        _tell(rules, loaded, explain(loaded, made), everything=everything)


def _table_text(made: KernelPlan) -> str:
    ends = Ends("INSIDE", "OUTSIDE")
    limits = Lifetimes()
    return (
        frame_text("gfwemu", ends, limits.limit)
        + objects_text("gfwemu", made, 1)
        + content_text("gfwemu", made, 1, limits)
    )


def _summary(rules: RuleSet, made: KernelPlan) -> dict[str, object]:
    return {
        "rules": len({rule.name for rule in rules.rules}),
        "offload": made.offload,
        "fail_open": made.fail_open,
        "spared": asdict(made.spared),
        **{part: [asdict(line) for line in lines] for part, lines in _parts(explain(rules, made)).items()},
    }


def _parts(text: Explanation) -> dict[str, tuple[Line, ...]]:
    return {"queued": text.queued, "kernel": text.kernel, "residual": text.residual, "costs": text.costs}


def _tell(names: Sequence[str], rules: RuleSet, text: Explanation, *, everything: bool) -> None:
    console = Console(highlight=False)
    count = len({rule.name for rule in rules.rules})
    title = ", ".join(Path(name).name for name in names)
    console.print(Text(f"{title}: {count} rules", style="bold"))
    nothing = (Line("nothing", ""),)
    for heading, lines in (
        ("costs, dearest first", text.costs),
        ("enters user space", text.queued or nothing),
        ("the kernel does alone", text.kernel or nothing),
        ("residual blocks: what they meet is queued, decided or not", text.residual),
    ):
        if lines:
            console.print(Text(heading, style="bold"))
            console.print(_grid(lines if everything else together(lines), _ALL if everything else _FEW))


def _grid(lines: Sequence[Line], most: int) -> Padding:
    grid = Table.grid(padding=(0, 2), expand=False)
    grid.add_column(max_width=24)
    grid.add_column()
    for line in lines:
        more = len(line.because) - most
        shown = ", ".join(line.because[:most]) + (f" and {more} more" if more > 0 else "")
        grid.add_row(Text(line.what), Text(f"{line.how} ({shown})" if shown else line.how))
    return Padding(grid, (0, 0, 0, 2))
