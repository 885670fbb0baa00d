"""The text of gfwemu's nftables table for a kernel plan. Pure: nothing here touches the kernel.

The way of a forwarded packet: `forward` (priority -160) turns to `between` by its interfaces; there, watched endpoints
go to the queue, kernel rules decide, the connection mark answers for decided flows, and the rest goes to the queue. As
in the engine, the client is who opened the flow; what connection tracking cannot say this of is queued. After the
verdict, `decided` (-140) keeps an offload in the connection mark and drops where the packet's mark says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gfwemu.kernel.marks import (
    CONNECTION_BITS,
    ID_ZERO,
    INJECTED,
    OFFLOAD,
    OFFLOAD_ACCEPT,
    OFFLOAD_DROP,
    PACKET_BITS,
    QUEUED,
    connection_mark,
)
from gfwemu.rules.plan import KernelPlan, KernelRule

WATCH_LIMIT = 65_536
"""Elements of each watch set, at most."""

_FAMILIES = (("ip", "ipv4_addr", 4), ("ip6", "ipv6_addr", 6))
_ICMP_CODES = {
    "network": "no-route",
    "host": "host-unreachable",
    "port": "port-unreachable",
    "admin_prohibited": "admin-prohibited",
}
_PORT = " . inet_proto . inet_service"
_KEYS = ((0, ""), (1, _PORT), (2, ""), (3, _PORT), (4, f"{_PORT} . inet_service"))
_CHAINS = (
    "to_queue",
    "watched",
    "watched_v4",
    "watched_v6",
    "between",
    "by_mark",
    "alive",
    "settle",
    "to_server",
    "to_client",
)
_KEEP_PACKET = 0xFFFFFFFF & ~PACKET_BITS
_KEEP_CONNECTION = 0xFFFFFFFF & ~CONNECTION_BITS


@dataclass(frozen=True, slots=True)
class Ends:
    """The two interfaces between which packets are looked at."""

    inside: str
    outside: str


@dataclass(frozen=True, slots=True)
class AddressSet:
    """One interval set of a kernel rule. width: of its addresses, in bytes."""

    name: str
    kind: str
    width: int
    networks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long the kernel answers for an idle flow, in real seconds: as long as the engine would remember it.

    limit: flows that the kernel answers for, at most; the others stay queued.
    """

    tcp: float = 480.0
    udp: float = 60.0
    other: float = 30.0
    limit: int = 100_000


def watch_set(version: int, length: int) -> str:
    """The name of the set for keys of that many parts (2: addresses, 3: and server port, 4: and client port; 0: the
    server's address, 1: and its port)."""
    return f"watch{length}_v{version}"


def counter_name(number: int, generation: int) -> str:
    """Of the plan's rule at that place; two rules of a plan may have the same name and index."""
    return f"rule{number}_g{generation}"


def frame_text(table: str, ends: Ends, limit: int) -> str:
    """What stays the same from one reload to the next: base chains, empty chains, watch sets."""
    inside, outside = f'"{ends.inside}"', f'"{ends.outside}"'
    lines = [f"table inet {table} {{"]
    for _, kind, version in _FAMILIES:
        for length, more in _KEYS:
            addresses = kind if length < 2 else f"{kind} . {kind}"
            lines.append(
                f"set {watch_set(version, length)} {{ type {addresses}{more}; flags timeout; size {WATCH_LIMIT}; }}"
            )
    lines.append(f"set offloaded {{ typeof ct id; flags dynamic,timeout; size {limit}; }}")
    lines += [f"chain {name} {{ }}" for name in (*_CHAINS, "fragments")]
    for name, priority, target in (("forward", -160, "between"), ("decided", -140, "settle")):
        lines += [
            f"chain {name} {{ type filter hook forward priority {priority}; policy accept;",
            f"iifname {inside} oifname {outside} goto {target}",
            f"iifname {outside} oifname {inside} goto {target}",
            "}",
        ]
    lines += [
        # Before connection tracking's own reassembly (NF_IP_PRI_CONNTRACK_DEFRAG, -400).
        "chain prerouting { type filter hook prerouting priority -450; policy accept;",
        f"iifname {{ {inside}, {outside} }} jump fragments",
        "}",
        "chain output { type filter hook output priority -450; policy accept;",
        f"meta mark & {INJECTED:#x} == 0 accept",
        "notrack",
        f"meta mark & {ID_ZERO:#x} != 0 ip id set 0",
        "}",
        "}",
    ]
    return "\n".join(lines) + "\n"


