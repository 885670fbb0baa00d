"""`gfwemu lab`: a lab that stays until it is taken down."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from gfwemu.cli.run import Options, run_in, with_lab_options
from gfwemu.errors import UsageError
from gfwemu.netlab import rundir, status
from gfwemu.netlab.attach import Attached, end_supervisor
from gfwemu.netlab.errors import LabError
from gfwemu.netlab.graph import draw_dot, draw_text
from gfwemu.netlab.lab import Lab
from gfwemu.netlab.links import find_link
from gfwemu.netlab.services import reload
from gfwemu.netlab.supervisor import STOP_DEADLINE
from gfwemu.netlab.topology import load_topology
from gfwemu.rules.load import load_rules

_RELOAD_DEADLINE = 60.0
_NAME = click.option("--name", default="default", show_default=True, help="Which lab; several may be up.")


@click.group()
def lab() -> None:
    """A lab that stays: bring it up once, run programs in it, take it down.

    \b
    gfwemu lab up --profile china
    gfwemu lab exec client -- curl https://www.blocked.example/
    gfwemu lab down
    """


@lab.command()
@_NAME
@with_lab_options
def up(name: str, **options: Any) -> None:
    """Build a lab and leave it running."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
        raise UsageError(f"'{name}' cannot name a lab; use letters, digits, - and _.")
    chosen = Options(**options)
    paths = chosen.rules
    rules = load_rules(paths, seed=chosen.seed) if paths else None
    started = Lab(
        load_topology(chosen.topology),
        paths,
        link=chosen.link,
        eve=chosen.eve,
        pcap=chosen.pcap,
        seed=rules.seed if rules else chosen.seed,
        time_scale=chosen.time_scale,
        daemon_options=chosen.daemon_options,
        start_time=chosen.start_time,
        name=name,
        labels={
            "topology": str(Path(chosen.topology).resolve()) if Path(chosen.topology).is_file() else chosen.topology,
            "censor": chosen.censor,
            **({"link": chosen.link} if chosen.link else {}),
        },
    )
    started.start()
    click.echo(f"The lab '{name}' is up: {chosen.censor}. Its files are in {started.directory}.")


@lab.command()
@_NAME
@click.option("--all", "everything", is_flag=True, help="Every lab of yours, and what killed ones left behind.")
def down(name: str, everything: bool) -> None:
    """Take a lab down; it is no error when there is none."""
    directories = list(rundir.directories()) if everything else [rundir.base_directory() / f"lab-{name}"]
    ended = []
    for directory in directories:
        if directory.name.startswith("lab-") and directory.is_dir():
            _end(directory)
            ended.append(directory.name.removeprefix("lab-"))
    stale = rundir.clean_stale() if everything else []
    rundir.remove_base_if_empty()
    for ended_name in ended:
        click.echo(f"The lab '{ended_name}' is down.")
    for path in stale:
        click.echo(f"Removed what was left of {path.name}.")
    if not ended and not stale:
        click.echo("There was no lab." if everything else f"There was no lab '{name}'.")


@lab.command("status")
@_NAME
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status_(name: str, as_json: bool) -> None:
    """Show a lab's nodes, addresses, services and queues."""
    facts = status.as_json(_attach(name))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"lab {facts['name']} in {facts['directory']}")
    for label, value in facts["labels"].items():
        click.echo(f"  {label}: {value}")
    click.echo("nodes")
    for node, entry in facts["nodes"].items():
        click.echo(f"  {node:9} {' '.join(entry['addresses'])}")
    click.echo("services")
    for service, entry in facts["services"].items():
        click.echo(f"  {service:14} {entry['state']}")
    for server, entry in facts["servers"].items():
        detail = f" ({entry['detail']})" if entry["detail"] else ""
        click.echo(f"  {server:14} {entry['state']}{detail}")
    click.echo("queues")
    for queue in facts["queues"]:
        lost = f"{queue['lost']} lost"
        if queue["lost"]:
            lost += (
                f" ({queue['queue_dropped']} at the full queue, {queue['socket_dropped']} at its reader's full socket)"
            )
        click.echo(f"  {queue['node']:9} queue {queue['number']}: {queue['waiting']} waiting, {lost}")


@lab.command("exec", context_settings={"allow_interspersed_args": False})
@_NAME
@click.option("--as-root", is_flag=True, help="Run the program as the lab's root.")
@click.argument("node")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- PROGRAM [ARGUMENT]...")
def exec_(name: str, as_root: bool, node: str, command: tuple[str, ...]) -> None:
    """Run a program on a node of a lab that is up; its exit code is ours."""
    if command[:1] == ("--",):
        command = command[1:]
    if not command:
        raise UsageError("Say which program to run: gfwemu lab exec client -- PROGRAM [ARGUMENT]...")
    sys.exit(run_in(_attach(name), node, list(command), as_root=as_root))


@lab.command("reload")
@_NAME
def reload_(name: str) -> None:
    """Let the censor of a lab read its rule files again."""
    attached = _attach(name)
    reload(attached, _RELOAD_DEADLINE)
    click.echo(f"The censor of the lab '{name}' has read its rules again.")


@lab.command()
@_NAME
@click.option("--topology", metavar="NAME", help="Draw this one instead of a running lab's.")
@click.option("--dot", is_flag=True, help="For Graphviz.")
def graph(name: str, topology: str | None, dot: bool) -> None:
    """Draw the topology of a lab."""
    labels = {} if topology else _attach(name).state["labels"]
    drawn = load_topology(topology or labels["topology"])
    link = find_link(labels["link"]) if "link" in labels else None
    click.echo((draw_dot if dot else draw_text)(drawn, link, labels.get("censor", "")))


def _attach(name: str) -> Attached:
    try:
        return Attached(rundir.base_directory() / f"lab-{name}")
    except LabError:
        raise UsageError(f"There is no lab '{name}'; bring it up with gfwemu lab up --name {name}.") from None
    finally:
        rundir.remove_base_if_empty()


def _end(directory: Path) -> None:
    process = rundir.supervisor_of(directory)
    if process is not None:
        end_supervisor(process, STOP_DEADLINE + 2)
    rundir.remove(directory)
