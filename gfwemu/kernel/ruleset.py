"""The text of gfwemu's nftables table for a kernel plan. Pure: nothing here touches the kernel.

The way of a forwarded packet: `forward` (priority -160) turns to `between` by its interfaces. There, watched endpoints
go to the queue (while there are any), the connection mark answers for decided flows and tells flows that user space
follows, kernel rules decide, what no rule may concern passes, and the rest goes to the queue. As in the engine, the
client is who opened the flow; what connection tracking cannot say this of is queued. After the verdict, `decided`
(-140) keeps what it says of the flow in the connection mark and drops where the packet's mark says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from gfwemu.kernel.marks import (
    CONNECTION_BITS,
    FOLLOWED,
    ID_ZERO,
    INJECTED,
    OFFLOAD,
    OFFLOAD_ACCEPT,
    OFFLOAD_BULK,
    OFFLOAD_DROP,
    PACKET_BITS,
    QUEUE_ALL,
    QUEUED,
    SPARE_ANSWERS,
    connection_mark,
)
from gfwemu.rules.needs import OTHER, Ports, merged_spans
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
_WATCHES = (
    ("server",),
    ("server", "proto", "server_port"),
    ("client", "server"),
    ("client", "server", "proto", "server_port"),
    ("client", "server", "proto", "server_port", "client_port"),
)
"""What each key consists of, in the order of its bytes."""

_CHAINS = (
    "to_queue",
    "to_bulk",
    "watched",
    "between",
    "answered",
    "bulk",
    "followed",
    "followed_to_server",
    "followed_to_client",
    "followed_answers",
    "rest",
    "settle",
    "settled",
    "to_server",
    "to_client",
)
_SYN_ONLY = "tcp flags & (fin | syn | rst | ack) == syn"
_ANOTHER_FLOW = ("ct state related goto to_queue", f"{_SYN_ONLY} goto to_queue")
"""An ICMP error bears the mark of the flow it is about; such a SYN may begin a new flow between the same endpoints."""

_SAMPLES = 8
"""How often at least, in the time after which a silent flow is forgotten, user space sees a packet of a flow that is
not silent: by so much of that time its memory may run out early. Our choice."""

_UNKNOWN_HEADERS = "{ tcp, udp, icmp, icmpv6, 135, 139, 140 }"
"""Beside the transports that rules name: IPv6 headers that the engine reads past, but this kernel does not."""
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
    """How long the engine remembers an idle flow, in real seconds.

    tcp_opening: before the handshake is over. limit: flows that the kernel answers for, at most; the others stay
    queued.
    """

    tcp: float = 480.0
    udp: float = 60.0
    other: float = 30.0
    limit: int = 100_000
    tcp_opening: float = 480.0

    @property
    def sample(self) -> float:
        """How long packets of a TCP flow may pass unseen, after one that user space saw."""
        return min(self.tcp, self.tcp_opening) / _SAMPLES


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
    for _, address, version in _FAMILIES:
        types = {"proto": "inet_proto", "server_port": "inet_service", "client_port": "inet_service"}
        for length, parts in enumerate(_WATCHES):
            kind = " . ".join(types.get(part, address) for part in parts)
            lines.append(f"set {watch_set(version, length)} {{ type {kind}; flags timeout; size {WATCH_LIMIT}; }}")
    for name in ("offloaded", "followed_flow", "followed_client"):
        lines.append(f"set {name} {{ typeof ct id; flags dynamic,timeout; size {limit}; }}")
    for name, total in (("bare_v4", "ip length"), ("bare_v6", "ip6 length")):
        # A data offset of `words`, and the IP length of a segment that ends there.
        elements = ", ".join(f"{words} . {words * 4 + (20 if total == 'ip length' else 0)}" for words in range(5, 16))
        lines.append(f"set {name} {{ typeof tcp doff . {total}; elements = {{ {elements} }}; }}")
    lines += [f"chain {name} {{ }}" for name in (*_CHAINS, "fragments")]
    for name, priority, first, target in (
        ("forward", -160, "", "between"),
        ("decided", -140, f"meta mark & {QUEUED:#x} == 0 accept", "settle"),
    ):
        lines += [
            f"chain {name} {{ type filter hook forward priority {priority}; policy accept;",
            first,
            f"iifname {inside} oifname {outside} goto {target}",
            f"iifname {outside} oifname {inside} goto {target}",
            "}",
        ]
    lines += [
        # Before connection tracking's own reassembly (NF_IP_PRI_CONNTRACK_DEFRAG, -400).
        "chain prerouting { type filter hook prerouting priority -450; policy accept;",
        f"ip frag-off & 0x3fff != 0 iifname {{ {inside}, {outside} }} jump fragments",
        f"exthdr frag exists iifname {{ {inside}, {outside} }} jump fragments",
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
    """The counters and the empty sets that `content_text` refers to; `address_sets` says what belongs into the sets.

    Refused where the table is gone: a reload that the daemon's end overtakes must not bring it back.
    """
    lines = []
    for number, rule in enumerate(plan.rules):
        base = counter_name(number, generation)
        lines.append(f"add counter inet {table} {base}")
        lines += [
            f"add set inet {table} {name} {{ type {kind}; flags interval; }}"
            for name, kind, _ in _set_names(rule, base)
        ]
    return "\n".join([*lines, ""])


def address_sets(plan: KernelPlan, generation: int) -> Iterator[AddressSet]:
    for number, rule in enumerate(plan.rules):
        yield from _sets(rule, counter_name(number, generation))


def content_text(
    table: str,
    plan: KernelPlan,
    generation: int,
    lifetimes: Lifetimes,
    old: tuple[str, ...] = (),
    watches: Collection[str] = (),
) -> str:
    """What a reload replaces, as one transaction, after `objects_text`. `old`: what `object_names` said of the old.

    watches: the watch sets that hold anything.
    """
    lines = [f"flush chain inet {table} {name}" for name in (*_CHAINS, "fragments")]
    lines += [f"delete {name}" for name in old]
    lines.append(f"table inet {table} {{")
    chains = {
        "to_queue": [f"meta mark set meta mark & {_KEEP_PACKET:#x} | {QUEUED:#x}", "jump hop"],
        "to_bulk": [f"meta mark set meta mark & {_KEEP_PACKET:#x} | {QUEUED:#x}", "jump bulk_hop"],
        "watched": _watched(watches),
        "between": _between(plan, generation),
        "answered": [
            *_ANOTHER_FLOW,
            "ct id != @offloaded goto to_queue",
            f"ct mark & {OFFLOAD_DROP:#x} != 0 drop",
            "accept",
        ],
        "bulk": [*_ANOTHER_FLOW, "goto to_bulk"],
        "rest": _rest(plan),
        "settle": _settle(plan, generation, lifetimes),
        "settled": [f"meta mark & {OFFLOAD_DROP:#x} != 0 drop", f"meta mark set meta mark & {_KEEP_PACKET:#x}"],
        **_followed(plan),
    }
    for name, to_server in (("to_server", True), ("to_client", False)):
        rules = [
            text
            for number, rule in enumerate(plan.rules)
            for text in _rule(rule, counter_name(number, generation), to_server)
        ]
        chains[name] = [*rules, "goto rest"]
    if not plan.track_fragments:
        chains["fragments"] = ["fib daddr type != local notrack"]
    for name, rules_of in chains.items():
        lines += [f"chain {name} {{", *rules_of, "}"]
    lines.append("}")
    return "\n".join(lines) + "\n"


def watched_text(table: str, watches: Collection[str]) -> str:
    """Has packets of just those watch sets queued, as one transaction."""
    rules = [f"add rule inet {table} watched {text}" for text in _watched(watches)]
    return "\n".join([f"flush chain inet {table} watched", *rules]) + "\n"


def object_names(table: str, plan: KernelPlan, generation: int) -> tuple[str, ...]:
    """The sets and counters of a plan, as `delete` wants them."""
    names: list[str] = []
    for number, rule in enumerate(plan.rules):
        base = counter_name(number, generation)
        names.append(f"counter inet {table} {base}")
        names += [f"set inet {table} {name}" for name, _, _ in _set_names(rule, base)]
    return tuple(names)


def _sets(rule: KernelRule, base: str) -> Iterator[AddressSet]:
    for name, kind, version in _set_names(rule, base):
        networks = rule.servers if name == f"{base}_servers{version}" else rule.clients
        members = tuple(network for network in networks if (":" in network) == (version == 6))
        yield AddressSet(name, kind, 4 if version == 4 else 16, members)


def _set_names(rule: KernelRule, base: str) -> Iterator[tuple[str, str, int]]:
    """Name, kind and IP version of each set, without a look at each of its networks: a reload waits for this."""
    for part, networks in (("servers", rule.servers), ("clients", rule.clients)):
        for _, kind, version in _FAMILIES:
            found = ":" in "".join(networks) if version == 6 else any(":" not in network for network in networks)
            if found:
                yield f"{base}_{part}{version}", kind, version


def _rule(rule: KernelRule, base: str, to_server: bool) -> Iterator[str]:
    server, client, port = ("daddr", "saddr", "dport") if to_server else ("saddr", "daddr", "sport")
    transports = rule.transports or (("tcp", "udp") if rule.ports else ())
    made = {name for name, _, _ in _set_names(rule, base)}
    ports = _port_list(rule.ports)
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
    if rule.direction not in ("both", "to_server" if to_server else "to_client"):
        # The rule decides the flow: no later one is asked about its other direction.
        yield "accept"
        return
    if rule.verdict == "accept":
        yield "{counter} accept"
        return
    if rule.verdict == "reset" and transport in ("", "tcp"):
        yield ("" if transport else "meta l4proto tcp ") + "{counter} reject with tcp reset"
    if rule.verdict == "icmp_unreachable" and to_server:
        yield f"{{counter}} reject with icmpx type {_ICMP_CODES[rule.code]}"
    else:
        yield "{counter} drop"


def _port_list(ports: Ports) -> str:
    return ", ".join(f"{low}-{high}" if high > low else f"{low}" for low, high in merged_spans(ports))


def _watched(watches: Collection[str]) -> Iterator[str]:
    for family, _, version in _FAMILIES:
        for length, parts in enumerate(_WATCHES):
            name = watch_set(version, length)
            if name not in watches:
                continue
            for way, client, server in (("original", "s", "d"), ("reply", "d", "s")):
                fields = {
                    "client": f"{family} {client}addr",
                    "server": f"{family} {server}addr",
                    "proto": "meta l4proto",
                    "server_port": f"th {server}port",
                    "client_port": f"th {client}port",
                }
                yield f"ct direction {way} {' . '.join(fields[part] for part in parts)} @{name} goto to_queue"


def _between(plan: KernelPlan, generation: int) -> Iterator[str]:
    yield "jump watched"
    marks: list[str] = []
    if plan.offload:
        for offload in (OFFLOAD_ACCEPT, OFFLOAD_DROP):
            marks.append(f"{connection_mark(offload, generation):#x} : goto answered")
        marks.append(f"{connection_mark(OFFLOAD_BULK, generation):#x} : goto bulk")
    if plan.spared.bare or plan.spared.answers:
        marks.append(f"{connection_mark(FOLLOWED, generation):#x} : goto followed")
    if marks:
        yield f"ct mark & {CONNECTION_BITS:#x} vmap {{ {', '.join(marks)} }}"
    if plan.rules:
        # An ICMP error carries direction and mark of the flow it is about, but is none of its packets.
        yield "ct state related goto to_queue"
        yield "ct direction original goto to_server"
        yield "ct direction reply goto to_client"
        yield "goto to_queue"
    else:
        yield "goto rest"


def _followed(plan: KernelPlan) -> dict[str, list[str]]:
    """TCP flows of which user space saw the SYN, and UDP flows of DNS."""
    spared = plan.spared
    chains: dict[str, list[str]] = {}
    first = list(_ANOTHER_FLOW)
    if spared.answers:
        first.insert(1, "meta l4proto udp goto followed_answers")
        chains["followed_answers"] = [
            "ct direction original goto to_queue",
            "ct id != @followed_flow goto to_queue",
            # RFC 1035 section 4.1.1: QR is the first bit behind the ID, which follows the UDP header.
            "@th,80,8 & 0x80 != 0 accept",
            "goto to_queue",
        ]
    if not spared.bare:
        return chains | {"followed": [*first, "goto to_queue"]} if chains else {}
    bare = (
        "ip hdrlength 5 ip protocol tcp tcp doff . ip length @bare_v4",
        "ip6 nexthdr tcp tcp doff . ip6 length @bare_v6",
    )
    # What user space has not heard of for a while it may have forgotten.
    to_client = ["ct id != @followed_flow goto to_queue"]
    if not spared.handshake:
        to_client.append("tcp flags & syn != 0 goto to_queue")
    to_client += ["accept"] if spared.server_payload else [*(f"{match} accept" for match in bare), "goto to_queue"]
    return chains | {
        "followed": [
            *first,
            "tcp flags & (fin | rst) != 0 goto to_queue",
            "ct direction reply goto followed_to_client",
            "goto followed_to_server",
        ],
        "followed_to_client": to_client,
        "followed_to_server": [
            "tcp flags & syn != 0 goto to_queue",
            "ct id != @followed_client goto to_queue",
            *(f"{match} accept" for match in bare),
            "goto to_queue",
        ],
    }


def _rest(plan: KernelPlan) -> Iterator[str]:
    if plan.unseen:
        if not plan.track_fragments:
            yield "ct state untracked goto to_queue"
        for one in plan.unseen:
            if one.ports:
                ports = _port_list(one.ports)
                # Not as one rule of two inequalities: of single ports, nft 1.0.6 makes one inequality of the pair.
                for end in ("sport", "dport"):
                    yield f"meta l4proto {one.transport} th {end} {{ {ports} }} goto to_queue"
                yield f"meta l4proto {one.transport} accept"
            elif one.transport == OTHER:
                yield f"meta l4proto != {_UNKNOWN_HEADERS} accept"
            else:
                yield f"meta l4proto {one.transport} accept"
    yield "goto to_queue"


def _remember(name: str, seconds: float) -> str:
    """Keeps the connection in the set for so long from now on."""
    return f"update @{name} {{ ct id timeout {max(1, round(seconds * 1000))}ms }}"


def _sampled(lifetimes: Lifetimes) -> Iterator[str]:
    """A packet of a decided flow is queued now and then, or the engine would forget who opened the flow."""
    for match, seconds in (
        ("meta l4proto tcp", lifetimes.sample),
        ("meta l4proto udp", lifetimes.udp / _SAMPLES),
        ("meta l4proto != { tcp, udp }", lifetimes.other / _SAMPLES),
    ):
        yield f"{match} {_remember('offloaded', seconds)}"


def _settle(plan: KernelPlan, generation: int, lifetimes: Lifetimes) -> Iterator[str]:
    """The last verdict for a flow says whether the kernel answers for it, or parts of it."""
    clear = f"ct mark set ct mark & {_KEEP_CONNECTION:#x}"
    followed = connection_mark(FOLLOWED, generation)
    known = f"ct mark & {CONNECTION_BITS:#x} == {followed:#x}"
    yield "ct state related goto settled"
    if plan.spared.answers:
        begin, remember = f"{SPARE_ANSWERS | QUEUE_ALL:#x}", _remember("followed_flow", lifetimes.udp / _SAMPLES)
        spared = f"meta mark & {begin} == {begin} ct direction original"
        yield f"{spared} {clear} | {followed:#x}"
        yield f"{spared} {remember} goto settled"
        yield f"meta mark & {begin} == {SPARE_ANSWERS:#x} {known} {remember} goto settled"
    yield f"meta mark & {QUEUE_ALL:#x} != 0 {clear} goto settled"
    yield f"meta mark & {OFFLOAD_BULK:#x} != 0 {clear} | {connection_mark(OFFLOAD_BULK, generation):#x} goto settled"
    for offload in (OFFLOAD_ACCEPT, OFFLOAD_DROP):
        yield f"meta mark & {OFFLOAD:#x} == {offload:#x} {clear} | {connection_mark(offload, generation):#x}"
    for line in _sampled(lifetimes):
        yield f"meta mark & {OFFLOAD:#x} != 0 {line}"
    yield f"meta mark & {OFFLOAD:#x} != 0 goto settled"
    if plan.spared.bare:
        known = f"meta l4proto tcp {known}"
        by_client = _remember("followed_client", lifetimes.sample)
        yield f"{_SYN_ONLY} {clear}"
        # What user space knows of the connection before says nothing of this one; by the first ACK it would know that
        # the handshake is over.
        yield f"{_SYN_ONLY} {by_client if plan.spared.first_ack else 'delete @followed_client { ct id }'}"
        yield f"{_SYN_ONLY} ct direction original {clear} | {followed:#x}"
        yield f"{known} {_remember('followed_flow', lifetimes.sample)}"
        yield f"{known} ct direction original tcp flags & syn == 0 {by_client}"
        yield f"{known} goto settled"
    yield f"ct mark & {CONNECTION_BITS:#x} != 0 {clear}"
    yield "goto settled"