def objects_text(table: str, plan: KernelPlan, generation: int) -> str:
    """The counters and the empty sets that `content_text` refers to; `address_sets` says what belongs into the sets."""
    lines = [f"table inet {table} {{"]
    for number, rule in enumerate(plan.rules):
        base = counter_name(number, generation)
        lines.append(f"counter {base} {{ }}")
        lines += [f"set {one.name} {{ type {one.kind}; flags interval; }}" for one in _sets(rule, base)]
    return "\n".join([*lines, "}"]) + "\n"


def address_sets(plan: KernelPlan, generation: int) -> Iterator[AddressSet]:
    for number, rule in enumerate(plan.rules):
        yield from _sets(rule, counter_name(number, generation))


def content_text(table: str, plan: KernelPlan, generation: int, lifetimes: Lifetimes, old: tuple[str, ...] = ()) -> str:
    """What a reload replaces, as one transaction, after `objects_text`. `old`: what `object_names` said of the old."""
    lines = [f"flush chain inet {table} {name}" for name in (*_CHAINS, "fragments")]
    lines += [f"delete {name}" for name in old]
    lines.append(f"table inet {table} {{")
    lines += ["chain to_queue {", f"meta mark set meta mark & {_KEEP_PACKET:#x} | {QUEUED:#x}", "jump hop", "}"]
    lines += ["chain between {", *_between(plan), "}"]
    lines += ["chain by_mark {", *_by_mark(plan, generation), "}"]
    lines += ["chain alive {", *_refreshed(lifetimes), f"ct mark & {OFFLOAD_DROP:#x} != 0 drop", "accept", "}"]
    lines += ["chain settle {", *_settle(generation, lifetimes), "}"]
    for chain, to_server in (("to_server", True), ("to_client", False)):
        lines.append(f"chain {chain} {{")
        lines += _watched(plan, to_server)
        for number, rule in enumerate(plan.rules):
            lines += _rule(rule, counter_name(number, generation), to_server)
        lines += ["goto by_mark", "}"]
    if not plan.track_fragments:
        lines += [
            "chain fragments {",
            "ip frag-off & 0x3fff != 0 fib daddr type != local notrack",
            "exthdr frag exists fib daddr type != local notrack",
            "}",
        ]
    lines.append("}")
    return "\n".join(lines) + "\n"


def object_names(table: str, plan: KernelPlan, generation: int) -> tuple[str, ...]:
    """The sets and counters of a plan, as `delete` wants them."""
    names: list[str] = []
    for number, rule in enumerate(plan.rules):
        base = counter_name(number, generation)
        names.append(f"counter inet {table} {base}")
        names += [f"set inet {table} {one.name}" for one in _sets(rule, base)]
    return tuple(names)


def _sets(rule: KernelRule, base: str) -> Iterator[AddressSet]:
    for part, networks in (("servers", rule.servers), ("clients", rule.clients)):
        for _, kind, version in _FAMILIES:
            members = tuple(network for network in networks if (":" in network) == (version == 6))
            if members:
                yield AddressSet(f"{base}_{part}{version}", kind, 4 if version == 4 else 16, members)


def _rule(rule: KernelRule, base: str, to_server: bool) -> Iterator[str]:
    if rule.direction not in ("both", "to_server" if to_server else "to_client"):
        return
    server, client, port = ("daddr", "saddr", "dport") if to_server else ("saddr", "daddr", "sport")
    transports = rule.transports or (("tcp", "udp") if rule.ports else ())
    made = {one.name for one in _sets(rule, base)}
    ports = ", ".join(f"{low}-{high}" if high > low else f"{low}" for low, high in _merged(rule.ports))
    for family, _, version in _FAMILIES:
        matches: list[str] = []
        for part, networks, field in (("servers", rule.servers, server), ("clients", rule.clients, client)):
            if networks:
                matches.append(f"{family} {field} @{base}_{part}{version}")
        if any(match.rpartition("@")[2] not in made for match in matches):
            continue
        for transport in transports or ("",):
            match = " ".join(matches)
            if transport:
                match += f" meta l4proto {transport}"
            if ports:
                match += f" th {port} {{ {ports} }}"
            for verdict in _verdicts(rule, transport, to_server):
                yield f"{match} {verdict.format(counter=f'counter name {base}')}".strip()
        if not matches:
            return


