"""Rules as the judge looks at them: what of a match is known when, and when a rule can no longer fire."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gfwemu.engine.facts import FLOW_FIELDS, PACKET_FIELDS, View
from gfwemu.engine.matching import match_condition
from gfwemu.flow.flow import Flow, direction_index
from gfwemu.model import Direction
from gfwemu.rules.actions import Freeze
from gfwemu.rules.compiled import CompiledRule, Condition, Fact, Facts, Scope
from gfwemu.rules.fields import rule_fields

_REPEATING = frozenset({"poison", "alert"})
"""Actions that act on every message that matches, not once a flow."""

_NOWHERE = frozenset({-1})

_OF_ANSWERS: dict[str, Fact] = {"dns.response": True, "direction": Direction.TO_CLIENT.value, "protocol": "dns"}
"""What is known of every DNS answer of a flow's server."""

Limit = tuple[Callable[[Flow], int], Callable[[int], bool]]
"""A count that only grows, and whether it has left for good the range that the rule asks for."""

_COUNTS: dict[str, Callable[[Flow], int]] = {
    "count.packets": lambda flow: sum(flow.packets),
    "count.packets.to_server": lambda flow: flow.packets[0],
    "count.packets.to_client": lambda flow: flow.packets[1],
    "count.bytes": lambda flow: sum(flow.bytes),
    "count.bytes.to_server": lambda flow: flow.bytes[0],
    "count.bytes.to_client": lambda flow: flow.bytes[1],
}


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A rule and what follows from its match.

    eager: it may fire at a packet that completes no message. by_message: it fires at every message that matches.
    heeds_answers: a DNS answer of a flow's server, over UDP, may set it off or change what it does later.
    lasts: it may fire at other packets than a flow's first. transports: those on which it can (empty: any).
    place, towards: as a hit tells them.
    """

    rule: CompiledRule
    flow_conditions: tuple[Condition, ...]
    later_conditions: tuple[Condition, ...]
    message_conditions: tuple[Condition, ...]
    limits: tuple[Limit, ...]
    eager: bool
    by_message: bool
    heeds_answers: bool
    lasts: bool
    transports: frozenset[int]
    place: str
    towards: str

    @classmethod
    def of(cls, rule: CompiledRule) -> Candidate:
        of_flow = tuple(condition for condition in rule.conditions if condition.field in FLOW_FIELDS)
        of_message = tuple(
            condition
            for condition in rule.conditions
            if condition.field not in FLOW_FIELDS and condition.field not in PACKET_FIELDS
        )
        repeats = rule.repeat or rule.action_name in _REPEATING
        by_message = rule.scope is Scope.MESSAGE or (bool(of_message) and repeats)
        return cls(
            rule,
            of_flow,
            tuple(condition for condition in rule.conditions if condition.field not in FLOW_FIELDS),
            of_message,
            _limits(rule),
            eager=not by_message and (rule.scope is Scope.PACKET or rule.schedule is not None or rule.repeat),
            by_message=by_message,
            heeds_answers=not by_message or _may_hold_at_answer(rule),
            lasts=rule.scope is not Scope.FLOW or rule.schedule is not None or rule.repeat,
            transports=_transports(rule),
            place=str(rule.place),
            towards=str(getattr(rule.action, "towards", "")),
        )

    @property
    def repeats(self) -> bool:
        return self.rule.repeat or (self.by_message and self.rule.action_name in _REPEATING)

    def may_hold(self, view: View) -> bool:
        """Whether all but the hooks hold, for a flow that does not refute the rule."""
        for condition in self.later_conditions:
            value = view.get(condition.field)
            if value is None or (condition.matcher.match(value) is None) is not condition.negated:
                return False
        return True

    def exhausted(self, flow: Flow) -> bool:
        """Whether a count that only grows has left the range that the rule asks for."""
        return any(beyond(count(flow)) for count, beyond in self.limits)

    def refuted_by(self, facts: Facts) -> bool:
        """Whether all that will ever be known of the flow's messages rules this rule out."""
        for condition in self.message_conditions:
            value = facts.get(condition.field)
            if value is None or match_condition(condition, value) is None:
                return True
        return False


def _may_hold_at_answer(rule: CompiledRule) -> bool:
    """Whether a rule that is asked at each message may hold at a DNS answer of the server, or counts packets."""
    counts = isinstance(rule.action, Freeze) or any(one.field.startswith("count.") for one in rule.conditions)
    if rule.hooks or counts:
        return True
    return rule.action_name != "poison" and not any(map(_fails_at_answer, rule.conditions))


def _fails_at_answer(condition: Condition) -> bool:
    if condition.field in _OF_ANSWERS:
        return match_condition(condition, _OF_ANSWERS[condition.field]) is None
    field = rule_fields().get(condition.field)
    return field is not None and field.dissector not in ("", "dns")


def _transports(rule: CompiledRule) -> frozenset[int]:
    """Those on which every field that the rule asks for may be known; empty: any."""
    allowed: frozenset[int] = frozenset()
    for condition in rule.conditions:
        field = rule_fields().get(condition.field)
        if field is not None and field.transports:
            allowed = allowed & field.transports if allowed else field.transports
            if not allowed:
                return _NOWHERE
    return allowed


def _limits(rule: CompiledRule) -> tuple[Limit, ...]:
    limits: list[Limit] = []
    for condition in rule.conditions:
        beyond = getattr(condition.matcher, "exhausted", None)
        count = _payloads(rule) if condition.field == "payload.number" else _COUNTS.get(condition.field)
        if beyond is not None and count is not None and not condition.negated and beyond(math.inf):
            limits.append((count, beyond))
    return tuple(limits)


def _payloads(rule: CompiledRule) -> Callable[[Flow], int]:
    """The ordinal of the last payload, in that direction of those the rule is about that lags behind."""
    ways = [direction_index(way) for way in Direction if _may_run(rule, way)]
    return lambda flow: min((flow.payloads[way] for way in ways), default=0)


def _may_run(rule: CompiledRule, way: Direction) -> bool:
    return all(
        (condition.matcher.match(way.value) is None) == condition.negated
        for condition in rule.conditions
        if condition.field == "direction"
    )
