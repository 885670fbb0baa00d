"""The lab's network on one of the three virtual machines: `network.py {up,down,plan,files} ROLE [TOPOLOGY]`.

`plan` prints the mini-internet's plan, `files` the address where the internet machine has the client's files.

Addresses come from a topology file. What the lab in namespaces spreads over five nodes is folded into three machines:
the censor has the inner address of the access router and the outer one of the transit router. The machines keep their
management interface; everything that the client sends elsewhere goes through the censor.
"""

import re
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from gfwemu.netlab.internet.plan import Plan, Service, Ssh
from gfwemu.netlab.services import make_plan
from gfwemu.netlab.topology import Topology, load_topology

STATE = Path("/var/lib/gfwemu")
RESOLV_CONF, KEPT_RESOLV_CONF = Path("/etc/resolv.conf"), Path("/etc/resolv.conf.before-gfwemu")
KEEP_RESOLV_CONF = Path("/etc/dhcp/dhclient-enter-hooks.d/gfwemu")
INTERFACES = {"client": ("lab",), "censor": ("inside", "outside"), "internet": ("lab",)}
# Two halves beat the management interface's default route without removing it.
EVERYTHING = {4: ("0.0.0.0/1", "128.0.0.0/1"), 6: ("::/1", "8000::/1")}
FROM_INSIDE, FROM_OUTSIDE = 100, 101
# The machine's own sshd has port 22 of every address.
SSH_PORT = 2222


def main(command: str, role: str, topology: str = "default") -> None:
    wanted = load_topology(topology)
    if command == "plan":
        print(plan_of(wanted).to_json())
    elif command == "files":
        print(next(ip_interface(text).ip for text in wanted.internet_link if ":" not in text))
    elif command == "up":
        down(role)
        up(role, wanted)
    elif command == "down":
        down(role)
    else:
        raise SystemExit(__doc__)


def plan_of(topology: Topology) -> Plan:
    """The topology's mini-internet, with the servers that the demo's cases talk to."""
    demo = yaml.safe_load((Path(__file__).parents[1] / "demo.yaml").read_text(encoding="utf-8"))
    services = TypeAdapter(tuple[Service, ...]).validate_python(demo["services"])
    served = topology.internet.model_copy(update={"services": (*topology.internet.services, *services)})
    plan = make_plan(served, STATE, ipv6=True)
    if plan is None:
        raise SystemExit("this topology has no mini-internet")
    moved = (replace(service, port=SSH_PORT) if isinstance(service, Ssh) else service for service in plan.services)
    return replace(plan, services=tuple(moved))


def up(role: str, topology: Topology) -> None:
    for name in INTERFACES[role]:
        for setting in ("ipv4/conf/{}/rp_filter=0", "ipv6/conf/{}/accept_ra=0", "ipv6/conf/{}/accept_dad=0"):
            sysctl(setting.format(name))
        # Whoever reads packets on the way must see them as they are on the wire.
        run("ethtool", "-K", name, "tx", "off", "tso", "off", "gso", "off", "gro", "off", check=False)
    sysctl("ipv4/conf/all/rp_filter=0")
    {"client": client, "censor": censor, "internet": internet}[role](topology)


def client(topology: Topology) -> None:
    lines = interface("lab", topology.client)
    for gateway in topology.access.inside:
        address = ip_interface(gateway)
        lines += [f"route add {half} via {address.ip} dev lab" for half in EVERYTHING[address.version]]
    batch(lines)
    resolver = next(address for resolver in topology.internet.resolvers for address in resolver.v4)
    if not KEPT_RESOLV_CONF.is_symlink() and not KEPT_RESOLV_CONF.exists():
        RESOLV_CONF.rename(KEPT_RESOLV_CONF)
    RESOLV_CONF.unlink(missing_ok=True)
    RESOLV_CONF.write_text(f"nameserver {resolver}\n")
    if KEEP_RESOLV_CONF.parent.is_dir():
        KEEP_RESOLV_CONF.write_text("make_resolv_conf() { :; }\n")


