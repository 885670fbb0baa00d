"""What user space must see of the traffic under a rule set, and which rule or knob says so. The rest may pass unseen.

What leaves a doubt is needed: a knob, a dissector or a field that this page does not know costs speed, never an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, Literal

from gfwemu.flow.options import FlowOptions, TcpOptions
from gfwemu.model import TRANSPORT_NAMES, Transport
from gfwemu.rules.actions import Blockpage, Delay, Fin, Freeze, Redirect, Reset, Throttle, TlsAlert
from gfwemu.rules.compiled import CompiledRule, Condition, Fact, RuleSet, Scope
from gfwemu.rules.fields import UNKNOWN_PROTOCOL, dissector_transports, rule_fields
from gfwemu.rules.matchers import Numbers

Ports = tuple[tuple[int, int], ...]
"""Inclusive ranges."""

OTHER = "other"
TRANSPORTS = (*TRANSPORT_NAMES.values(), OTHER)

_CLIENT_READERS = frozenset({"tls", "http"})
"""Dissectors over TCP that learn nothing from the server's bytes."""

_SELF_CONTAINED = frozenset(
    {
        *("reassembly", "overlap", "buffer", "inspect", "verify_checksum", "verify_ip_checksum", "data_offset"),
        *("md5_option", "data_without_ack", "no_flags", "odd_flags", "bad_ip_length", "bad_data_offset"),
        *("seq_before_isn", "out_of_window", "simultaneous_open", "small_segments_when"),
    }
)
"""Knobs of `tcp:` that look at nothing but SYNs, FINs, resets and the client's payload."""

_FORGING = (Reset, Fin, Blockpage, TlsAlert)
"""Actions whose forged segments go on where a stream has come to."""

_BARE_LENGTHS = range(40, 20 + 40 + 60 + 1)
"""IP lengths of a TCP segment without payload (RFC 791 section 3.1, RFC 9293 section 3.1), IPv6 without extensions."""


@dataclass(frozen=True, slots=True)
class Reason:
    """who: the name of a rule, or a knob of `engine:`."""

    who: str
    why: str


@dataclass(frozen=True, slots=True)
class TransportNeed:
    """Packets of a transport that some rule may concern: those with one of the ports at either end. None: any."""

    ports: Ports | None
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Needs:
    """transports: by name, those that any rule may concern.

    Of TCP flows that are not decided yet, user space always gets SYNs, FINs, resets and the client's payload. The
    others are the reasons why it must also get every packet, the server's payload, the SYN/ACK, or the client's ACK
    that ends the handshake.
    """

    transports: Mapping[str, TransportNeed]
    every_packet: tuple[Reason, ...] = ()
    server_payload: tuple[Reason, ...] = ()
    handshake: tuple[Reason, ...] = ()
    first_ack: tuple[Reason, ...] = ()


def find_needs(rules: RuleSet, in_kernel: frozenset[int] = frozenset()) -> Needs:
    """What the rules need, of one box. in_kernel: indexes of the rules that the kernel decides by itself."""
    asked = [(rule, _met_transports(rule)) for rule in rules.rules if rule.index not in in_kernel]
    over_tcp = [rule for rule, transports in asked if "tcp" in transports]
    knobs = _asked_by_knobs(rules.options.tcp)
    every = [*knobs["every"], *_reasons(over_tcp, _why_every_packet)]
    payload = [*knobs["payload"], *server_readers(rules), *_reasons(over_tcp, _why_server_payload)]
    shakes = [*knobs["handshake"], *_reasons(over_tcp, _why_handshake)]
    if payload and not shakes and rules.options.tcp.follows_server:
        shakes.append(Reason("engine.tcp", "the numbers of the server's stream count, from its beginning on"))
    if not over_tcp:
        return Needs(_by_transport(asked))
    acks = [*_asked_by_lifetimes(rules.options.flows), *knobs["first_ack"]]
    return Needs(_by_transport(asked), tuple(every), tuple(payload), tuple(shakes), tuple(acks))


def united(parts: Sequence[Needs]) -> Needs:
    """What several boxes need together."""
    transports: dict[str, TransportNeed] = {}
    for part in parts:
        for name, need in part.transports.items():
            transports[name] = _joined(transports.get(name), need)
    return Needs(
        transports,
        tuple(dict.fromkeys(reason for part in parts for reason in part.every_packet)),
        tuple(dict.fromkeys(reason for part in parts for reason in part.server_payload)),
        tuple(dict.fromkeys(reason for part in parts for reason in part.handshake)),
        tuple(dict.fromkeys(reason for part in parts for reason in part.first_ack)),
    )


def server_readers(rules: RuleSet) -> list[Reason]:
    """Why any dissector over TCP must be fed what the server says; empty: none needs it."""
    found: list[Reason] = []
    # An answer of the server is what ends a row of pipelined requests.
    pipelined = rules.options.dissect.http_pipelined == "first_only"
    client_readers = _CLIENT_READERS - {"http"} if pipelined else _CLIENT_READERS
    for rule in rules.rules:
        if "tcp" not in rule_transports(rule):
            continue
        names = rules.dissectors if rule.hooks else _dissectors_of(rule) & rules.dissectors
        for name in sorted(names - client_readers):
            if Transport.TCP in dissector_transports().get(name, frozenset()):
                found.append(Reason(rule.name, f"{name} is read in both directions"))
                break
    return list(dict.fromkeys(found))


