"""Helpers for tests of the rule language: files from text, problems as text."""

from __future__ import annotations

from pathlib import Path

from gfwemu.errors import RulesError
from gfwemu.rules.compiled import Fact, RuleSet
from gfwemu.rules.load import load_rules


def load_text(directory: Path, text: str, name: str = "rules.yaml") -> RuleSet:
    """The rule set of a file with that text."""
    path = directory / name
    path.write_text(text)
    return load_rules([path])


def one_rule(directory: Path, match: str, action: str = "drop", extra: str = "") -> RuleSet:
    """A file with one rule; `match` is YAML in flow style."""
    text = f"version: 1\nrules:\n  - name: one\n    match: {match}\n    action: {action}\n"
    return load_text(directory, text + extra)


def problems_of(directory: Path, text: str) -> list[str]:
    """What is wrong with that text, each as `LINE message`; empty where all is right."""
    try:
        load_text(directory, text)
    except RulesError as error:
        return [f"{problem.place.line} {problem.message}" for problem in error.problems]
    return []


def matched(rules: RuleSet, **facts: Fact) -> list[str] | None:
    """The entries by which the first rule matches facts (dots of names written `__`), or None."""
    values = {name.replace("__", "."): value for name, value in facts.items()}
    entries: list[str] = []
    for condition in rules.rules[0].conditions:
        value = values.get(condition.field)
        if value is None:
            return None
        entry = condition.matcher.match(value)
        if (entry is not None) == condition.negated:
            return None
        entries.append(entry or "")
    return entries
