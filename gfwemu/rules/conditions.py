"""`match:` as compiled conditions."""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from pathlib import Path

from gfwemu.dissect.fields import FieldKind
from gfwemu.errors import Place, Problem
from gfwemu.rules.compiled import Condition
from gfwemu.rules.fields import RuleField, rule_fields
from gfwemu.rules.hooks import Hook, load_hook
from gfwemu.rules.lists import LoadedList
from gfwemu.rules.matchers import CoveringMatcher
from gfwemu.rules.tree import Items, Mapping, Node, Scalar, shorten
from gfwemu.rules.validate import describe, suggestion
from gfwemu.rules.values import TEXT_OPERATORS, ValueReader

ALTERNATIVE_LIMIT = 64
"""Entries of one `any:`."""

_USUAL_OPERATORS = {"http.keyword": "contains"}
"""How a plain value is held against a field where not as a whole: nobody filters for all of a request's text."""


@dataclass(frozen=True, slots=True)
class Clause:
    """A condition that still knows its field's description and where it stands."""

    field: RuleField
    matcher: CoveringMatcher
    negated: bool
    place: Place

    @property
    def condition(self) -> Condition:
        return Condition(self.field.name, self.matcher, self.negated)


@dataclass(slots=True)
class Alternative:
    """Clauses and hooks that must all hold."""

    clauses: list[Clause] = field(default_factory=list)
    hooks: list[Hook] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Names:
    """What the names in one file's rules refer to. `directory` is where its Python hooks lie."""

    lists: MappingType[str, LoadedList]
    subscribers: frozenset[str]
    groups: frozenset[str]
    directory: Path


def read_match(node: Mapping, names: Names, problems: list[Problem]) -> list[Alternative]:
    """The alternatives of a match, of which one must hold. With problems added, the result is not complete."""
    reader = _MatchReader(names, problems)
    common = Alternative()
    branches: list[Alternative] = []
    for key, value in node.entries:
        if key.text == "any":
            branches = reader.any(key, value)
        else:
            reader.entry(key, value, "", common)
    if not branches:
        return [common]
    return [Alternative(common.clauses + one.clauses, common.hooks + one.hooks) for one in branches]


class _MatchReader:
    def __init__(self, names: Names, problems: list[Problem]) -> None:
        self._names = names
        self._problems = problems
        self._values = ValueReader(
            names.lists, {"subscriber": names.subscribers, "subscriber.group": names.groups}, problems
        )

    def _problem(self, place: Place, message: str) -> None:
        self._problems.append(Problem(place, message))

    def any(self, key: Scalar, node: Node) -> list[Alternative]:
        if not isinstance(node, Items) or not node.items:
            self._problem(node.place, f"'any': expected a list of mappings, found {describe(node)}")
            return []
        if len(node.items) > ALTERNATIVE_LIMIT:
            self._problem(node.place, f"'any' has more than {ALTERNATIVE_LIMIT} entries; use lists of values instead")
            return []
        branches: list[Alternative] = []
        for item in node.items:
            if not isinstance(item, Mapping) or not item.entries:
                self._problem(item.place, f"'any': expected a mapping of fields, found {describe(item)}")
                continue
            branch = Alternative()
            for inner, value in item.entries:
                if inner.text == "any":
                    self._problem(inner.place, "'any' inside 'any': write the alternatives out in one list")
                else:
                    self.entry(inner, value, "", branch)
            branches.append(branch)
        return branches

    def entry(self, key: Scalar, node: Node, prefix: str, into: Alternative) -> None:
        """One `field: value`, or a namespace with its fields: `tls: {sni: ...}`."""
        name = prefix + key.text
        fields = rule_fields()
        if name == "python":
            self._hooks(node, into)
        elif name in fields:
            into.clauses.extend(self._clauses(fields[name], node))
        elif not prefix and isinstance(node, Mapping) and any(known.startswith(f"{name}.") for known in fields):
            if not node.entries:
                self._problem(node.place, f"'{name}': names no field")
            for inner, value in node.entries:
                self.entry(inner, value, f"{name}.", into)
        else:
            self._problem(key.place, _unknown_field(key.text, prefix))

    def _hooks(self, node: Node, into: Alternative) -> None:
        for item in node.items if isinstance(node, Items) else (node,):
            if not isinstance(item, Scalar):
                self._problem(item.place, f"'python': expected file.py:function, found {describe(item)}")
                continue
            try:
                into.hooks.append(load_hook(item.text, self._names.directory))
            except ValueError as error:
                self._problem(item.place, f"'python': {error}")

    def _clauses(self, entry: RuleField, node: Node) -> list[Clause]:
        """All clauses must hold: one for a plain value, one for each key of `{not:, prefix:, ...}`."""
        if not isinstance(node, Mapping) or (entry.kind is FieldKind.BYTES and node.get("not") is None):
            return self._clause(entry, node, _usual_operator(entry), False)
        if not node.entries:
            self._problem(node.place, f"'{entry.name}': an empty mapping matches nothing")
        clauses: list[Clause] = []
        operators = self._operators(entry)
        for key, value in node.entries:
            if key.text == "not":
                clauses.extend(self._negated(entry, value))
            elif key.text in operators:
                clauses.extend(self._clause(entry, value, key.text, False))
            else:
                self._unknown_operator(entry, key)
        return clauses

    def _negated(self, entry: RuleField, node: Node) -> list[Clause]:
        if not isinstance(node, Mapping) or entry.kind is FieldKind.BYTES:
            return self._clause(entry, node, _usual_operator(entry), True)
        if len(node.entries) != 1:
            self._problem(node.place, f"'{entry.name}': 'not' takes a value, a list, or a mapping with one key")
            return []
        key, value = node.entries[0]
        if key.text not in self._operators(entry):
            self._unknown_operator(entry, key)
            return []
        return self._clause(entry, value, key.text, True)

    def _operators(self, entry: RuleField) -> tuple[str, ...]:
        return ("is", *TEXT_OPERATORS) if entry.kind in (FieldKind.TEXT, FieldKind.TEXTS) else ("is",)

    def _unknown_operator(self, entry: RuleField, key: Scalar) -> None:
        known = [*self._operators(entry), "not"]
        near = suggestion(key.text, known) or f"; known: {', '.join(known)}"
        self._problem(key.place, f"'{entry.name}': unknown key '{shorten(key.text)}'{near}")

    def _clause(self, entry: RuleField, node: Node, operator: str, negated: bool) -> list[Clause]:
        matcher = self._values.matcher(entry, node, operator)
        return [] if matcher is None else [Clause(entry, matcher, negated, node.place)]


def _usual_operator(entry: RuleField) -> str:
    return _USUAL_OPERATORS.get(entry.name, "is")


def _unknown_field(name: str, prefix: str) -> str:
    fields = list(rule_fields())
    if prefix:
        inner = [known.removeprefix(prefix) for known in fields if known.startswith(prefix)]
        near = suggestion(name, inner) or f"; known: {', '.join(inner)}"
        return f"unknown key '{shorten(name)}'{near}"
    same_end = [known for known in fields if known.rpartition(".")[2] == name]
    if same_end:
        return f"unknown key '{name}'; did you mean {' or '.join(repr(known) for known in same_end[:3])}?"
    near = suggestion(name, [*fields, "any", "python"])
    return f"unknown key '{shorten(name)}'{near or '; `gfwemu list fields` shows all'}"
