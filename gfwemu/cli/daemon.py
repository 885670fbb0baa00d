"""`gfwemu daemon`: the censor on a router's own packets."""

from __future__ import annotations

import itertools
import stat
import time
from pathlib import Path

import click

from gfwemu.cli.moments import with_clock_options
from gfwemu.cli.outputs import FileOutputs
from gfwemu.daemon import Daemon, DaemonOptions, Parts
from gfwemu.engine.series import open_engine, widened
from gfwemu.errors import UsageError
from gfwemu.kernel.queue import QUEUE_NUMBERS
from gfwemu.kernel.table import DEFAULT_QUEUE
from gfwemu.prober.client import ProberProcess
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.load import load_rules
from gfwemu.rules.plan import compile_plan

_WORKER_SHIFT = 44
"""Of flow IDs: workers never give the same one, and JSON numbers are exact up to 2^53."""

_MOST_WORKERS = 64

_FILE = click.Path(dir_okay=False, path_type=Path)
_OWN_FILE = click.Path(dir_okay=False, path_type=Path, resolve_path=True)


def _own_file(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """A file that the daemon replaces or removes: never a device, which the superuser may remove as well."""
    try:
        replaceable = path is None or stat.S_ISREG(path.stat().st_mode)
    except OSError:
        # Whether it can be made is told when it is.
        replaceable = True
    if not replaceable:
        raise click.BadParameter(f"{path} is no regular file, and would be replaced.", context, parameter)
    return path


@click.command()
@click.option(
    "-c", "--rules", "rule_files", multiple=True, type=_FILE, metavar="RULES", help="A rule file; repeatable."
)
@click.option("--inside", metavar="IFACE", default="", help="The interface towards the subscribers.")
@click.option("--outside", metavar="IFACE", default="", help="The interface towards the servers.")
@click.option(
    "--queue-num",
    type=click.IntRange(0, QUEUE_NUMBERS - _MOST_WORKERS),
    default=DEFAULT_QUEUE,
    show_default=True,
    metavar="N",
    help="The netfilter queue; a second daemon on the same host needs another.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, _MOST_WORKERS),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that share the work, each with a queue of its own, from --queue-num on.",
)
@click.option(
    "--queue-length",
    type=click.IntRange(1, 1 << 24),
    default=4096,
    show_default=True,
    metavar="PACKETS",
    help="Packets that may wait for each worker.",
)
@click.option(
    "--queue-buffer",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    metavar="MIB",
    help="Memory for handing packets over to each worker.",
)
@click.option(
    "--fail-open/--fail-closed",
    default=None,
    help="Whether packets pass when a queue is full or nobody serves it; the rules say by default.",
)
@click.option("--eve", type=_FILE, metavar="FILE", help="Append events here, one JSON object a line; - for stdout.")
@click.option("--pcap", type=_FILE, metavar="FILE", help="Capture every packet and what became of it (pcapng).")
@click.option(
    "--metrics", type=_OWN_FILE, callback=_own_file, metavar="FILE", help="Keep Prometheus metrics in this file."
)
@click.option("--seed", type=int, metavar="N", help="Of the random choices; the rule file's by default.")
@with_clock_options
@click.option(
    "--hops",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Routers up to the servers, so that probes arrive there with the TTL that their rule says.",
)
@click.option("--pid-file", type=_OWN_FILE, callback=_own_file, metavar="FILE", help="Write the process number here.")
@click.option("--no-offload", is_flag=True, help="Let the kernel decide nothing: user space sees every packet.")
@click.option("--ready-fd", type=click.IntRange(min=0), metavar="N", help="Write a byte there when ready.")
def daemon(
    rule_files: tuple[Path, ...],
    inside: str,
    outside: str,
    queue_num: int,
    workers: int,
    queue_length: int,
    queue_buffer: int,
    fail_open: bool | None,
    eve: Path | None,
    pcap: Path | None,
    metrics: Path | None,
    seed: int | None,
    time_scale: float,
    start_time: float | None,
    hops: int,
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
        workers=workers,
        queue_length=queue_length,
        queue_buffer=queue_buffer << 20,
        fail_open=fail_open,
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
        engine=lambda rules, worker: open_engine(
            rules,
            time_scale=time_scale,
            start_time=start_time,
            epoch=epoch,
            seed=seed,
            offload=offload,
            flow_ids=itertools.count(1 + (worker << _WORKER_SHIFT)),
        ),
        widened=widened,
        prober=lambda rules, worker: _prober(rules, outside, hops, time_scale, worker),
    )
    files = FileOutputs(eve, pcap, metrics)
    try:
        Daemon(options, parts, files).run()
    finally:
        files.release()


def _prober(rules: RuleSet, outside: str, hops: int, time_scale: float, worker: int) -> ProberProcess | None:
    if not any(rule.action_name == "probe" for rule in rules.rules):
        return None
    return ProberProcess(outside, hops, time_scale, rules.seed + worker)
