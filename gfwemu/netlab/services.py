"""The programs of a lab: the mini-internet, the ISP's forwarder, the censor's daemon."""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gfwemu.errors import RulesError
from gfwemu.netlab.attach import Attached
from gfwemu.netlab.blueprint import Node, Service
from gfwemu.netlab.errors import LabError
from gfwemu.netlab.identity import Identity
from gfwemu.netlab.internet.plan import Plan
from gfwemu.netlab.topology import Internet, Topology

EVE = "eve.json"
DAEMON = "daemon"
INTERNET = "internet"
FORWARDER = "forwarder"

# What the daemon says on its standard error.
_RELOADED = "gfwemu: reloaded:"
_NOT_RELOADED = "gfwemu: the rules were not reloaded"
_POLL = 0.02


@dataclass(frozen=True, slots=True)
class Censor:
    """What the daemon is told."""

    rules: tuple[Path, ...]
    eve: Path
    pcap: Path | None
    seed: int | None
    time_scale: float
    start_time: float | None = None
    options: tuple[str, ...] = ()


def plan_directory(directory: Path) -> Path:
    """Where the mini-internet keeps certificates, client configurations and logs."""
    return directory / "internet"


def authority(directory: Path) -> str:
    """The certificate of the lab's authority, once the mini-internet is up."""
    return str(plan_directory(directory) / "authority.pem")


def make_plan(internet: Internet, directory: Path, *, ipv6: bool) -> Plan | None:
    """The mini-internet's plan; None where the topology serves nothing."""
    if not internet.serves:
        return None
    sites, resolvers, catch_all = internet.sites, internet.resolvers, internet.catch_all
    if not ipv6:
        sites = tuple(replace(site, v6=()) for site in sites)
        resolvers = tuple(replace(resolver, v6=()) for resolver in resolvers)
        catch_all = replace(catch_all, v6=()) if catch_all else None
    return Plan(
        directory=str(plan_directory(directory)),
        catch_all=catch_all,
        sites=sites,
        resolvers=resolvers,
        absent=internet.absent,
        services=internet.services,
        tunnels=internet.tunnels,
        ttl=internet.ttl,
    )


def list_services(
    directory: Path, topology: Topology, nodes: Sequence[Node], plan: Plan | None, censor: Censor
) -> tuple[Service, ...]:
    """What the supervisor starts. The plan goes to a file here."""
    python: tuple[str, ...] = (sys.executable, "-P", "-m")
    services: list[Service] = []
    if censor.rules:
        hops = topology.path.outside.hops
        arguments = _daemon_arguments(write_rules(directory, censor.rules), censor, hops)
        services.append(Service(DAEMON, "censor", (*python, "gfwemu", *arguments), 30.0, 5.0))
    if plan is not None:
        path = directory / "plan.json"
        path.write_text(plan.to_json(), encoding="utf-8")
        argv = (*python, "gfwemu.netlab.internet", "--plan", str(path), "--ready-fd")
        services.append(Service(INTERNET, "internet", argv, 60.0, 0.0))
        client, access = nodes[0], nodes[1]
        upstream = [address for resolver in plan.resolvers for address in resolver.addresses]
        if topology.forwarder and upstream:
            argv = (*python, "gfwemu.netlab.internet.forwarder", "--listen", client.resolvers[0])
            argv += ("--upstream", access.resolvers[0], "--ready-fd")
            services.append(Service(FORWARDER, "access", argv, 30.0, 0.0))
    return tuple(services)


def _daemon_arguments(rules: Path, censor: Censor, hops: int) -> tuple[str, ...]:
    arguments = [DAEMON]
    arguments += ["-c", str(rules), "--inside", "inside", "--outside", "outside", "--eve", str(censor.eve)]
    if censor.pcap is not None:
        arguments += ["--pcap", str(censor.pcap)]
    if censor.seed is not None:
        arguments += ["--seed", str(censor.seed)]
    if censor.start_time is not None:
        moment = datetime.datetime.fromtimestamp(censor.start_time, datetime.UTC)
        arguments += ["--start-time", moment.isoformat()]
    arguments += ["--time-scale", f"{censor.time_scale:g}", "--hops", str(hops), *censor.options, "--ready-fd"]
    return tuple(arguments)


def hand_over(directory: Path, user: Identity) -> None:
    """Let the user behind sudo read what root made for his programs."""
    if user.uid == os.geteuid() or not plan_directory(directory).is_dir():
        return
    for path in (plan_directory(directory), *plan_directory(directory).rglob("*")):
        os.chown(path, user.uid, user.gid, follow_symlinks=False)


def write_rules(directory: Path, rules: Sequence[Path]) -> Path:
    """One file that includes the lab's rule files: the daemon's command line stays as it is when they change."""
    path = directory / "rules.yaml"
    fresh = directory / "rules.yaml.new"
    fresh.write_text(f"version: 1\ninclude: {json.dumps([str(rule) for rule in rules])}\n", encoding="utf-8")
    fresh.replace(path)
    return path


def reload(lab: Attached, timeout: float) -> None:
    """Let the daemon read its rule files again, and wait until it has.

    Raises LabError with the daemon's own words where it keeps the old rules.
    """
    log = lab.directory / f"{DAEMON}.log"
    start = log.stat().st_size if log.exists() else 0
    lab.signal_service(DAEMON, signal.SIGHUP)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with log.open("rb") as file:
            file.seek(start)
            said = file.read().decode(errors="replace")
        if _RELOADED in said:
            return
        if _NOT_RELOADED in said:
            problems = said.partition(_NOT_RELOADED)[2].partition("\n")[2].strip()
            raise LabError(problems, exit_code=RulesError.exit_code)
        time.sleep(_POLL)
    raise LabError(f"The censor did not reload its rules within {timeout:g} s.")
