"""A rule between the file and the engine: read and checked one by one, its place still known."""

from __future__ import annotations

from dataclasses import dataclass

from gfwemu.errors import Place, Problem
from gfwemu.model import Placement
from gfwemu.rules.actions import ACTIONS, Model, Residual
from gfwemu.rules.conditions import Alternative, Names, read_match
from gfwemu.rules.files import SourceFile
from gfwemu.rules.models import Defaults, RuleEntry
from gfwemu.rules.odds import CERTAIN, Odds
from gfwemu.rules.schedule import Calendar, compile_schedule
from gfwemu.rules.tree import Items, Mapping, Node, Scalar
from gfwemu.rules.validate import unknown, validated

RESIDUAL_SAME: frozenset[str] = frozenset({"drop", "reset", "fin", "rewrite_to_reset", "freeze", "icmp_unreachable"})
"""Actions that can be repeated on flows that merely share the endpoints; these take `defaults: residual`."""


@dataclass(slots=True)
class Draft:
    """One rule of a file."""

    name: str
    place: Place
    node: Mapping
    entry: RuleEntry
    alternatives: list[Alternative]
    action_name: str
    action: Model
    placement: Placement
    residual: Residual | None
    odds: Odds
    schedule: Calendar | None

    @property
    def probability(self) -> float:
        """The smallest that it ever is."""
        return self.odds.low

    def place_of(self, *path: str) -> Place:
        """Where that key's value stands, or the nearest thing above it."""
        node: Node = self.node
        for name in path:
            inner = node.get(name) if isinstance(node, Mapping) else None
            if inner is None:
                break
            node = inner
        return node.place


def read_drafts(source: SourceFile, names: Names, problems: list[Problem]) -> list[Draft]:
    """The rules of one file. Those with problems are left out."""
    rules = source.tree.get("rules")
    if not isinstance(rules, Items):
        return []
    defaults_node = source.tree.get("defaults")
    defaults = validated(Defaults, defaults_node, [], "") if defaults_node is not None else None
    drafts: list[Draft] = []
    for node in rules.items:
        if isinstance(node, Mapping):
            draft = _read(node, names, defaults or Defaults(), problems)
            if draft is not None:
                drafts.append(draft)
    return drafts


def _read(node: Mapping, names: Names, defaults: Defaults, problems: list[Problem]) -> Draft | None:
    before = len(problems)
    match = node.get("match")
    alternatives = read_match(match, names, problems) if isinstance(match, Mapping) else []
    action = _action(node, problems)
    entry = validated(RuleEntry, node, [], "")
    schedule: Calendar | None = None
    if entry is not None and entry.schedule is not None:
        try:
            schedule = compile_schedule(entry.schedule)
        except ValueError as error:
            place = node.get("schedule") or node
            problems.append(Problem(place.place, f"'schedule': {error}"))
    if entry is None or action is None or len(problems) > before:
        return None
    residual = entry.residual
    if residual is None and entry.action in RESIDUAL_SAME:
        residual = defaults.residual
    return Draft(
        name=entry.name,
        place=node.place,
        node=node,
        entry=entry,
        alternatives=alternatives,
        action_name=entry.action,
        action=action,
        placement=Placement(entry.placement or defaults.placement or Placement.IN_PATH),
        residual=residual if isinstance(residual, Residual) else None,
        odds=entry.probability or defaults.probability or CERTAIN,
        schedule=schedule,
    )


def _action(node: Mapping, problems: list[Problem]) -> Model | None:
    """The action's model, filled by `with:`."""
    name = node.get("action")
    if not isinstance(name, Scalar) or name.value is None:
        return None
    model = ACTIONS.get(name.text)
    if model is None:
        problems.append(Problem(name.place, unknown("action", name.text, ACTIONS)))
        return None
    parameters = node.get("with")
    if parameters is None:
        parameters = Mapping((), name.place)
    if not isinstance(parameters, Mapping):
        return None
    return validated(model, parameters, problems, f"action '{name.text}'")
