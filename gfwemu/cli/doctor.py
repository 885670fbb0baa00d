"""`gfwemu doctor`: what this machine has, what it lacks, and the fix."""

from __future__ import annotations

import json
import sys

import click
from rich.console import Console
from rich.table import Table

from gfwemu.kernel.capabilities import Capability, can_run, examine


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Say whether `gfwemu run` can work on this machine, and how to mend what is missing.

    Exit code 0 where it can, else 4. Nothing is changed: what must be tried is tried in namespaces of its own.
    """
    found = examine()
    works = can_run(found)
    if as_json:
        click.echo(json.dumps({"run": works, "capabilities": [item.as_json() for item in found]}, indent=2))
    else:
        _print(found, works)
    sys.exit(0 if works else 4)


def _print(found: list[Capability], works: bool) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("capability", "have", "needed for", "fix"):
        table.add_column(name, overflow="fold")
    for item in sorted(found, key=lambda item: ("run", "daemon", "extra").index(item.need)):
        have = "yes" if item.have else "no" if item.need == "extra" else "[bold red]no[/]"
        remedy = item.fix if not item.have else ""
        table.add_row(
            item.name, have, item.needed_for, remedy if not item.found else f"{remedy} ({item.found})".strip()
        )
    console = Console()
    console.print(table)
    console.print()
    console.print("[bold]gfwemu run can work here.[/]" if works else "[bold red]gfwemu run cannot work here.[/]")
