"""The programs of a lab: the mini-internet, the ISP's forwarder, the censor's daemon."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gfwemu.netlab.attach import Attached
from gfwemu.netlab.blueprint import Node, Service
from gfwemu.netlab.identity import Identity
from gfwemu.netlab.internet.plan import Plan
from gfwemu.netlab.topology import Internet, Topology

EVE = "eve.json"
DAEMON = "daemon"
INTERNET = "internet"
FORWARDER = "forwarder"


@dataclass(frozen=True, slots=True)
class Censor:
    """What the daemon is told."""

    rules: tuple[Path, ...]
    eve: Path
    pcap: Path | None
    seed: int | None
    time_scale: float
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
        services.append(Service(DAEMON, "censor", (*python, "gfwemu", *_daemon_arguments(censor)), 30.0, 5.0))
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


def _daemon_arguments(censor: Censor) -> tuple[str, ...]:
    arguments = [DAEMON]
    for path in censor.rules:
        arguments += ["-c", str(path)]
    arguments += ["--inside", "inside", "--outside", "outside", "--eve", str(censor.eve)]
    if censor.pcap is not None:
        arguments += ["--pcap", str(censor.pcap)]
    if censor.seed is not None:
        arguments += ["--seed", str(censor.seed)]
    arguments += ["--time-scale", f"{censor.time_scale:g}", *censor.options, "--ready-fd"]
    return tuple(arguments)


def hand_over(directory: Path, user: Identity) -> None:
    """Let the user behind sudo read what root made for his programs."""
    if user.uid == os.geteuid() or not plan_directory(directory).is_dir():
        return
    for path in (plan_directory(directory), *plan_directory(directory).rglob("*")):
        os.chown(path, user.uid, user.gid, follow_symlinks=False)


def reload(lab: Attached) -> None:
    """Ask the daemon to read its rule files again."""
    lab.signal_service(DAEMON, signal.SIGHUP)