def _verdicts(rule: KernelRule, transport: str, to_server: bool) -> Iterator[str]:
    if rule.verdict == "accept":
        yield "{counter} accept"
        return
    if rule.verdict == "reset" and transport in ("", "tcp"):
        yield ("" if transport else "meta l4proto tcp ") + "{counter} reject with tcp reset"
    if rule.verdict == "icmp_unreachable" and to_server:
        yield f"{{counter}} reject with icmpx type {_ICMP_CODES[rule.code]}"
    else:
        yield "{counter} drop"


def _merged(ports: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Sorted and without overlaps, which nft refuses."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ports):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _watched(plan: KernelPlan, to_server: bool) -> Iterator[str]:
    client, server = ("s", "d") if to_server else ("d", "s")
    for family, _, version in _FAMILIES:
        if plan.server_blocks:
            yield f"{family} {server}addr @{watch_set(version, 0)} goto to_queue"
            yield f"{family} {server}addr . meta l4proto . th {server}port @{watch_set(version, 1)} goto to_queue"
        key = f"{family} {client}addr . {family} {server}addr"
        yield f"{key} @{watch_set(version, 2)} goto to_queue"
        key += f" . meta l4proto . th {server}port"
        yield f"{key} @{watch_set(version, 3)} goto to_queue"
        yield f"{key} . th {client}port @{watch_set(version, 4)} goto to_queue"


def _between(plan: KernelPlan) -> Iterator[str]:
    if plan.offload or plan.rules:
        # An ICMP error carries direction and mark of the flow it is about, but is none of its packets.
        yield "ct state related goto to_queue"
        yield "ct direction original goto to_server"
        yield "ct direction reply goto to_client"
    yield "goto to_queue"


def _by_mark(plan: KernelPlan, generation: int) -> Iterator[str]:
    if plan.offload:
        # Such a SYN may begin a new flow between the same endpoints.
        yield "tcp flags & (fin | syn | rst | ack) == syn goto to_queue"
        marks = ", ".join(f"{connection_mark(offload, generation):#x}" for offload in (OFFLOAD_ACCEPT, OFFLOAD_DROP))
        yield f"ct mark & {CONNECTION_BITS:#x} {{ {marks} }} ct id @offloaded goto alive"
    yield "goto to_queue"


def _refreshed(lifetimes: Lifetimes) -> Iterator[str]:
    for match, seconds in (
        ("meta l4proto tcp", lifetimes.tcp),
        ("meta l4proto udp", lifetimes.udp),
        ("meta l4proto != { tcp, udp }", lifetimes.other),
    ):
        yield f"{match} update @offloaded {{ ct id timeout {max(1, round(seconds * 1000))}ms }}"


def _settle(generation: int, lifetimes: Lifetimes) -> Iterator[str]:
    """The last verdict for a flow says whether the kernel answers for it."""
    yield f"meta mark & {QUEUED:#x} == 0 accept"
    for offload in (OFFLOAD_ACCEPT, OFFLOAD_DROP):
        yield (
            f"meta mark & {OFFLOAD:#x} == {offload:#x} ct state != related "
            f"ct mark set ct mark & {_KEEP_CONNECTION:#x} | {connection_mark(offload, generation):#x}"
        )
    yield (
        f"meta mark & {OFFLOAD:#x} == 0 ct mark & {CONNECTION_BITS:#x} != 0 ct state != related "
        f"ct mark set ct mark & {_KEEP_CONNECTION:#x}"
    )
    for line in _refreshed(lifetimes):
        yield f"meta mark & {OFFLOAD:#x} != 0 ct state != related {line}"
    yield f"meta mark & {OFFLOAD_DROP:#x} != 0 drop"
    yield f"meta mark set meta mark & {_KEEP_PACKET:#x}"
