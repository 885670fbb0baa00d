"""Does a rule hold, and why: conditions against what is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gfwemu.dissect.outcome import Span
from gfwemu.engine.facts import View
from gfwemu.engine.records import Evidence
from gfwemu.model import address_text
from gfwemu.rules.compiled import CompiledRule, Condition, Fact

EXCERPT_BYTES = 64


def holds(rule: CompiledRule, view: View) -> tuple[tuple[Condition, Fact, str], ...] | None:
    """Each positive condition with the value and the entry that matched; None where the rule does not hold (yet)."""
    found: list[tuple[Condition, Fact, str]] = []
    for condition in rule.conditions:
        value = view.get(condition.field)
        if value is None:
            return None
        matched = match_condition(condition, value)
        if matched is None:
            return None
        found.append((condition, matched[0], matched[1]))
    if rule.hooks:
        facts = view.facts()
        if not all(hook(facts) for hook in rule.hooks):
            return None
    return tuple(found)


def match_condition(condition: Condition, value: Fact) -> tuple[Fact, str] | None:
    """The value (of several, the one that matched) and the entry; None where the condition fails."""
    if condition.field != "ip.any" or not isinstance(value, tuple):
        entry = condition.matcher.match(value)
        if condition.negated:
            return (value, "none of the entries") if entry is None else None
        return None if entry is None else (value, entry)
    candidates: Sequence[Fact] = value
    for candidate in candidates:
        entry = condition.matcher.match(candidate)
        if entry is not None:
            return None if condition.negated else (candidate, entry)
    return (candidates[0], "none of the entries") if condition.negated else None


def evidence_of(
    found: Sequence[tuple[Condition, Fact, str]], spans: Mapping[str, Span], stream: bytes
) -> tuple[Evidence, ...]:
    """The evidence for a hit; `stream` holds the bytes that spans count in, as far as they were kept."""
    evidence: list[Evidence] = []
    for condition, value, entry in found:
        span = spans.get(condition.field)
        text = value if isinstance(value, str) else _value_text(condition.field, value)
        if span is None:
            excerpt = (
                value[:EXCERPT_BYTES] if isinstance(value, bytes) and condition.field.startswith("payload") else b""
            )
            evidence.append(Evidence(condition.field, text, entry, excerpt=excerpt))
        else:
            excerpt = stream[span.offset : span.offset + min(span.length, EXCERPT_BYTES)]
            evidence.append(Evidence(condition.field, text, entry, span.offset, span.length, excerpt))
    return tuple(evidence)


def _value_text(field: str, value: Fact) -> str:
    if isinstance(value, bytes):
        return address_text(value) if field.startswith("ip.") else value[:EXCERPT_BYTES].hex(" ")
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value).lower() if isinstance(value, bool) else str(value)
