"""A kernel plan in words: what enters user space and why, what the kernel decides alone, and what costs most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gfwemu.rules.actions import Delay, Drop, Freeze, IcmpUnreachable, Lose, Redirect, RewriteToReset, Throttle
from gfwemu.rules.compiled import CompiledRule, RuleSet
from gfwemu.rules.fields import rule_fields
from gfwemu.rules.needs import TRANSPORTS, Ports, Reason
from gfwemu.rules.plan import KernelPlan

_LASTING = {
    "dns": "each query of a connection is read",
    "http": "each request of a kept connection is read",
    "ftp": "each command is read",
    "smtp": "each command is read",
}
"""Dissectors that have never learnt all: flows of their protocol are decided by a rule or not at all."""

_EACH_PACKET = (Throttle, Delay, Lose, Freeze, RewriteToReset, Redirect, IcmpUnreachable)


@dataclass(frozen=True, slots=True)
class Line:
    """What it is about, what becomes of it, and who says so."""

    what: str
    how: str
    because: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Four parts of a plan; each is a list of lines. costs: dearest first."""

    queued: tuple[Line, ...]
    kernel: tuple[Line, ...]
    residual: tuple[Line, ...]
    costs: tuple[Line, ...]


def explain(rules: RuleSet, plan: KernelPlan) -> Explanation:
    return Explanation(
        tuple(_queued(rules, plan)),
        tuple(_kernel(rules, plan)),
        tuple(_residual(rules)),
        tuple(_costs(rules, plan)),
    )


def together(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Lines of which the same is said, and for the same reason, as one."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for line in lines:
        found.setdefault((line.how, line.because), []).append(line.what)
    return tuple(Line(", ".join(whats), how, because) for (how, because), whats in found.items())


def ports_text(ports: Ports | None) -> str:
    if ports is None:
        return ""
    return ", ".join(f"{low}-{high}" if high > low else str(low) for low, high in ports)


def _queued(rules: RuleSet, plan: KernelPlan) -> Iterator[Line]:
    needs = plan.needs
    if needs is None:
        yield Line("everything", "every packet")
        return
    for name in TRANSPORTS:
        need = needs.transports.get(name)
        if need is None:
            continue
        what = f"{name} port {ports_text(need.ports)}" if need.ports else name
        yield Line(what, _of_flows(plan, name), need.rules)
    if needs.transports and not plan.track_fragments:
        how = "put together" if any(own.options.fragments.reassemble for own in rules.split()) else "each by itself"
        yield Line("IP fragments", f"all, to be read as this censor does: {how}", ("ip.fragments",))


def _of_flows(plan: KernelPlan, transport: str) -> str:
    spared = plan.spared
    if transport != "tcp" or not spared.bare:
        return "every packet, until its flow is decided"
    parts = ["SYN"]
    if not spared.handshake:
        parts.append("SYN/ACK")
    if not spared.first_ack:
        parts.append("the first ACK")
    parts += ["FIN", "RST", "the client's payload"]
    if not spared.server_payload:
        parts[-1] = "payload of both ends"
    return f"{', '.join(parts)}, until its flow is decided"


def _kernel(rules: RuleSet, plan: KernelPlan) -> Iterator[Line]:
    by_name: dict[str, str] = {}
    for rule in plan.rules:
        by_name[rule.name] = rule.verdict.replace("_", " ")
    for name, verdict in by_name.items():
        yield Line(f"rule {name}", f"{verdict}: it asks for addresses and ports only")
    whole = [one.transport for one in plan.unseen if not one.ports]
    if whole:
        yield Line(", ".join(whole), "passes: no rule concerns it")
    for one in plan.unseen:
        if one.ports:
            yield Line(f"{one.transport}, other ports", f"passes: rules concern {ports_text(one.ports)} only")
    spared, needs = plan.spared, plan.needs
    if spared.bare:
        lifetime = min(own.options.flows.tcp_established for own in rules.split())
        yield Line(
            "TCP, bare ACKs",
            f"pass, but for one of the client in {_seconds(lifetime / 8)}, so that its flow stays remembered",
        )
        sparing = [
            text
            for text, spare in (("SYN/ACKs", spared.handshake), ("the server's payload", spared.server_payload))
            if spare
        ]
        if sparing:
            yield Line(f"TCP, {' and '.join(sparing)}", "pass: no rule, dissector or knob asks for them")
    if spared.answers:
        yield Line("UDP, DNS answers", "pass where no rule that may still fire heeds them")
    if plan.offload and needs is not None and needs.transports:
        yield Line(
            "decided flows",
            "pass or drop by their connection mark, until they were idle as long as the censor remembers, a SYN begins "
            "anew, a residual block meets them, or rules are reloaded",
        )


def _residual(rules: RuleSet) -> Iterator[Line]:
    seen: set[str] = set()
    for rule in rules.rules:
        block = rule.residual
        if block is None or rule.name in seen:
            continue
        seen.add(rule.name)
        low, high = block.seconds.low, block.seconds.high
        lasts = _seconds(high) if low == high else f"{_seconds(low)} to {_seconds(high)}"
        refresh = ", begun anew by each packet" if block.refresh else ""
        yield Line(rule.name, f"{block.key}, {lasts}{refresh}")


def _costs(rules: RuleSet, plan: KernelPlan) -> Iterator[Line]:
    needs = plan.needs
    if needs is None:
        return
    for title, reasons in (
        ("every packet of undecided TCP flows", needs.every_packet),
        ("the server's payload of undecided TCP flows", () if needs.every_packet else needs.server_payload),
        ("SYN/ACKs", () if needs.every_packet or needs.server_payload else needs.handshake),
        ("the client's first ACK", () if needs.every_packet or needs.server_payload else needs.first_ack),
    ):
        if reasons:
            yield Line(title, "is queued", tuple(f"{reason.who} {reason.why}" for reason in _joined(reasons)))
    reading = {name: [rule.name for rule in rules.rules if name in _dissectors(rule)] for name in _LASTING}
    readers = {name: tuple(dict.fromkeys(found)) for name, found in reading.items() if found}
    if readers:
        yield Line(
            f"flows of {', '.join(readers)}",
            "are never decided by what they say alone",
            tuple(f"{name}: {_LASTING[name]}, for {', '.join(found)}" for name, found in readers.items()),
        )
    lasting = tuple(dict.fromkeys(rule.name for rule in rules.rules if _acts_on_each_packet(rule)))
    if lasting:
        yield Line("flows that these rules hit", "stay in user space, packet by packet", lasting)


def _joined(reasons: Iterable[Reason]) -> Iterator[Reason]:
    """Rules with the same reason stand together."""
    together: dict[str, list[str]] = {}
    for reason in reasons:
        together.setdefault(reason.why, []).append(reason.who)
    for why, names in together.items():
        yield Reason(", ".join(names) + ":", why)


def _dissectors(rule: CompiledRule) -> frozenset[str]:
    known = rule_fields()
    return frozenset(known[one.field].dissector for one in rule.conditions if one.field in known)


def _acts_on_each_packet(rule: CompiledRule) -> bool:
    action = rule.action
    return isinstance(action, _EACH_PACKET) or (isinstance(action, Drop) and action.direction != "both")


def _seconds(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
