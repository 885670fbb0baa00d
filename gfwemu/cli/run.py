"""`gfwemu run` and `gfwemu shell`: a program behind an emulated censor."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from gfwemu.cli.moments import clock_text, with_clock_options
from gfwemu.errors import UsageError
from gfwemu.netlab import relay
from gfwemu.netlab.attach import Attached
from gfwemu.netlab.lab import Lab
from gfwemu.netlab.links import LINKS
from gfwemu.netlab.status import read_servers
from gfwemu.netlab.topology import load_topology
from gfwemu.report.verdicts import VerdictTable
from gfwemu.rules.catalogue import find_profile
from gfwemu.rules.load import load_rules

_Function = TypeVar("_Function", bound=Callable[..., Any])
_EPILOG = """\b
Examples:
  gfwemu run --profile china -- curl https://www.blocked.example/
  gfwemu run --profile sni-reset --link 3g --json verdicts.json -- python3 client.py
  gfwemu run --rules my.yaml --pcap capture.pcapng --time-scale 60 -- sh test.sh
  gfwemu run --link list

\b
Exit codes: the program's own, 128 + N when signal N killed it, 126 not executable, 127 not found; before it starts:
2 wrong usage, 3 wrong rules, 4 the machine lacks a capability.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What `run` and `shell` have in common."""

    profile: str | None
    rule_files: tuple[Path, ...]
    topology: str
    link: str | None
    seed: int | None
    time_scale: float
    start_time: float | None
    eve: Path | None
    pcap: Path | None
    workers: int = 1
    json_file: Path | None = None
    as_root: bool = False
    node: str = "client"
    quiet: bool = False

    @property
    def censor(self) -> str:
        """The censor in a few words."""
        parts = [f"profile {self.profile}"] if self.profile else []
        parts += [f"rules {path}" for path in self.rule_files]
        return ", ".join(parts) or "no censor"

    @property
    def daemon_options(self) -> tuple[str, ...]:
        return ("--workers", str(self.workers)) if self.workers > 1 else ()

    @property
    def rules(self) -> list[Path]:
        profile = [find_profile(self.profile)] if self.profile else []
        return [*profile, *self.rule_files]


_FILE = click.Path(dir_okay=False, path_type=Path)
_LAB_OPTIONS = (
    click.option("--profile", metavar="NAME", help="A profile that `gfwemu list profiles` shows, or a path."),
    click.option(
        "--rules", "rule_files", multiple=True, type=_FILE, metavar="FILE", help="A rule file; again for more."
    ),
    click.option("--topology", default="default", show_default=True, metavar="NAME", help="A topology, or its path."),
    click.option("--link", metavar="NAME", help="The client's line: 3g, dsl, ... or DOWN/UP/RTT; `list` shows them."),
    click.option("--seed", type=click.IntRange(0), metavar="N", help="Of the random choices; the rules' by default."),
    with_clock_options,
    click.option("--eve", type=_FILE, metavar="FILE", help="Write the event log here."),
    click.option("--pcap", type=_FILE, metavar="FILE", help="Write every packet at the censor here (pcapng)."),
    click.option(
        "--workers", type=click.IntRange(1, 64), default=1, metavar="N", help="Processes that share the censor's work."
    ),
)
_RUN_OPTIONS = (
    click.option(
        "--json",
        "json_file",
        type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
        is_flag=False,
        flag_value="-",
        metavar="[FILE]",
        help="The verdicts as JSON: in FILE, or, without one, on standard error instead of the table.",
    ),
    click.option("--as-root", is_flag=True, help="Run the program as the lab's root (tcpdump, VPN clients)."),
    click.option("--node", default="client", show_default=True, help="Where the program runs."),
    click.option("-q", "--quiet", is_flag=True, help="Neither header nor table."),
)


def with_lab_options(function: _Function) -> _Function:
    """The options that say which lab."""
    for option in reversed(_LAB_OPTIONS):
        function = option(function)
    return function


def _with_run_options(function: _Function) -> _Function:
    for option in reversed(_RUN_OPTIONS):
        function = option(function)
    return function


@click.command(context_settings={"allow_interspersed_args": False}, epilog=_EPILOG)
@with_lab_options
@_with_run_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- PROGRAM [ARGUMENT]...")
def run(command: tuple[str, ...], **options: Any) -> None:
    """Run a program behind an emulated censor, in a private network.

    The program runs as you, in your directory, with your terminal. Its standard output stays its own: header and
    verdict table go to standard error. Proxy variables (http_proxy and the like) are removed: nothing inside reaches
    the proxies of the outside. Without --profile and --rules there is a lab without a censor.
    """
    chosen = Options(**options)
    if chosen.link == "list":
        _list_links()
        return
    if not command:
        raise UsageError("Say which program to run: gfwemu run --profile NAME -- PROGRAM [ARGUMENT]...")
    sys.exit(_run(list(command), chosen))


@click.command()
@with_lab_options
@_with_run_options
def shell(**options: Any) -> None:
    """Open your shell ($SHELL) behind an emulated censor; like `gfwemu run -- $SHELL`."""
    chosen = Options(**options)
    if chosen.link == "list":
        _list_links()
        return
    sys.exit(_run([os.environ.get("SHELL") or shutil.which("sh") or "/bin/sh"], chosen))


def _list_links() -> None:
    width = max(map(len, LINKS))
    for name, link in LINKS.items():
        click.echo(f"{name:{width}}  {link}")


def _run(command: list[str], options: Options) -> int:
    """Returns the exit code."""
    paths = options.rules
    rules = load_rules(paths, seed=options.seed) if paths else None
    lab = Lab(
        load_topology(options.topology),
        paths,
        link=options.link,
        eve=options.eve,
        pcap=options.pcap,
        seed=rules.seed if rules else options.seed,
        time_scale=options.time_scale,
        daemon_options=options.daemon_options,
        start_time=options.start_time,
    )
    for path in (options.eve, options.pcap, options.json_file):
        _refuse_unwritable(path)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    with lab:
        lab.attached.node(options.node)
        if not options.quiet:
            click.echo(_header(options, lab), err=True)
            for name, server in read_servers(lab.directory).items():
                if server["state"] != "up":
                    click.echo(f"gfwemu: the server {name} is {server['state']}: {server['detail']}", err=True)
        code = run_in(lab.attached, options.node, command, as_root=options.as_root)
        _warn_of_dead_services(lab)
        lab.stop()
        if rules:
            _report(lab, options)
    return code


def _end(number: int, _frame: object) -> None:
    """Before and after the program, a signal takes the lab down on our way out."""
    raise SystemExit(128 + number)


def _refuse_unwritable(path: Path | None) -> None:
    """Say so before the program runs, not after."""
    if path is None or str(path) == "-":
        return
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror}.") from None


def _header(options: Options, lab: Lab) -> str:
    parts = [options.censor]
    if lab.seed is not None:
        parts.append(f"seed {lab.seed}")
    if options.topology != "default":
        parts.append(f"topology {options.topology}")
    if lab.link is not None:
        parts.append(f"link {options.link} ({lab.link})")
    if clock := clock_text(options.time_scale, options.start_time):
        parts.append(clock)
    return f"gfwemu: {', '.join(parts)}"


def run_in(lab: Attached, node: str, command: list[str], *, as_root: bool) -> int:
    """Run a program with our terminal and standard streams. Returns the exit code that a shell would give."""
    with _signals_held():
        process = lab.popen(node, command, as_root=as_root, terminal=_interactive())
        status = relay.wait_for(process.pid)
        code = os.waitstatus_to_exitcode(status)
        process.returncode = code
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    relay.hold_signals()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _interactive() -> bool:
    """Whether the terminal is ours to give away.

    In a pipeline it is not: the other programs of the job need it, and the program stays in the job's process group.
    """
    try:
        return os.isatty(0) and os.isatty(1) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _warn_of_dead_services(lab: Lab) -> None:
    lab.attached.refresh()
    for name, service in lab.attached.state["services"].items():
        if service["state"] != "running":
            log = (lab.directory / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip().split("\n")
            click.echo(f"gfwemu: the lab's {name} {service['state']}: {log[-1]}", err=True)


def _report(lab: Lab, options: Options) -> None:
    table = VerdictTable.from_eve(json.dumps(event) + "\n" for event in lab.events())
    text = json.dumps(table.as_json(), indent=2) + "\n"
    if options.json_file is not None and str(options.json_file) != "-":
        options.json_file.write_text(text, encoding="utf-8")
    if options.json_file is not None and str(options.json_file) == "-":
        click.echo(text, nl=False, err=True)
    elif not options.quiet:
        table.render(Console(stderr=True))
