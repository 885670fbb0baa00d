"""What `gfwemu doctor` tries. Each probe raises what is wrong, or returns a remark."""

from __future__ import annotations

import fcntl
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gfwemu import interpreted
from gfwemu.errors import CapabilityError
from gfwemu.kernel.conntrack import clear_connection_marks
from gfwemu.kernel.hop import nft_statement, set_xtables_hop, spread_lines
from gfwemu.kernel.inject import Injector
from gfwemu.kernel.netlink import NetfilterSocket
from gfwemu.kernel.nft import Nft, NftError
from gfwemu.kernel.queue import PacketQueue, QueueOptions
from gfwemu.kernel.ruleset import Ends
from gfwemu.kernel.table import Table
from gfwemu.rules.plan import KernelPlan, KernelRule

Need = Literal["run", "daemon", "extra"]
"""run: `gfwemu run` cannot work without. daemon: nor can a daemon on this host. extra: something works less well."""

_NET_ADMIN, _NET_RAW = 12, 13

# <linux/if_tun.h>
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


class LacksError(Exception):
    """A probe's finding; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Probe:
    name: str
    need: Need
    needed_for: str
    fix: str
    check: Callable[[], str | None]


# -- probes on the host ---------------------------------------------------------------------------------------------


def _privileges() -> None:
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    lacking = [
        name for name, bit in (("CAP_NET_ADMIN", _NET_ADMIN), ("CAP_NET_RAW", _NET_RAW)) if not effective >> bit & 1
    ]
    if lacking:
        raise LacksError(f"without {', '.join(lacking)}")


def _compiled() -> None:
    if interpreted:
        raise LacksError(interpreted)


def _programs(*names: str) -> Callable[[], None]:
    def check() -> None:
        missing = [name for name in names if shutil.which(name) is None]
        if missing:
            raise LacksError(f"missing: {', '.join(missing)}")

    return check


# -- probes inside throw-away namespaces ----------------------------------------------------------------------------


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise LacksError((done.stderr or done.stdout).strip() or f"exit code {done.returncode}")


def _tool(*commands: str) -> Callable[[], None]:
    def check() -> None:
        for command in commands:
            _run(command)

    return check


def _veth() -> None:
    _run("ip link add probe0 type veth peer name probe1")


def _nft_queue() -> None:
    nft = Nft()
    nft.run(f"add table inet probe; add chain inet probe hop; add rule inet probe hop {nft_statement(7, True)}")


def _xtables_hop() -> None:
    nft = Nft()
    nft.run("add table inet probe; add chain inet probe hop")
    set_xtables_hop(NetfilterSocket(), "probe", "hop", 7, True)


def _share_out() -> None:
    lines = "; ".join(f"add rule inet probe share {line}" for line in spread_lines(["way0", "way1"], "pair", "probe0"))
    chains = "; ".join(f"add chain inet probe {chain}" for chain in ("way0", "way1", "share"))
    Nft().run(f"add table inet probe; {chains}; {lines}")


def _bind_queue() -> None:
    PacketQueue(7, ("lo", "lo"), lambda _id, _data, _side, _length: None, QueueOptions(length=16)).close()


def _own_table() -> str:
    try:
        _nft_queue()
        way = "by nft's queue statement"
    except NftError:
        try:
            _xtables_hop()
        except OSError as error:
            raise CapabilityError(
                f"neither nft's queue statement nor xtables' NFQUEUE in nft_compat: {error}"
            ) from None
        way = "by xtables' NFQUEUE in nft_compat"
    networks = ("192.0.2.0/24", "2001:db8::/32")
    table = Table(Nft(), Ends("probe0", "probe1"))
    table.install(
        KernelPlan(
            (
                KernelRule(0, "probe-drop", "drop", servers=networks, ports=((80, 90),)),
                KernelRule(1, "probe-reset", "reset", servers=networks),
                KernelRule(2, "probe-icmp", "icmp_unreachable", clients=networks),
            )
        )
    )
    table.watch(bytes(4), bytes(4), 6, 443, None, 1.0)
    table.counters()
    table.remove()
    return f"packets are queued {way}"


def _connection_marks() -> None:
    Nft().run(
        "add table inet probe; add chain inet probe marks { type filter hook forward priority 0; };"
        "add rule inet probe marks ct mark set ct mark & 0xff0fffff | 0x00100000"
    )
    clear_connection_marks()


def _raw_sockets() -> None:
    Injector().close()


def _iptables_command(family: str) -> str:
    preferred = f"{family}-nft"
    return preferred if shutil.which(preferred) else family


def _iptables(*rules: tuple[str, str]) -> Callable[[], None]:
    def check() -> None:
        for family, rule in rules:
            _run(f"{_iptables_command(family)} -t mangle -A {rule}")

    return check


def _tun() -> None:
    with Path("/dev/net/tun").open("r+b", buffering=0) as device:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"probe%d", _IFF_TUN | _IFF_NO_PI))


def _wireguard() -> str:
    try:
        _run("ip link add probe9 type wireguard")
    except LacksError:
        if shutil.which("wireguard-go") is None:
            raise LacksError("neither the kernel module nor wireguard-go") from None
        _tun()
        return "wireguard-go"
    return "kernel module"


_INSTALL = "apt-get install {} (see lab/packages.apt)."

HOST_PROBES: tuple[Probe, ...] = (
    Probe(
        "privileges on this host",
        "daemon",
        "gfwemu daemon on this host's own interfaces",
        "Run the daemon as root; gfwemu run needs no root.",
        _privileges,
    ),
    Probe("ip", "run", "the lab's links", _INSTALL.format("iproute2"), _programs("ip")),
    Probe(
        "programs",
        "extra",
        "exercises and demos",
        _INSTALL.format("curl bind9-dnsutils tcpdump conntrack"),
        _programs("curl", "dig", "tcpdump", "conntrack"),
    ),
    Probe(
        "compiled modules",
        "extra",
        "two to three times the speed",
        "lab/setup compiles them; GFWEMU_INTERPRETED must not be set.",
        _compiled,
    ),
)

INSIDE_PROBES: tuple[Probe, ...] = (
    Probe("veth", "run", "the lab's links", "Load the module: modprobe veth.", _veth),
    Probe(
        "netfilter queue",
        "run",
        "the censor sees packets",
        "Load the module: modprobe nfnetlink_queue.",
        _bind_queue,
    ),
    Probe(
        "gfwemu's table",
        "run",
        "the censor: what the kernel decides, and what it queues",
        "Linux 5.6 or later with nf_tables, and one of nft_queue and nft_compat + xt_NFQUEUE: "
        "modprobe -a nf_tables nft_ct nft_reject_inet nft_fib_inet nft_queue.",
        _own_table,
    ),
    Probe(
        "connection marks",
        "run",
        "decided flows are left to the kernel",
        "Load the modules: modprobe -a nf_conntrack nf_conntrack_netlink.",
        _connection_marks,
    ),
    Probe("raw sockets", "run", "forged packets", "Allow CAP_NET_RAW.", _raw_sockets),
    Probe(
        "iptables NFQUEUE",
        "run",
        "delay and rate of the lab's links",
        "apt-get install iptables; modprobe xt_NFQUEUE.",
        _iptables(
            ("iptables", "POSTROUTING -j NFQUEUE --queue-num 8"), ("ip6tables", "POSTROUTING -j NFQUEUE --queue-num 8")
        ),
    ),
    Probe(
        "iptables TTL and HL",
        "run",
        "virtual hops of the lab",
        "apt-get install iptables; modprobe -a xt_TTL xt_HL.",
        _iptables(("iptables", "PREROUTING -j TTL --ttl-dec 1"), ("ip6tables", "PREROUTING -j HL --hl-dec 1")),
    ),
    Probe(
        "nft jhash",
        "extra",
        "gfwemu daemon --workers: packets are shared out by the hash of their addresses",
        "modprobe nft_hash; without it, leave --workers at 1.",
        _share_out,
    ),
    Probe("nft queue", "extra", "nothing, where xtables' NFQUEUE is there", "modprobe nft_queue.", _nft_queue),
    Probe(
        "xtables NFQUEUE in nft",
        "extra",
        "nothing, where nft queue is there",
        "modprobe -a nft_compat xt_NFQUEUE.",
        _xtables_hop,
    ),
    Probe(
        "tc netem",
        "extra",
        "delays in the kernel; the lab has its own",
        "modprobe sch_netem.",
        _tool("tc qdisc replace dev lo root netem delay 1ms"),
    ),
    Probe(
        "tc tbf",
        "extra",
        "shaping outside of the lab",
        "modprobe sch_tbf.",
        _tool("tc qdisc replace dev lo root tbf rate 1mbit burst 10k latency 50ms"),
    ),
    Probe(
        "tc htb",
        "extra",
        "shaping outside of the lab",
        "modprobe sch_htb.",
        _tool("tc qdisc replace dev lo root handle 1: htb", "tc class add dev lo parent 1: classid 1:1 htb rate 1mbit"),
    ),
    Probe(
        "TUN",
        "extra",
        "VPN programs in the lab",
        "modprobe tun; as an ordinary user also: chmod 0666 /dev/net/tun.",
        _tun,
    ),
    Probe(
        "WireGuard",
        "extra",
        "WireGuard tunnels in the lab",
        "modprobe wireguard; or apt-get install wireguard-go, which needs TUN.",
        _wireguard,
    ),
)
