"""Turns a node of the blueprint into kernel state, from inside the lab's namespaces.

Batches for `ip` and `iptables-restore` rather than a netlink library: importing one takes ten times as long as
everything that is done here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from gfwemu.errors import CapabilityError
from gfwemu.netlab import syscalls
from gfwemu.netlab.blueprint import Hook, Node

TOOL_DEADLINE = 20.0

# IPv6 addresses are usable at once (no DAD), and nothing on the links happens by itself.
_QUIET: dict[str, str] = {
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv4/icmp_ratelimit": "0",
    "ipv4/ip_unprivileged_port_start": "0",
}
_QUIET_V6: dict[str, str] = {
    "ipv6/conf/all/disable_ipv6": "0",
    "ipv6/conf/default/disable_ipv6": "0",
    "ipv6/conf/all/accept_dad": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/router_solicitations": "0",
    "ipv6/icmp/ratelimit": "0",
}


@contextmanager
def inside(network: int) -> Iterator[None]:
    """Run the body in the network namespace behind the descriptor `network`, then come back."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(network, syscalls.CLONE_NEWNET)
        try:
            yield
        finally:
            syscalls.setns(home, syscalls.CLONE_NEWNET)
    finally:
        os.close(home)


def set_sysctls(node: Node, *, ipv6: bool, everybody_may_ping: bool) -> None:
    """The caller is in the node's namespace, before the first interface exists there."""
    wanted = dict(_QUIET)
    wanted["ipv4/ping_group_range"] = "0 2147483647" if everybody_may_ping else "0 0"
    # A new namespace takes over the machine's own switch.
    forwards = "1" if node.forwards else "0"
    wanted["ipv4/ip_forward"] = forwards
    if ipv6:
        wanted |= _QUIET_V6 | {"ipv6/conf/all/forwarding": forwards}
    for name, value in wanted.items():
        try:
            Path("/proc/sys/net", name).write_text(value, encoding="ascii")
        except OSError as error:
            raise CapabilityError(
                f"Cannot set net.{name.replace('/', '.')} on the lab's {node.name}: {error.strerror}.",
                "/proc/sys must be writable; in a container, that takes --security-opt systempaths=unconfined.",
            ) from None


def connect(node: Node, neighbour: Node | None, neighbour_pid: int) -> None:
    """Make the veth pair to the right neighbour, give the node its addresses and routes. Called from left to right."""
    lines = ["link set lo up"]
    if node.right is not None and neighbour is not None and neighbour.left is not None:
        peer = neighbour.left.name
        lines.append(f"link add {node.right.name} type veth peer name {peer} netns {neighbour_pid}")
    for end in (node.left, node.right):
        if end is not None:
            lines.append(f"link set {end.name} up")
            lines += [f"address add {address} dev {end.name}{_flags(address)}" for address in end.addresses]
    lines += [f"address add {address} dev lo{_flags(address)}" for address in node.loopback]
    lines += [f"route add local {network} dev lo" for network in node.local]
    lines += [f"route add {route.destination} via {route.via} dev {route.interface}" for route in node.routes]
    run_tool(["ip", "-batch", "-"], "\n".join(lines) + "\n", f"the links of {node.name}")


def _flags(address: str) -> str:
    return " nodad" if ":" in address else ""


def mangle(node: Node, hooks: Sequence[Hook], *, ipv6: bool, environment: Mapping[str, str]) -> None:
    """Virtual hops, and the queues of those pipes that are in user space. Hook i has the queue number i + 1."""
    if not node.extra_hops and not hooks:
        return
    for family in ("ip", "ip6") if ipv6 else ("ip",):
        lines = ["*mangle"]
        if family == "ip6":
            # Neighbour discovery lives by its hop limit of 255 (RFC 4861, 7.1) and must not wait in a pipe; what stays
            # on the link (MLD) shall not use up the pipes' random numbers.
            for chain in _CHAINS:
                for kind in ("neighbour-solicitation", "neighbour-advertisement"):
                    lines.append(f"-A {chain} -p icmpv6 --icmpv6-type {kind} -j RETURN")
                lines += [f"-A {chain} -s fe80::/10 -j RETURN", f"-A {chain} -d ff00::/8 -j RETURN"]
        if node.extra_hops:
            target = "TTL --ttl-dec" if family == "ip" else "HL --hl-dec"
            lines.append(f"-A PREROUTING -j {target} {node.extra_hops}")
        for number, hook in enumerate(hooks, 1):
            way = "-i" if hook.chain == "PREROUTING" else "-o"
            lines.append(f"-A {hook.chain} {way} {hook.interface} -j NFQUEUE --queue-num {number}")
        run_tool(
            [_restore(family), "-n"],
            "\n".join([*lines, "COMMIT", ""]),
            f"the hops and pipes of {node.name}",
            environment,
        )


_CHAINS = ("PREROUTING", "POSTROUTING")


def _restore(family: str) -> str:
    """The nftables back end where there is one: it needs no lock file in a directory of root's."""
    preferred = f"{family}tables-nft-restore"
    return preferred if shutil.which(preferred) else f"{family}tables-restore"


def run_tool(argv: list[str], text: str, purpose: str, environment: Mapping[str, str] | None = None) -> None:
    """Feed a batch to a tool. Raises CapabilityError with what the tool said."""
    try:
        done = subprocess.run(
            argv,
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TOOL_DEADLINE,
            check=False,
            env=None if environment is None else {**os.environ, **environment},
        )
    except FileNotFoundError:
        raise CapabilityError(f"The program {argv[0]} is missing.", "Install iproute2 and iptables.") from None
    except subprocess.TimeoutExpired:
        raise CapabilityError(f"{argv[0]} did not finish within {TOOL_DEADLINE:g} s over {purpose}.") from None
    if done.returncode:
        said = " ".join(done.stdout.decode(errors="replace").split())
        raise CapabilityError(f"{argv[0]} could not make {purpose}: {said}.", "See gfwemu doctor.")
