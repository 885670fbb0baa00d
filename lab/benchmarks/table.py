"""The table that a run ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from benchmarks.figures import Figure, change, shown, with_unit

_STYLES = {"better": "green", "worse": "bold red", "same": "dim"}


def make_table(figures: Sequence[Figure], failures: Mapping[str, str], earlier: dict[str, Any] | None) -> Table:
    """A line for each figure. earlier: a table of an earlier run, to compare with."""
    table = Table(title="gfwemu bench", title_justify="left", show_lines=False)
    table.add_column("measure", ratio=4)
    table.add_column("to reach", justify="right")
    table.add_column("median", justify="right")
    table.add_column("min - max", justify="right")
    table.add_column("reached")
    if earlier is not None:
        table.add_column("earlier", justify="right")
    table.add_column("note", ratio=4)
    for figure in figures:
        cells: list[Text | str] = [
            figure.title,
            target_words(figure),
            with_unit(figure.median, figure.unit),
            f"{shown(min(figure.values))} - {shown(max(figure.values))}",
            reached(figure),
        ]
        if earlier is not None:
            cells.append(_earlier(figure, earlier))
        table.add_row(*cells, figure.note)
    for name, reason in failures.items():
        blank = [""] * (4 if earlier is not None else 3)
        table.add_row(name, *blank[:3], Text("failed", style="bold red"), *blank[3:], Text(reason))
    return table


def target_words(figure: Figure) -> str:
    target = figure.target
    return f"{target.sense} {target.bound:,g}" if target is not None else ""


def reached(figure: Figure) -> Text:
    """Whether the median reaches its target, and how far it is from it where not."""
    if figure.target is None:
        return Text("")
    if figure.target.met(figure.median):
        return Text("yes", style="green")
    return Text(f"no, by {shown(figure.target.shortfall(figure.median))} times", style="bold red")


def machine_words(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB · {machine['kernel']} · "
        f"{machine['python']} · queue hop: {machine.get('hop', 'unknown')} · load before: {machine['load']}"
    )


def _earlier(figure: Figure, earlier: dict[str, Any]) -> Text:
    moved = change(figure, earlier)
    if moved is None:
        return Text("")
    was = shown(figure.median / moved.factor)
    return Text(was if moved.verdict == "same" else f"{was}, now {moved.verdict}", style=_STYLES[moved.verdict])
