"""The kernel plan: what the kernel decides alone, and what user space must see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from gfwemu.model import Placement
from gfwemu.rules.actions import Drop, IcmpUnreachable, Pass, Reset
from gfwemu.rules.compiled import CompiledRule, Matcher, RuleSet, Scope
from gfwemu.rules.matchers import AnyOf, ExactSet
from gfwemu.rules.needs import TRANSPORTS, Needs, Ports, find_needs, rule_transports, spans_of, united
from gfwemu.rules.networks import NetworkSet, network_text
from gfwemu.rules.quantities import Varied
from gfwemu.rules.spread import Spread, spread_of


@dataclass(frozen=True, slots=True)
class KernelRule:
    """One rule that needs nothing but addresses and ports.

    As in the engine, the client is who opened the flow: connection tracking says which. What it cannot say this of is
    queued. Networks are CIDR text, ports inclusive ranges (empty: any port and any protocol), transports `tcp` or `udp`
    (empty: any). clients: where non-empty, the client must be in these networks, too.
    """

    index: int
    name: str
    verdict: Literal["accept", "drop", "reset", "icmp_unreachable"]
    servers: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    transports: tuple[str, ...] = ()
    direction: Literal["both", "to_server", "to_client"] = "both"
    code: str = "admin_prohibited"


@dataclass(frozen=True, slots=True)
class Unseen:
    """Packets of a transport that no rule in user space may concern: those with none of the ports at either end.

    ports empty: all packets of the transport (`tcp`, `udp`, `icmp`, `icmpv6`, or `other` for the rest).
    """

    transport: str
    ports: Ports = ()


@dataclass(frozen=True, slots=True)
class Spared:
    """Packets of undecided flows that pass unseen.

    bare: of TCP flows whose SYN user space saw, those without payload, SYN, FIN and RST, but for one of the client now
    and then, by which the flow stays remembered. server_payload, handshake (the SYN/ACK) and first_ack (the client's,
    behind it) only beside `bare`. answers: DNS answers over UDP where a verdict says so (`SetVerdict.spare_answers`).
    """

    bare: bool = False
    server_payload: bool = False
    handshake: bool = False
    first_ack: bool = False
    answers: bool = False


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """`offload`: decided flows may be answered by connection mark. `fail_open`: a full queue lets packets pass.

    `track_fragments` False: fragments are taken out before the kernel reassembles them, because the engine reads
    them by the censor's own policy; user space gets all of them. `spread`: by what flows are shared out among workers.
    `needs`: the reasons for what is neither `unseen` nor spared; None: none are known, and everything is queued.
    """

    rules: tuple[KernelRule, ...] = ()
    offload: bool = True
    fail_open: bool = True
    track_fragments: bool = False
    spread: Spread = "pair"
    unseen: tuple[Unseen, ...] = ()
    spared: Spared = Spared()
    needs: Needs | None = None

    def all_queued(self) -> KernelPlan:
        """The same with nothing left to the kernel."""
        return replace(self, rules=(), offload=False, unseen=(), spared=Spared(), needs=None)


_KERNEL_FIELDS = frozenset({"ip.server", "ip.any", "ip.client", "port.server", "transport"})


@dataclass(frozen=True, slots=True)
class _Reach:
    """The flows that a rule is about, as far as addresses and ports say it. None: any."""

    servers: NetworkSet | None = None
    clients: NetworkSet | None = None
    either: NetworkSet | None = None
    ports: tuple[tuple[int, int], ...] | None = None
    transports: frozenset[str] | None = None

    def misses(self, other: _Reach) -> bool:
        """Whether no flow can be in both. False where it cannot tell."""
        pairs = ((self.servers, other.servers), (self.clients, other.clients))
        if any(left is not None and right is not None and not left.overlaps(right) for left, right in pairs):
            return True
        if self.transports is not None and other.transports is not None and not self.transports & other.transports:
            return True
        if self.ports is None or other.ports is None:
            return False
        return not any(a <= d and c <= b for a, b in self.ports for c, d in other.ports)


def compile_plan(rules: RuleSet) -> KernelPlan:
    """What of the rules the kernel decides: rules on nothing but addresses and ports, decided when a flow opens.

    A rule goes to the kernel only where no earlier rule that user space looks at when a flow opens could be first.
    """
    kernel: list[KernelRule] = []
    earlier: list[_Reach] = []
    box = ""
    blocks = [rule.residual for rule in rules.rules if rule.residual is not None]
    over_ports = any(block.spans_ports for block in blocks)
    over_clients = any(block.spans_clients for block in blocks)
    for position, rule in enumerate(rules.rules):
        reach = _reach(rule)
        if rules.boxes and rule.box != box:
            # What an earlier box does to a packet comes before all that this one decides.
            box, earlier = rule.box, [_reach(one) or _Reach() for one in rules.rules[:position]]
        exact = reach is not None and all(condition.field in _KERNEL_FIELDS for condition in rule.conditions)
        verdict = _verdict(rule)
        if rules.boxes and (verdict == "accept" or (isinstance(rule.action, Drop) and rule.action.direction != "both")):
            # The packet passes this box; the next one has still to see it.
            verdict = None
        # A residual block comes before any rule, and user space must know the flows that it meets.
        met = reach is not None and (
            (over_ports and (reach.ports is not None or reach.transports is not None))
            or (over_clients and (reach.clients is not None or reach.either is not None))
        )
        entries: list[KernelRule] = []
        if reach is not None and exact and verdict is not None and not met:
            entries = _kernel_rules(rule, reach, verdict) if all(map(reach.misses, earlier)) else []
        kernel.extend(entries)
        if not entries and rule.scope is not Scope.MESSAGE:
            earlier.append(reach or _Reach())
        elif not entries and "udp" in rule_transports(rule):
            # The first datagram of a flow may be a whole message.
            earlier.append(replace(reach or _Reach(), transports=frozenset({"udp"})))
    decided = frozenset(entry.index for entry in kernel)
    needs = united([find_needs(own, decided) for own in rules.split()])
    return KernelPlan(
        rules=tuple(kernel),
        fail_open=rules.fail_open,
        track_fragments=all(rule.index in decided for rule in rules.rules),
        spread=spread_of(rules)[0],
        unseen=tuple(_unseen(needs)),
        spared=_spared(needs, rules),
        needs=needs,
    )


def _unseen(needs: Needs) -> Iterator[Unseen]:
    for name in TRANSPORTS:
        need = needs.transports.get(name)
        if need is None:
            yield Unseen(name)
        elif need.ports:
            yield Unseen(name, need.ports)


def _spared(needs: Needs, rules: RuleSet) -> Spared:
    answers = "udp" in needs.transports and "dns" in rules.dissectors
    if needs.every_packet or "tcp" not in needs.transports:
        return Spared(answers=answers)
    return Spared(
        bare=True,
        server_payload=not needs.server_payload,
        handshake=not needs.handshake,
        first_ack=not needs.first_ack,
        answers=answers,
    )


def _verdict(rule: CompiledRule) -> Literal["accept", "drop", "reset", "icmp_unreachable"] | None:
    """The kernel's verdict for the rule, or None where its action needs user space."""
    if rule.scope is not Scope.FLOW or rule.probability < 1.0 or rule.hooks or rule.repeat:
        return None
    if rule.schedule is not None or rule.residual is not None:
        return None
    match rule.action:
        case Pass():
            return "accept"
        case Drop(trigger=True, after=after) if after == Varied.constant(0.0):
            return "drop"
        case Reset() if rule.action == Reset() and rule.placement is Placement.IN_PATH:
            return "reset"
        case IcmpUnreachable():
            return "icmp_unreachable"
        case _:
            return None


