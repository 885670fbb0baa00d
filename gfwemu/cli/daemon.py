"""`gfwemu daemon`: the censor on a router's own packets."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from gfwemu.cli.moments import with_clock_options
from gfwemu.daemon import Daemon, DaemonOptions, Parts
from gfwemu.engine.commands import Command, Inject, Report, SetVerdict
from gfwemu.engine.series import open_engine, widened
from gfwemu.errors import UsageError
from gfwemu.kernel.table import DEFAULT_QUEUE, RuleCounter
from gfwemu.model import Side
from gfwemu.replay.run import comment_of
from gfwemu.report.eve import EveWriter
from gfwemu.report.metrics import Counters, write_metrics
from gfwemu.report.pcapng import PcapngWriter
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.load import load_rules
from gfwemu.rules.plan import compile_plan

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "-c", "--rules", "rule_files", multiple=True, type=_FILE, metavar="RULES", help="A rule file; repeatable."
)
@click.option("--inside", metavar="IFACE", default="", help="The interface towards the subscribers.")
@click.option("--outside", metavar="IFACE", default="", help="The interface towards the servers.")
@click.option(
    "--queue-num",
    type=click.IntRange(0, 65535),
    default=DEFAULT_QUEUE,
    show_default=True,
    metavar="N",
    help="The netfilter queue; a second daemon on the same host needs another.",
)
@click.option("--eve", type=_FILE, metavar="FILE", help="Append events here, one JSON object a line; - for stdout.")
@click.option("--pcap", type=_FILE, metavar="FILE", help="Capture every packet and what became of it (pcapng).")
@click.option("--metrics", type=_FILE, metavar="FILE", help="Keep Prometheus metrics in this file.")
@click.option("--seed", type=int, metavar="N", help="Of the random choices; the rule file's by default.")
@with_clock_options
@click.option("--pid-file", type=_FILE, metavar="FILE", help="Write the process number here.")
@click.option("--no-offload", is_flag=True, help="Let the kernel decide nothing: user space sees every packet.")
@click.option("--ready-fd", type=click.IntRange(min=0), metavar="N", help="Write a byte there when ready.")
def daemon(
    rule_files: tuple[Path, ...],
    inside: str,
    outside: str,
    queue_num: int,
    eve: Path | None,
    pcap: Path | None,
    metrics: Path | None,
    seed: int | None,
    time_scale: float,
    start_time: float | None,
    pid_file: Path | None,
    no_offload: bool,
    ready_fd: int | None,
) -> None:
    """Censor what this machine forwards between two interfaces, until SIGTERM. SIGHUP loads the rules anew.

    Only packets forwarded between the two named interfaces are looked at; nothing else of the machine is touched.
    """
    if not rule_files:
        raise UsageError("Name a rule file: gfwemu daemon -c RULES --inside IFACE --outside IFACE.")
    if not inside or not outside:
        raise UsageError("Name both interfaces: --inside IFACE --outside IFACE; no interface is taken by default.")
    offload = not no_offload and pcap is None
    options = DaemonOptions(
        inside=inside,
        outside=outside,
        queue=queue_num,
        kernel_decides=offload,
        time_scale=time_scale,
        pid_file=pid_file,
        ready_fd=ready_fd,
    )
    # Workers that saw their first packets at different times must have the same hour.
    epoch = time.time()
    parts = Parts(
        load=lambda: load_rules(rule_files, seed=seed),
        plan=compile_plan,
        engine=lambda rules: open_engine(
            rules, time_scale=time_scale, start_time=start_time, epoch=epoch, seed=seed, offload=offload
        ),
        widened=widened,
    )
    files = _Files(eve, pcap, metrics)
    try:
        Daemon(options, parts, files).run()
    finally:
        files.release()


class _Files:
    """The event log, the capture and the metrics file of a daemon."""

    def __init__(self, eve: Path | None, pcap: Path | None, metrics: Path | None) -> None:
        self._files = files = contextlib.ExitStack()
        self._metrics = metrics
        self._counters = Counters(start_time=time.time())
        self._counters.reload_time = self._counters.start_time
        try:
            stream = sys.stdout if eve == Path("-") else files.enter_context(eve.open("a")) if eve else None
            capture = files.enter_context(pcap.open("wb", buffering=0)) if pcap else None
            self._eve = EveWriter(stream) if stream else None
            self._pcap = PcapngWriter(capture) if capture else None
            if metrics is not None:
                write_metrics(self._counters, metrics)
        except OSError as error:
            raise UsageError(f"{error.filename}: {error.strerror}") from None
        self.takes_all = self._pcap is not None or metrics is not None

    def commanded(self, command: Command, now: float, data: bytes, came_from: Side | None) -> None:
        if self._eve is not None and isinstance(command, Report):
            self._eve.write(command.record)
        if self._pcap is not None:
            if isinstance(command, SetVerdict):
                left = data if command.data is None else command.data
                self._pcap.write(left, now, came_from=came_from, comment=comment_of(command))
            elif isinstance(command, Inject):
                self._pcap.write(command.data, now, came_from=None, comment=command.reason, injected=True)
        if self._metrics is not None:
            self._counters.observe(command, len(data))

    def kernel_rules(self, now: float, counters: Sequence[RuleCounter], rules: RuleSet) -> None:
        by_name = {rule.name: rule for rule in rules.rules}
        for counter in counters:
            rule = by_name[counter.name]
            if self._eve is not None:
                self._eve.kernel_rule(
                    now,
                    counter.name,
                    rule.action_name,
                    counter.packets,
                    counter.bytes,
                    cite=rule.cite,
                    observed=rule.observed,
                )
        self._count_kernel(counters, rules)

    def heartbeat(
        self, now: float, flows: int, queue_dropped: int, counters: Sequence[RuleCounter], rules: RuleSet
    ) -> None:
        self._count_kernel(counters, rules)
        self._counters.flows = flows
        self._counters.queue_dropped = queue_dropped
        if self._metrics is not None:
            write_metrics(self._counters, self._metrics)

    def reloaded(self, now: float) -> None:
        self._counters.reload_time = now

    def close(self) -> None:
        if self._metrics is not None:
            write_metrics(self._counters, self._metrics)

    def release(self) -> None:
        """Closes the files. On a full disk their last bytes are lost, as the daemon has said by then."""
        with contextlib.suppress(OSError):
            self._files.close()

    def _count_kernel(self, counters: Sequence[RuleCounter], rules: RuleSet) -> None:
        actions = {rule.name: rule.action_name for rule in rules.rules}
        for counter in counters:
            key = counter.name, actions[counter.name]
            self._counters.kernel_packets[key] = counter.packets
            self._counters.kernel_bytes[key] = counter.bytes
