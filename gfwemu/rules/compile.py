"""Checked rules to what the engine reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from gfwemu.model import TRANSPORT_NAMES, Transport
from gfwemu.rules.actions import Action, Redirect
from gfwemu.rules.compiled import CompiledRule, Condition, Scope
from gfwemu.rules.conditions import Alternative, Clause
from gfwemu.rules.draft import Draft
from gfwemu.rules.fields import UNKNOWN_PROTOCOL, dissector_transports
from gfwemu.rules.matchers import ExactSet

TCP_ACTIONS: frozenset[str] = frozenset({"reset", "fin", "rewrite_to_reset", "blockpage", "tls_alert", "probe"})
"""These exist on TCP only; so does `redirect` with `location`."""

_ALL_TRANSPORTS = frozenset({1, 6, 17, 58, -1})
"""-1 stands for every other protocol number."""


def compile_rules(drafts: Iterable[Draft]) -> tuple[CompiledRule, ...]:
    """One compiled rule for each alternative of a match; alternatives share name and place."""
    rules: list[CompiledRule] = []
    for draft in drafts:
        for alternative in draft.alternatives:
            rules.append(_compile(draft, alternative, len(rules)))
    return tuple(rules)


def _compile(draft: Draft, alternative: Alternative, index: int) -> CompiledRule:
    conditions = [clause.condition for clause in alternative.clauses]
    if needs_tcp(draft) and not allowed_transports(alternative) <= {Transport.TCP}:
        conditions.insert(0, Condition("transport", ExactSet("", frozenset({"tcp"}))))
    scopes = [clause.field.scope for clause in alternative.clauses]
    if alternative.hooks:
        scopes.append(Scope.PACKET)
    return CompiledRule(
        index=index,
        name=draft.name,
        action_name=draft.action_name,
        action=cast(Action, draft.action),
        conditions=tuple(conditions),
        scope=max(scopes, default=Scope.FLOW),
        placement=draft.placement,
        place=draft.place,
        hooks=tuple(alternative.hooks),
        probability=draft.probability,
        odds=None if draft.odds.plain else draft.odds,
        repeat=draft.entry.repeat,
        residual=draft.residual,
        schedule=draft.schedule,
        cite=draft.entry.cite,
        observed=draft.entry.observed,
        evidence=draft.entry.evidence or "",
        guessed=tuple(draft.entry.guessed),
        box=draft.entry.box or "",
    )


def needs_tcp(draft: Draft) -> bool:
    """Whether the action exists on TCP only, so that the rule is about TCP flows only."""
    return draft.action_name in TCP_ACTIONS or (isinstance(draft.action, Redirect) and bool(draft.action.location))


def allowed_transports(alternative: Alternative) -> frozenset[int]:
    """The transports on which all clauses can hold."""
    allowed = _ALL_TRANSPORTS
    for clause in alternative.clauses:
        allowed &= clause_transports(clause)
    return allowed


def clause_transports(clause: Clause) -> frozenset[int]:
    """The transports on which one clause can hold."""
    if clause.field.name == "transport":
        numbers = {name: number for number, name in TRANSPORT_NAMES.items()} | {"other": -1}
        return frozenset(
            number for name, number in numbers.items() if (clause.matcher.match(name) is not None) != clause.negated
        )
    if clause.field.name == "protocol":
        return frozenset().union(
            *(_protocol_transports(name) for name in clause.field.field.choices if _holds(clause, name))
        )
    return clause.field.transports or _ALL_TRANSPORTS


def _protocol_transports(name: str) -> frozenset[int]:
    return dissector_transports().get(name, _ALL_TRANSPORTS)


def _holds(clause: Clause, value: str) -> bool:
    return (clause.matcher.match(value) is not None) != clause.negated


def needed_dissectors(drafts: Iterable[Draft]) -> frozenset[str]:
    """The dissectors whose facts some rule asks for; all of them where `unknown` or a hook may depend on each."""
    every = frozenset(dissector_transports())
    needed: set[str] = set()
    for draft in drafts:
        for alternative in draft.alternatives:
            if alternative.hooks:
                return every
            for clause in alternative.clauses:
                if clause.field.name == "protocol":
                    wanted = {name for name in clause.field.field.choices if clause.matcher.match(name) is not None}
                    if clause.negated or UNKNOWN_PROTOCOL in wanted:
                        return every
                    needed |= wanted
                elif clause.field.dissector:
                    needed.add(clause.field.dissector)
    return frozenset(needed)
