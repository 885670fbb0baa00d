"""`boxes:` and `box:`: several censors in series, each with its own rules and its own way to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gfwemu.errors import Problem
from gfwemu.rules.compile import needed_dissectors
from gfwemu.rules.compiled import Box
from gfwemu.rules.draft import Draft
from gfwemu.rules.files import SourceFile
from gfwemu.rules.models import RuleFile
from gfwemu.rules.options import Tree, engine_options, merged
from gfwemu.rules.tree import Items, Mapping, Scalar
from gfwemu.rules.validate import suggestion


def check_boxes(sources: Sequence[SourceFile], problems: list[Problem]) -> None:
    """Adds a problem for each rule whose box no file defines, and for each box without a rule (disabled ones count)."""
    defined = [key for source in sources for key in _keys(source)]
    known = {key.text for key in defined}
    used: set[str] = set()
    for source in sources:
        for node in _named(source):
            used.add(node.text)
            if node.text not in known:
                fix = suggestion(node.text, known) or "; define it under 'boxes' of the file"
                problems.append(Problem(node.place, f"there is no box '{node.text[:64]}'{fix}"))
    for key in defined:
        if key.text not in used:
            message = f"no rule is in the box '{key.text}'; write 'box: {key.text}' in a rule, or take the box out"
            problems.append(Problem(key.place, message))


def in_series(drafts: Sequence[Draft], models: Sequence[RuleFile], engine: Tree) -> tuple[list[Draft], tuple[Box, ...]]:
    """The rules in the order of their boxes, and the boxes that have any: first that of rules without `box`."""
    names = list(dict.fromkeys(["", *(name for model in models for name in model.boxes)]))
    ordered: list[Draft] = []
    boxes: list[Box] = []
    for name in names:
        own = [draft for draft in drafts if (draft.entry.box or "") == name]
        if own:
            tree = merged([engine, *(model.boxes[name] for model in models if name in model.boxes)])
            boxes.append(Box(name, engine_options(tree), needed_dissectors(own)))
            ordered += own
    return ordered, tuple(boxes)


def _keys(source: SourceFile) -> Iterator[Scalar]:
    node = source.tree.get("boxes")
    if isinstance(node, Mapping):
        yield from (key for key, _ in node.entries)


def _named(source: SourceFile) -> Iterator[Scalar]:
    """What stands after `box:` in the rules of a file."""
    rules = source.tree.get("rules")
    for rule in rules.items if isinstance(rules, Items) else ():
        box = rule.get("box") if isinstance(rule, Mapping) else None
        if isinstance(box, Scalar) and box.text:
            yield box