def _reach(rule: CompiledRule) -> _Reach | None:
    """None where a condition is negated, repeated or of another kind; then nothing is known."""
    found: dict[str, Matcher] = {}
    for condition in rule.conditions:
        if condition.field not in _KERNEL_FIELDS:
            continue
        if condition.negated or condition.field in found:
            return None
        found[condition.field] = condition.matcher
    transports = _texts(found.get("transport"))
    return _Reach(
        servers=_networks(found.get("ip.server")),
        clients=_networks(found.get("ip.client")),
        either=_networks(found.get("ip.any")),
        ports=spans_of(found.get("port.server")),
        transports=transports,
    )


def _networks(matcher: Matcher | None) -> NetworkSet | None:
    parts = matcher.parts if isinstance(matcher, AnyOf) else (matcher,)
    sets = [part for part in parts if isinstance(part, NetworkSet)]
    if len(sets) == 1:
        return sets[0]
    return NetworkSet("", [network for one in sets for network in one]) if sets else None


def _texts(matcher: Matcher | None) -> frozenset[str] | None:
    parts = matcher.parts if isinstance(matcher, AnyOf) else (matcher,)
    sets = [part for part in parts if isinstance(part, ExactSet)]
    return frozenset(text for one in sets for text in one.texts) if sets else None


def _kernel_rules(
    rule: CompiledRule, reach: _Reach, verdict: Literal["accept", "drop", "reset", "icmp_unreachable"]
) -> list[KernelRule]:
    """One, or two where either end may be listed. None where the kernel's form cannot say it."""
    transports = reach.transports
    if transports is not None and not transports <= {"tcp", "udp"}:
        return []
    entry = KernelRule(
        index=rule.index,
        name=rule.name,
        verdict=verdict,
        servers=_cidrs(reach.servers),
        clients=_cidrs(reach.clients),
        ports=reach.ports or (),
        transports=tuple(sorted(transports or ())),
        direction=rule.action.direction if isinstance(rule.action, Drop) else "both",
        code=rule.action.code if isinstance(rule.action, IcmpUnreachable) else "admin_prohibited",
    )
    if reach.either is None:
        return [entry]
    if reach.servers is not None or reach.clients is not None:
        return []
    listed = _cidrs(reach.either)
    return [replace(entry, servers=listed), replace(entry, clients=listed)]


def _cidrs(networks: NetworkSet | None) -> tuple[str, ...]:
    return tuple(sorted(network_text(network) for network in networks)) if networks is not None else ()