def rule_transports(rule: CompiledRule) -> frozenset[str]:
    """The names of the transports over which all conditions of the rule can hold."""
    allowed = frozenset(TRANSPORTS)
    for condition in rule.conditions:
        allowed &= _condition_transports(condition)
    return allowed


def spans_of(matcher: object) -> Ports | None:
    """Ports as ranges; None where the matcher is no set of numbers."""
    if not isinstance(matcher, Numbers):
        return None
    spans: list[tuple[int, int]] = []
    for interval in matcher.intervals:
        low = math.floor(interval.low) + 1 if interval.low_open else math.ceil(interval.low)
        top = min(interval.high, 65_535.0)
        high = math.ceil(top) - 1 if interval.high_open and interval.high <= 65_535 else math.floor(top)
        if low <= high:
            spans.append((low, high))
    return tuple(spans)


def merged_spans(ports: Ports) -> Ports:
    """Sorted and without overlaps."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ports):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


# -- transports and ports -----------------------------------------------------------------------------------------


def _by_transport(asked: Iterable[tuple[CompiledRule, frozenset[str]]]) -> dict[str, TransportNeed]:
    needs: dict[str, TransportNeed] = {}
    for rule, transports in asked:
        ports = _ports(rule)
        for name in TRANSPORTS:
            if name in transports:
                needs[name] = _joined(needs.get(name), TransportNeed(ports, (rule.name,)))
    return needs


def _joined(left: TransportNeed | None, right: TransportNeed) -> TransportNeed:
    if left is None:
        return right
    ports = None if left.ports is None or right.ports is None else merged_spans(left.ports + right.ports)
    return TransportNeed(ports, tuple(dict.fromkeys(left.rules + right.rules)))


def _met_transports(rule: CompiledRule) -> frozenset[str]:
    """The transports of the flows that the rule itself or a residual block of it may meet."""
    spans = rule.residual is not None and rule.residual.spans_ports
    return frozenset(TRANSPORTS) if spans else rule_transports(rule)


def _ports(rule: CompiledRule) -> Ports | None:
    if isinstance(rule.action, Redirect) or (rule.residual is not None and rule.residual.spans_ports):
        # Replies may come from another port than the one that the client asked; a block may meet any port.
        return None
    # A residual block meets flows from other ports of the client, too.
    ends = ("port.server", "port.client") if rule.residual is None else ("port.server",)
    for condition in rule.conditions:
        if condition.field in ends and not condition.negated:
            spans = spans_of(condition.matcher)
            if spans is not None:
                return merged_spans(spans)
    return None


def _condition_transports(condition: Condition) -> frozenset[str]:
    if condition.field == "transport":
        return frozenset(name for name in TRANSPORTS if _holds(condition, name))
    if condition.field == "protocol":
        names = _protocols(condition)
        if UNKNOWN_PROTOCOL in names:
            return frozenset(TRANSPORTS)
        return _named(frozenset().union(*(dissector_transports()[name] for name in names)))
    field = rule_fields().get(condition.field)
    if field is None or not field.transports:
        return frozenset(TRANSPORTS)
    return _named(field.transports)


def _named(numbers: Iterable[int]) -> frozenset[str]:
    return frozenset(TRANSPORT_NAMES.get(number, OTHER) for number in numbers)


def _protocols(condition: Condition) -> frozenset[str]:
    names = (*dissector_transports(), UNKNOWN_PROTOCOL)
    return frozenset(name for name in names if _holds(condition, name))


def _dissectors_of(rule: CompiledRule) -> frozenset[str]:
    found: set[str] = set()
    for condition in rule.conditions:
        if condition.field == "protocol":
            names = _protocols(condition)
            found |= dissector_transports().keys() if condition.negated or UNKNOWN_PROTOCOL in names else names
        elif (field := rule_fields().get(condition.field)) is not None and field.dissector:
            found.add(field.dissector)
    return frozenset(found)


def _holds(condition: Condition, value: Fact) -> bool:
    return (condition.matcher.match(value) is not None) is not condition.negated


# -- packets of TCP flows -----------------------------------------------------------------------------------------


def _reasons(rules: Iterable[CompiledRule], why: Callable[[CompiledRule], str]) -> Iterator[Reason]:
    seen: set[Reason] = set()
    for rule in rules:
        text = why(rule)
        if text and (reason := Reason(rule.name, text)) not in seen:
            seen.add(reason)
            yield reason


_Ask = Literal["every", "payload", "handshake", "first_ack"]

_FROM_THE_BEGINNING: tuple[_Ask, ...] = ("payload", "handshake")
"""The server's stream, with its first number."""


