"""What the censor costs: every measure in labs of its own, one table, ratios within one run.

Each round measures plain forwarding and the censor one after the other, so that what else the machine does meets both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import click
from benchmarks import machine
from benchmarks.censor import MeasureError
from benchmarks.figures import Figure
from benchmarks.measures import bulk, connections, dns, flows, latency, load, packets, reload, replay, reset, throttle
from benchmarks.soak import soak
from benchmarks.stage import QUICK, Bench, Scale
from benchmarks.table import machine_words, make_table
from rich.console import Console

from gfwemu.errors import GfwemuError

HERE = Path(__file__).resolve().parent
KEPT_TABLE = HERE / "bench-table.json"
FORMAT = 1
MEASURES: tuple[ModuleType, ...] = (
    bulk,
    connections,
    latency,
    packets,
    reset,
    throttle,
    dns,
    load,
    reload,
    flows,
    replay,
)
NAMES = [measure.NAME for measure in MEASURES]
_ASK_HOP = "from gfwemu.kernel.hop import find_hop; from gfwemu.kernel.nft import Nft; print(find_hop(Nft()))"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Only this measure; again for more.")
@click.option("--quick", is_flag=True, help="Short runs, small lists: whether it works, not how fast.")
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", help="Measure everything so often; 3 by default.")
@click.option("--json", "json_file", metavar="FILE", help="Keep the figures here; - for standard output.")
@click.option(
    "--compare",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help=f"An earlier run's JSON to compare with; lab/{KEPT_TABLE.name} by default, where it is.",
)
@click.option(
    "--profile",
    "profiles",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Keep cProfile's statistics of the daemon here, a file a measure. It slows the daemon down.",
)
@click.option(
    "--soak",
    "soak_minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="Instead of measuring: a mixed load for so long, and whether memory, descriptors and queue stay as they are.",
)
def bench(
    only: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    json_file: str | None,
    compare: Path | None,
    profiles: Path | None,
    soak_minutes: float | None,
) -> None:
    """Measure what the censor costs: one table, a few minutes.

    \b
    lab/bench
    lab/bench --json lab/bench-table.json
    lab/bench --only bulk --only latency --quick
    lab/bench --soak 30

    Only ratios travel from one machine to another. A target that is missed is no error.

    Exit codes: 0 everything was measured, 1 something failed, 2 wrong usage, 4 the machine lacks something.
    """
    earlier = read_earlier(compare, quick)
    if profiles is not None:
        profiles = profiles.absolute()
        profiles.mkdir(parents=True, exist_ok=True)
    scale = QUICK if quick else Scale()
    if rounds:
        scale = dataclasses.replace(scale, rounds=rounds)
    chosen = [measure for measure in MEASURES if not only or measure.NAME in only]
    progress = Console(stderr=True)
    signal.signal(signal.SIGTERM, _end)
    about = machine.describe()
    figures: list[Figure] = []
    failures: dict[str, str] = {}
    spent: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="gfwemu-bench-") as directory:
        Path(directory).chmod(0o755)
        work = Bench(scale, Path(directory), profiles)
        if soak_minutes is not None:
            sys.exit(run_long(work, soak_minutes))
        about["hop"] = queue_hop(work)
        for measure in chosen:
            progress.print(f"{measure.NAME} ...", highlight=False, end=" ")
            work.measuring, started = measure.NAME, time.monotonic()
            try:
                figures += measure.measure(work)
            except (GfwemuError, MeasureError, OSError, subprocess.TimeoutExpired) as error:
                failures[measure.NAME] = str(error)
            spent[measure.NAME] = round(time.monotonic() - started, 1)
            progress.print(f"{spent[measure.NAME]:.0f} s", highlight=False)
    record = {
        "format": FORMAT,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "seconds": spent,
        "quick": quick,
        "machine": about,
        "scale": dataclasses.asdict(scale),
        "figures": [figure.as_json() for figure in figures],
        "failures": failures,
    }
    if json_file != "-":
        show(figures, failures, about, earlier, quick)
    if json_file is not None:
        keep(record, json_file)
    sys.exit(1 if failures else 0)


def run_long(work: Bench, minutes: float) -> int:
    """The exit code."""
    queue_hop(work)
    try:
        found = soak(work, minutes * 60, click.echo)
    except (GfwemuError, MeasureError, OSError, subprocess.TimeoutExpired) as error:
        click.echo(f"bench: the long run failed: {error}", err=True)
        return 1
    click.echo(", ".join(f"{count:,} {how}" for how, count in sorted(found.outcomes.items())))
    for problem in found.problems:
        click.echo(f"wrong: {problem}")
    if not found.problems:
        click.echo("Memory and descriptors stayed as they were, and every packet got its verdict.")
    return 1 if found.problems else 0


def show(
    figures: list[Figure],
    failures: dict[str, str],
    about: dict[str, str | int | float],
    earlier: dict[str, Any] | None,
    quick: bool,
) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(machine_words(about), markup=False, highlight=False)
    if earlier is not None:
        console.print(f"Earlier: {earlier['time']}, {machine_words(earlier['machine'])}", markup=False, highlight=False)
    console.print(make_table(figures, failures, earlier))
    if quick:
        console.print("--quick: the runs are too short and the lists too small for these figures to mean much.")
    if machine.disturbed(about):
        console.print(f"The machine was busy before the start (load {about['load']}): absolute figures mean little.")
    judged = [figure for figure in figures if figure.target is not None]
    met = sum(figure.target.met(figure.median) for figure in judged if figure.target is not None)
    console.print(f"{met} of {len(judged)} targets reached.", highlight=False)


def read_earlier(path: Path | None, quick: bool) -> dict[str, Any] | None:
    """What to compare with. Nothing by default where lists and runs are of another size."""
    if path is None:
        if quick or not KEPT_TABLE.exists():
            return None
        path = KEPT_TABLE
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"--compare {path}: {error.strerror}.") from None
    except ValueError:
        found = {}
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise click.UsageError(f"--compare {path}: this is no file of lab/bench --json.")
    if found["quick"] != quick:
        raise click.UsageError(f"--compare {path}: of two runs to compare, both or none must be --quick.")
    return found


def keep(record: dict[str, Any], json_file: str) -> None:
    text = json.dumps(record, indent=1) + "\n"
    if json_file == "-":
        click.echo(text, nl=False)
        return
    try:
        Path(json_file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"--json {json_file}: {error.strerror}.") from None


def queue_hop(work: Bench) -> str:
    """How packets get into the queue on this kernel. Ends the program where there is no lab to be had."""
    try:
        with work.plain() as stage:
            return stage.run([sys.executable, "-P", "-c", _ASK_HOP], timeout=30, node="censor", as_root=True).strip()
    except (GfwemuError, MeasureError) as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(getattr(error, "exit_code", 1))


def commit() -> str:
    """The checkout's commit, with a plus where files differ from it; empty outside of git."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        argv = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    bench()