def censor(topology: Topology) -> None:
    lines = interface("inside", topology.access.inside) + interface("outside", topology.transit.outside)
    for text in topology.internet_link:
        lines.append(f"route add default via {ip_interface(text).ip} dev outside table {FROM_INSIDE}")
    for text in topology.access.inside:
        lines.append(f"route add {ip_interface(text).network} dev inside table {FROM_OUTSIDE}")
    batch(lines)
    for family in ("-4", "-6"):
        # What comes in from the lab leaves to the lab, never over the management interface.
        batch([f"route add blackhole default table {FROM_OUTSIDE}"], family)
        batch([f"rule add iif inside lookup {FROM_INSIDE}", f"rule add iif outside lookup {FROM_OUTSIDE}"], family)
    sysctl("ipv4/ip_forward=1")
    sysctl("ipv6/conf/all/forwarding=1")
    delay("outside", topology)


def internet(topology: Topology) -> None:
    lines = interface("lab", topology.internet_link)
    served = dict.fromkeys((*topology.internet.addresses, *plan_of(topology).addresses))
    lines += [f"address add {address}/{128 if ':' in address else 32} dev lo" for address in served]
    gateways = {ip_interface(text).version: ip_interface(text).ip for text in topology.transit.outside}
    for text in topology.client:
        network = ip_interface(text).network
        lines.append(f"route add {network} via {gateways[network.version]} dev lab")
    batch(lines)
    delay("lab", topology)


def down(role: str) -> None:
    """Whatever `up` did, also when it stopped half way."""
    for name in INTERFACES[role]:
        run("tc", "qdisc", "del", "dev", name, "root", check=False)
        run("ip", "address", "flush", "dev", name, check=False)
        run("ip", "link", "set", name, "down", check=False)
    if role == "internet":
        run("ip", "address", "flush", "dev", "lo", "scope", "global", check=False)
    if role == "censor":
        for family in ("-4", "-6"):
            for way, table in (("inside", FROM_INSIDE), ("outside", FROM_OUTSIDE)):
                run("ip", family, "route", "flush", "table", str(table), check=False)
                while run("ip", family, "rule", "del", "iif", way, "lookup", str(table), check=False):
                    pass
    if role == "client" and (KEPT_RESOLV_CONF.is_symlink() or KEPT_RESOLV_CONF.exists()):
        KEPT_RESOLV_CONF.replace(RESOLV_CONF)
        KEEP_RESOLV_CONF.unlink(missing_ok=True)


def interface(name: str, addresses: tuple[str, ...]) -> list[str]:
    nodad = {True: " nodad", False: ""}
    return [
        f"link set {name} up",
        *(f"address add {address} dev {name}{nodad[':' in address]}" for address in addresses),
    ]


def delay(name: str, topology: Topology) -> None:
    """One direction of the way abroad."""
    outside = topology.path.outside
    if outside.rtt or outside.loss:
        netem = ["delay", f"{outside.rtt / 2 * 1000:g}ms", "loss", f"{outside.loss * 100:g}%"]
        run("tc", "qdisc", "add", "dev", name, "root", "netem", "limit", "10000", *netem)


def sysctl(setting: str) -> None:
    name, _, value = setting.partition("=")
    Path("/proc/sys/net", name).write_text(value)


def batch(lines: list[str], family: str = "") -> None:
    run(*re.findall(r"\S+", f"ip {family} -batch -"), given="\n".join(lines) + "\n")


def run(*argv: str, given: str = "", check: bool = True) -> bool:
    done = subprocess.run(argv, input=given, capture_output=not check, text=True, check=False)
    if check and done.returncode:
        raise SystemExit(f"network: {' '.join(argv)} failed\n{given}")
    return done.returncode == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
