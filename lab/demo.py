"""The demo: the cases of demo.yaml, each a censor and real programs behind it; expected beside observed.

Exit code 1 where they differ. Without `--client` each case has a lab of its own on this machine; with it the cases run
between machines that are already set up, as those of the Vagrantfile are.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click
import yaml
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from gfwemu.errors import GfwemuError
from gfwemu.netlab.internet.plan import Service
from gfwemu.netlab.lab import Lab
from gfwemu.netlab.topology import load_topology
from gfwemu.rules.catalogue import find_profile
from gfwemu.rules.quantities import parse_quantity

HERE = Path(__file__).resolve().parent
LONGEST_STEP = 30.0
# The options by which the commands of demo.yaml limit their time.
TIME_LIMIT = re.compile(r"(--max-time |--connect-timeout |--timeout |\+time=|ping .*-W )(\d+)")
MEASURED = re.compile(r"^(\d+) bytes from ([0-9.]+) s to ([0-9.]+) s$", re.MULTILINE)
# Runs a command line in a group of its own until it ends, or until our standard input does: ssh hands on no signals.
WHILE_WANTED = """
exec 3<&0
setsid sh -c {command} </dev/null & command=$!
{{ cat <&3; kill -- -$command; }} >/dev/null 2>&1 &
wait $command
"""


class Stage(Protocol):
    """Where a case runs."""

    def start(self, command: str, *, as_root: bool) -> subprocess.Popen[bytes]: ...

    def lacks(self, service: str) -> str:
        """Why the service cannot run here; empty where it does."""
        ...


class LabStage:
    """A lab on this machine."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._python = {"PYTHON": sys.executable}

    def start(self, command: str, *, as_root: bool) -> subprocess.Popen[bytes]:
        return self._lab.popen(
            "client",
            ["sh", "-c", command],
            as_root=as_root,
            env=self._python,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def lacks(self, service: str) -> str:
        status = json.loads((self._lab.directory / "status.json").read_text(encoding="utf-8"))
        entry = status["services"].get(service, {"state": "failed", "detail": "it is not in the plan"})
        return str(entry["detail"]) if entry["state"] == "failed" else ""


class RemoteStage:
    """Machines that are up: `client` and `censor` are command prefixes that run a shell command line there."""

    def __init__(self, client: str, censor: str, rules: list[str], patience: float) -> None:
        self._client = shlex.split(client)
        command = [*shlex.split(censor), "use-profile " + " ".join(rules)]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60 * patience)
        except subprocess.TimeoutExpired as error:
            raise GfwemuError("The censor takes too long to change its rules; --patience gives it time.") from error
        if done.returncode:
            raise GfwemuError(f"The censor says: {done.stderr.decode(errors='replace').strip()}")

    def start(self, command: str, *, as_root: bool) -> subprocess.Popen[bytes]:
        wrapped = WHILE_WANTED.format(command=shlex.quote(command))
        shell = f"{'sudo -E ' if as_root else ''}sh -c {shlex.quote(wrapped)}"
        return subprocess.Popen(
            [*self._client, f". /etc/profile.d/gfwemu.sh; {shell}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def lacks(self, service: str) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Observed:
    """What a program did: its exit code (None: we ended it), what it printed, how long it took."""

    exit: int | None
    output: str
    seconds: float
    seen: bool

    def speed(self) -> float | None:
        """Bytes per second, where curl printed it."""
        measured = MEASURED.search(self.output)
        if measured is None:
            return None
        size, start, stop = map(float, measured.groups())
        return size / max(stop - start, 0.001)

    def told(self, wanted: str) -> str:
        """What to show: the measured rate, the line that was waited for, else the last line."""
        rate = self.speed()
        if rate is not None:
            return f"{rate_text(rate)} measured"
        lines = [line.strip() for line in self.output.splitlines() if line.strip()] or ["nothing printed"]
        telling = [line for line in lines if wanted and wanted.lower() in line.lower()] or lines[-1:]
        line = outcome_of(telling[0])
        return line if self.exit in (0, None) else f"exit {self.exit}: {line}"


def outcome_of(line: str) -> str:
    """A probe's JSON in a few words; log lines without their date; any other line as it is."""
    try:
        said = json.loads(line)
    except ValueError:
        return re.sub(r"^[0-9-]{10} [0-9:]{8} ", "", line)[:70]
    return f"{said['outcome']}, {said['seconds']:.2f} s" if "seconds" in said else str(said["outcome"])


def rate_text(rate: float) -> str:
    """Bytes per second, in the units of rule files."""
    bits = rate * 8
    return f"{bits / 1e6:.1f} Mbit/s" if bits >= 1e6 else f"{bits / 1e3:.0f} kbit/s"


def observe(stage: Stage, step: dict[str, Any], command: str, patience: float) -> Observed:
    """Runs one program to its end, to the text it is waited for, or to its time limit."""
    patient = TIME_LIMIT.sub(lambda limit: f"{limit[1]}{float(limit[2]) * patience:.0f}", command)
    process = stage.start(patient, as_root=step.get("root", False))
    assert process.stdout is not None
    started = time.monotonic()
    deadline = started + float(step.get("seconds", LONGEST_STEP)) * patience
    until = str(step.get("until", "")).encode()
    output = b""
    while not (until and until in output):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            break
        chunk = os.read(process.stdout.fileno(), 65536)
        if not chunk:
            break
        output += chunk
    seen = bool(until) and until in output
    exit_code = end(process, patience)
    return Observed(exit_code, output.decode(errors="replace"), time.monotonic() - started, seen)


def end(process: subprocess.Popen[bytes], patience: float) -> int | None:
    """The exit code of a program that ends by itself; None for one that we have to end."""
    try:
        return process.wait(0.5 * patience)
    except subprocess.TimeoutExpired:
        if process.stdin:
            process.stdin.close()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5 * patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None


Check = tuple[str, Callable[[Observed], bool]]


def expectations(step: dict[str, Any], patience: float) -> Iterator[Check]:
    """What must hold of a step, each in words and as a test."""
    if "exit" in step:
        yield f"exit {step['exit']}", lambda seen: seen.exit == step["exit"]
    if "not_exit" in step:
        yield f"no exit {step['not_exit']}", lambda seen: seen.exit not in (None, step["not_exit"])
    if "says" in step:
        yield f"'{step['says']}'", lambda seen: str(step["says"]).lower() in seen.output.lower()
    if "until" in step:
        wanted = step.get("seen", True)
        yield f"{'' if wanted else 'never '}'{step['until']}'", lambda seen: seen.seen is wanted
    if "rate" in step:
        rate, within = parse_quantity(step["rate"], "rate"), float(step["within"])
        yield f"about {rate_text(rate)} set", lambda seen: abs((seen.speed() or 0) - rate) <= within * rate
    if "at_least" in step:
        least = parse_quantity(step["at_least"], "rate") / patience
        yield f"at least {rate_text(least)}", lambda seen: (seen.speed() or 0) >= least


@dataclass(frozen=True, slots=True)
class Row:
    """One program of one case."""

    case: str
    program: str
    expected: str
    observed: str
    ok: bool | None
    output: str = ""


def run_case(case: dict[str, Any], commands: dict[str, str], stage: Stage, patience: float) -> Iterator[Row]:
    """A row for each step. ok None: the machine cannot do it, and says why."""
    for step in case["steps"]:
        checks = list(expectations(step, patience))
        expected = ", ".join(words for words, _ in checks)
        reason = stage.lacks(step["needs"]) if "needs" in step else ""
        if reason:
            yield Row(case["name"], step["program"], expected, reason, None)
            continue
        seen = observe(stage, step, commands[step["command"]], patience)
        ok = all(test(seen) for _, test in checks)
        told = seen.told(str(step.get("says", step.get("until", ""))))
        yield Row(case["name"], step["program"], expected, told, ok, seen.output)


def local_stage(case: dict[str, Any], services: list[Service]) -> contextlib.AbstractContextManager[LabStage]:
    @contextlib.contextmanager
    def stage() -> Iterator[LabStage]:
        rules = [find_profile(name) for name in case["rules"]]
        with Lab(load_topology("default"), rules=rules, extra_services=services) as lab:
            yield LabStage(lab)

    return stage()


def table_of(rows: list[Row]) -> Table:
    table = Table("censor", "program", "expected", "observed", "", title="gfwemu demo", title_justify="left")
    previous = ""
    for row in rows:
        mark = {True: "ok", False: "DIFFERS", None: "not here"}[row.ok]
        style = {True: "green", False: "bold red", None: "yellow"}[row.ok]
        if row.case != previous and previous:
            table.add_section()
        name = row.case if row.case != previous else ""
        previous = row.case
        table.add_row(name, row.program, row.expected, row.observed, f"[{style}]{mark}[/]")
    return table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, metavar="NAME", help="Only the cases whose name contains NAME.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout instead of the table.")
@click.option("--client", metavar="PREFIX", help="Run programs by this command prefix, e.g. 'vagrant ssh client -c'.")
@click.option("--censor", metavar="PREFIX", help="The same for the censor's machine.")
@click.option(
    "--patience",
    metavar="FACTOR",
    type=click.FloatRange(min=1),
    default=1.0,
    help="For slow machines: every program has so many times the time, and may be so many times as slow.",
)
def demo(only: tuple[str, ...], as_json: bool, client: str | None, censor: str | None, patience: float) -> None:
    """Real programs behind several emulated firewalls: expected beside observed.

    \b
    lab/demo
    lab/demo --only SNI --json
    """
    book = yaml.safe_load((HERE / "demo.yaml").read_text(encoding="utf-8"))
    services: list[Service] = TypeAdapter(list[Service]).validate_python(book["services"])
    progress = Console(stderr=True)
    rows: list[Row] = []
    for case in book["cases"]:
        if only and not any(part.lower() in case["name"].lower() for part in only):
            continue
        progress.print(f"{case['name']} ...", highlight=False)
        try:
            if client and censor:
                remote = RemoteStage(client, censor, case["rules"], patience)
                rows.extend(run_case(case, book["commands"], remote, patience))
            else:
                with local_stage(case, services) as stage:
                    rows.extend(run_case(case, book["commands"], stage, patience))
        except GfwemuError as error:
            raise SystemExit(f"demo: {case['name']}: {error}") from error
    failed = [row for row in rows if row.ok is False]
    for row in failed:
        progress.print(f"{row.case}, {row.program}, printed:\n{row.output}", markup=False, highlight=False)
    if as_json:
        fields = ("case", "program", "expected", "observed", "ok")
        click.echo(json.dumps([{name: getattr(row, name) for name in fields} for row in rows], indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(table_of(rows))
        missing = sum(row.ok is None for row in rows)
        note = f", {missing} not possible on this machine" if missing else ""
        click.echo(f"{len(rows)} programs: {len(rows) - len(failed) - missing} as expected, {len(failed)} not{note}.")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    demo()
