"""`gfwemu replay`: a capture under an emulated censor."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import ipaddress
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

import click
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from gfwemu.cli.moments import with_clock_options
from gfwemu.engine.commands import Command, Inject, Report
from gfwemu.engine.engine import Engine
from gfwemu.engine.series import open_engine
from gfwemu.errors import UsageError
from gfwemu.model import Verdict
from gfwemu.replay.capture import read_capture
from gfwemu.replay.frames import CaptureError, Frame
from gfwemu.replay.run import Decided, Replay, Totals, comment_of
from gfwemu.report.eve import EveWriter
from gfwemu.report.pcapng import PcapngWriter
from gfwemu.report.summary import SummaryReader
from gfwemu.report.verdicts import VerdictTable, count_of
from gfwemu.rules.catalogue import find_profile
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.load import load_rules

_PATIENCE_SECONDS = 2.0
_FRAMES_BETWEEN_LOOKS = 256
_YOUNG_OBJECTS = 50_000
"""New objects before the garbage collector looks at them."""


@click.command(
    epilog="""\b
Examples:
  gfwemu replay session.pcapng --profile china
  gfwemu replay session.pcap --rules my.yaml --inside 192.0.2.0/24 --pcap marked.pcapng
  gfwemu replay session.pcap --profile china --json | jq '.rows[].rule'
  tcpdump -w - -r big.pcap port 443 | gfwemu replay - --profile china --eve eve.json

\b
Exit codes: 0 replayed (whatever the verdicts), 2 wrong usage or a damaged capture, 3 wrong rules.
"""
)
@click.argument("capture", metavar="FILE")
@click.option("--profile", metavar="NAME", help="A profile that `gfwemu list profiles` shows, or a rule file's path.")
@click.option(
    "--rules",
    "rule_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A rule file; again for more, tried in the order given.",
)
@click.option("--inside", multiple=True, metavar="CIDR", help="A network of the subscribers; again for more.")
@click.option(
    "--eve", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the event log here."
)
@click.option(
    "--pcap",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="OUT",
    help="Write the packets here (pcapng), forged ones added, touched ones with a comment.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
@click.option("--seed", type=int, metavar="N", help="Of the random choices; the rule file's by default.")
@with_clock_options
def replay(
    capture: str,
    profile: str | None,
    rule_files: tuple[Path, ...],
    inside: tuple[str, ...],
    eve: Path | None,
    pcap: Path | None,
    as_json: bool,
    seed: int | None,
    time_scale: float,
    start_time: float | None,
) -> None:
    """Tell what an emulated censor would have done with the packets of a capture.

    FILE is a pcap or pcapng file (`-`: standard input) of Ethernet, Linux cooked, loopback or raw IP packets. The
    censor's clock is the capture's own. Without --inside, whoever opens a flow is taken for a subscriber.

    A capture cannot react: packets that follow one that the censor would have dropped are in the file all the same, and
    are judged too.
    """
    if not profile and not rule_files:
        raise UsageError("say which censor: --profile NAME (`gfwemu list profiles` shows them) or --rules FILE")
    paths = [find_profile(profile)] if profile else []
    rules = load_rules([*paths, *rule_files], seed=seed)
    if inside:
        rules = dataclasses.replace(rules, inside=_networks(inside))
    with contextlib.ExitStack() as files:
        stream = files.enter_context(_opened(capture))
        for path in (eve, pcap):
            _refuse_same_file(capture, path)
        sink = _Outputs(
            io.TextIOWrapper(files.enter_context(_created(eve)), encoding="utf-8", newline="") if eve else None,
            files.enter_context(_created(pcap)) if pcap else None,
        )
        # Flows end by themselves; lists of names would cost each look of the collector dearly.
        gc.freeze()
        gc.set_threshold(_YOUNG_OBJECTS)
        engine = open_engine(rules, time_scale=time_scale, start_time=start_time, seed=seed, offload=False)
        fast_path = engine.fast_path if isinstance(engine, Engine) else None
        run = Replay(engine, sink, inside=rules.inside, on_error=Verdict(rules.on_error), fast_path=fast_path)
        damage: CaptureError | None = None
        try:
            try:
                run.run(_with_progress(read_capture(stream, capture), stream), capture)
            except CaptureError as error:
                damage = error
            sink.flush()
        except OSError as error:
            raise UsageError(f"reading {capture} or writing what it gave: {error.strerror or error}") from None
    if damage is None or run.totals.packets:
        _print(VerdictTable(sink.summary.finish()), run.totals, rules, capture, as_json)
    if damage is not None:
        raise damage


class _Outputs:
    """The event log, the capture and the summary of one replay."""

    def __init__(self, eve: TextIO | None, pcap: BinaryIO | None) -> None:
        self.summary = SummaryReader()
        self._eve = EveWriter(eve, each=False) if eve else None
        self._pcap = PcapngWriter(pcap, each=False) if pcap else None
        self.takes_packets = pcap is not None

    def flush(self) -> None:
        if self._eve:
            self._eve.flush()
        if self._pcap:
            self._pcap.flush()

    def commanded(self, command: Command, now: float) -> None:
        if isinstance(command, Report):
            self.summary.record(command.record)
            if self._eve:
                self._eve.write(command.record)
        elif isinstance(command, Inject) and self._pcap:
            self._pcap.write(command.data, now, came_from=None, comment=command.reason, injected=True)

    def decided(self, outcome: Decided) -> None:
        if self._pcap:
            data = outcome.command.data if outcome.command.data is not None else outcome.packet
            comment = comment_of(outcome.command)
            self._pcap.write(data, outcome.now, came_from=outcome.came_from, comment=comment)


def _networks(texts: tuple[str, ...]) -> tuple[tuple[bytes, int], ...]:
    networks = []
    for text in texts:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise UsageError(f"--inside: '{text}' is not a network; write it as in 192.0.2.0/24") from None
        networks.append((network.network_address.packed, network.prefixlen))
    return tuple(networks)


def _opened(capture: str) -> BinaryIO:
    if capture == "-":
        return sys.stdin.buffer
    try:
        return Path(capture).open("rb")
    except OSError as error:
        raise UsageError(f"{capture}: {error.strerror}") from None


def _created(path: Path) -> BinaryIO:
    try:
        return path.open("wb")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _refuse_same_file(capture: str, output: Path | None) -> None:
    with contextlib.suppress(OSError):
        if output and capture != "-" and output.samefile(capture):
            raise UsageError(f"{output} is the capture itself; write to another file")


def _with_progress(frames: Iterator[Frame], stream: BinaryIO) -> Iterator[Frame]:
    """The same frames, with a bar on a terminal's standard error once it has taken a while."""
    console = Console(stderr=True)
    size = os.fstat(stream.fileno()).st_size
    return _counted(frames, console, size) if console.is_terminal and size else frames


