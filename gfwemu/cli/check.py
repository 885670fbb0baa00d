"""`gfwemu check`: is a rule file right, and what is in it."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from gfwemu.errors import RulesError
from gfwemu.rules.catalogue import find_profile
from gfwemu.rules.load import Loaded, load
from gfwemu.rules.plan import KernelPlan, compile_plan


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def check(files: tuple[str, ...], as_json: bool) -> None:
    """Check rule files, with their includes and lists, and say what is in them.

    FILE is a path or the name of a shipped profile; several are checked together, as `run` and `daemon` would load
    them. Everything that is wrong is told at once, each with its place. Exit code 3 if anything is wrong.

    \b
    gfwemu check my-rules.yaml
    gfwemu check china my-additions.yaml
    gfwemu check --json my-rules.yaml | jq '.problems[].message'
    """
    paths = [find_profile(name) for name in files]
    try:
        loaded = load(paths)
    except RulesError as error:
        if not as_json:
            raise
        click.echo(json.dumps(_failure(error), indent=2))
        sys.exit(error.exit_code)
    plan = compile_plan(loaded.rules)
    if as_json:
        click.echo(json.dumps(_summary(loaded, plan), indent=2))
    else:
        _tell(loaded, plan)


def _failure(error: RulesError) -> dict[str, Any]:
    return {
        "ok": False,
        "problems": [
            {
                "file": problem.place.file,
                "line": problem.place.line,
                "column": problem.place.column,
                "message": problem.message,
            }
            for problem in error.problems
        ],
    }


def _summary(loaded: Loaded, plan: KernelPlan) -> dict[str, Any]:
    kernel = {entry.index for entry in plan.rules}
    return {
        "ok": True,
        "files": list(loaded.files),
        "description": loaded.rules.description,
        "seed": loaded.rules.seed,
        "rules": [
            {
                "name": rule.name,
                "action": rule.action_name,
                "scope": rule.scope.name.lower(),
                "placement": rule.placement.value,
                "kernel": rule.index in kernel,
                "place": str(rule.place),
                "cite": rule.cite,
                "observed": rule.observed,
            }
            for rule in loaded.rules.rules
        ],
        "lists": [
            {"name": one.name, "format": one.format, "entries": one.size, "skipped": one.skipped}
            for one in loaded.lists
        ],
        "dissectors": sorted(loaded.rules.dissectors),
    }


def _tell(loaded: Loaded, plan: KernelPlan) -> None:
    console = Console(highlight=False, soft_wrap=True)
    kernel = {entry.index for entry in plan.rules}
    names = list(dict.fromkeys(rule.name for rule in loaded.rules.rules))
    console.print(f"{', '.join(loaded.files)}: right, {len(names)} rules", style="green", markup=False)
    if loaded.rules.rules:
        table = Table(box=None, pad_edge=False)
        for title in ("rule", "action", "placement", "looked at", "decided by"):
            table.add_column(title, overflow="fold")
        for rule in loaded.rules.rules:
            looked = {"FLOW": "once a flow", "MESSAGE": "each message", "PACKET": "each packet"}[rule.scope.name]
            decided = "kernel" if rule.index in kernel else "user space"
            table.add_row(rule.name, rule.action_name, rule.placement.value, looked, decided)
        console.print(table)
    for one in loaded.lists:
        skipped = f", {one.skipped} skipped (they concern URL paths)" if one.skipped else ""
        console.print(f"list {one.name}: {one.size} entries, format {one.format}{skipped}", markup=False)
    dissectors = ", ".join(sorted(loaded.rules.dissectors)) or "none"
    console.print(f"dissectors: {dissectors}; seed {loaded.rules.seed}", markup=False)