def _asked_by_knobs(options: TcpOptions) -> dict[_Ask, list[Reason]]:
    """What the knobs of `tcp:` ask for beyond what user space always gets."""
    found: dict[_Ask, list[Reason]] = {"every": [], "payload": [], "handshake": [], "first_ack": []}
    standard = TcpOptions()
    for knob in fields(options):
        value = getattr(options, knob.name)
        if value != getattr(standard, knob.name) and knob.name not in _SELF_CONTAINED:
            for ask, why in _asked_by(knob.name, value):
                found[ask].append(Reason(f"tcp.{knob.name}", why))
    return found


def _asked_by_lifetimes(options: FlowOptions) -> Iterator[Reason]:
    if options.tcp_opening != options.tcp_established:
        yield Reason("flows.tcp_opening", "the end of the handshake changes how long a flow is remembered")


def _asked_by(knob: str, value: Any) -> Iterator[tuple[_Ask, str]]:
    ends = "it asks whether the handshake is over"
    match knob:
        case "create_on":
            yield "handshake", "a SYN/ACK makes this censor follow a connection"
        case "handshake":
            if value == "full":
                yield "handshake", "payload is read only after a SYN/ACK"
                yield "first_ack", "payload is read only after the handshake"
        case "small_segments":
            yield "first_ack", ends
        case "teardown":
            if any(one.sequence != "any" for one in value.values()):
                for ask in _FROM_THE_BEGINNING:
                    yield ask, "resets and FINs are held against the server's sequence numbers"
            if any(one.when in ("opening", "established") for one in value.values()):
                yield "first_ack", ends
        case "on_overflow" | "hole_lifetime":
            for ask in _FROM_THE_BEGINNING:
                yield ask, "a hole in what the server says ends the memory, too"
        case "resync":
            # What it takes its numbers from afterwards is asked for when it has come to that (SetVerdict.queue_all).
            if any("synack" in trigger for trigger in value):
                yield "handshake", "a SYN/ACK may make this censor resynchronise"
            if any("payload" in trigger for trigger in value):
                yield "payload", "the server's payload may make this censor resynchronise"
            if any("payload" in trigger or trigger.startswith("rst") for trigger in value):
                yield "first_ack", ends
        case _:
            yield "every", "it may look at any packet"


def _why_every_packet(rule: CompiledRule) -> str:
    action = rule.action
    of_packet = rule.odds is not None and rule.odds.per == "packet"
    if rule.scope is Scope.FLOW and not (rule.hooks or rule.schedule or rule.repeat or of_packet):
        # It decides the flow at its first packet, or never; what it does then says of which packets it must know.
        return ""
    counts = [condition.field for condition in rule.conditions if condition.field.startswith("count.")]
    if rule.hooks:
        return "asks a Python function at each packet"
    if counts:
        return f"counts every packet ({counts[0]})"
    if isinstance(action, Freeze) and not action.payload_only:
        return "counts every packet before it freezes (`payload_only: true` would count payload alone)"
    if isinstance(action, Delay) or (isinstance(action, Throttle) and action.mode == "shape"):
        return "holds packets, and none may overtake"
    if rule.scope is Scope.FLOW and rule.schedule is not None:
        return "begins by its schedule, at whatever packet comes then"
    if rule.scope is not Scope.MESSAGE and of_packet:
        return "throws its dice at each packet"
    if rule.scope is Scope.FLOW and rule.repeat:
        return "acts at each packet"
    if rule.scope is Scope.PACKET and all(map(_holds_bare, rule.conditions)):
        return "matches packets without payload"
    return ""


def _why_server_payload(rule: CompiledRule) -> str:
    flags = [condition for condition in rule.conditions if condition.field == "tcp.flags"]
    if rule.scope is Scope.PACKET and _holds_towards_client(rule) and all(map(_holds_bare, flags)):
        return "matches packets of the server"
    if rule.scope is Scope.PACKET and _holds_towards_client(rule) and isinstance(rule.action, _FORGING):
        return "may forge what follows a packet of the server"
    return ""


def _why_handshake(rule: CompiledRule) -> str:
    if rule.scope is not Scope.PACKET or not _holds_towards_client(rule):
        return ""
    if any(condition.field.startswith("payload.") for condition in rule.conditions):
        return ""
    for condition in rule.conditions:
        if condition.field == "tcp.flags" and not any(_holds(condition, f"SA{more}") for more in _letters("UEC")):
            return ""
    return "matches a SYN/ACK"


def _holds_towards_client(rule: CompiledRule) -> bool:
    return all(_holds(condition, "to_client") for condition in rule.conditions if condition.field == "direction")


def _holds_bare(condition: Condition) -> bool:
    """Whether the condition can hold at a segment without payload, SYN, FIN and RST."""
    if condition.field.startswith("payload."):
        return False
    if condition.field == "tcp.flags":
        return any(_holds(condition, flags) for flags in _letters("PAUEC"))
    if condition.field == "packet.length":
        return any(_holds(condition, length) for length in _BARE_LENGTHS)
    return True


def _letters(flags: str) -> Iterator[str]:
    for count in range(len(flags) + 1):
        yield from map("".join, combinations(flags, count))