def _counted(frames: Iterator[Frame], console: Console, size: int) -> Iterator[Frame]:
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        progress: Progress | None = None
        for frame in frames:
            yield frame
            if frame.number % _FRAMES_BETWEEN_LOOKS:
                continue
            if progress is None and time.monotonic() - began > _PATIENCE_SECONDS:
                progress = stack.enter_context(Progress(console=console, transient=True))
                task = progress.add_task("Replaying", total=size)
            if progress is not None:
                progress.update(task, completed=frame.offset)


def _print(table: VerdictTable, totals: Totals, rules: RuleSet, capture: str, as_json: bool) -> None:
    if as_json:
        content = {
            "capture": capture,
            "rules": rules.source,
            "seed": rules.seed,
            "totals": dataclasses.asdict(totals),
            **table.as_json(),
        }
        click.echo(json.dumps(content, indent=2))
        return
    console = Console()
    source = f", rules {rules.source}" if rules.source else ""
    console.print(Text(f"{capture}: {count_of(totals.packets, 'IP packet')}{source}, seed {rules.seed}"))
    for line in _remarks(totals):
        console.print(Text(line))
    console.print()
    table.render(console)
    if table.summary.touched:
        console.print(Text("A capture cannot react: packets after a dropped or reset one were judged all the same."))


def _remarks(totals: Totals) -> Iterator[str]:
    if totals.other:
        yield f"{count_of(totals.other, 'frame')} held no IP packet (ARP and such)."
    if totals.own_forgeries:
        yield f"{count_of(totals.own_forgeries, 'packet')} forged by an earlier run of gfwemu left out."
    if totals.cut:
        yield f"{count_of(totals.cut, 'packet')} cut by the capture's snap length: what was cut could not be judged."
    if totals.backwards:
        yield f"{count_of(totals.backwards, 'timestamp')} ran backwards; the clock stood still meanwhile."
    if totals.undecided:
        yield f"{count_of(totals.undecided, 'packet')} got no verdict: a bug; please report it."
