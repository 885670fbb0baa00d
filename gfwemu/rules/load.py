"""Rule files to a rule set: the one door to the rules."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gfwemu.errors import Place, Problem, RulesError
from gfwemu.rules.boxes import check_boxes, in_series
from gfwemu.rules.compile import compile_rules, needed_dissectors
from gfwemu.rules.compiled import RuleSet, Subscriber
from gfwemu.rules.conditions import Names
from gfwemu.rules.draft import Draft, read_drafts
from gfwemu.rules.files import FileReader, SourceFile, shown_path, visible_lists
from gfwemu.rules.lint import lint
from gfwemu.rules.lists import LoadedList
from gfwemu.rules.models import SubscriberEntry
from gfwemu.rules.networks import Network, parse_network
from gfwemu.rules.options import engine_options, merged
from gfwemu.rules.tree import Items, Mapping, Node, Scalar, shorten
from gfwemu.rules.validate import suggestion, validated


@dataclass(frozen=True, slots=True)
class Loaded:
    """A rule set with what `check` tells about it."""

    rules: RuleSet
    files: tuple[str, ...]
    lists: tuple[LoadedList, ...]


def load_rules(paths: Sequence[Path], *, seed: int | None = None) -> RuleSet:
    """The rules of the files, tried in that order. Raises RulesError with everything that is wrong, lint included."""
    return load(paths, seed=seed).rules


def load(paths: Sequence[Path], *, seed: int | None = None) -> Loaded:
    """As `load_rules`, with the files and lists that took part."""
    problems: list[Problem] = []
    reader = FileReader(problems)
    roots = [root for path in paths if (root := reader.read(path, shown_path(path))) is not None]
    sources = [source for root in roots for source in root.walk()]
    subscribers = [entry for source in sources for entry in _subscribers(source, problems)]
    _distinct(subscribers, problems)
    inside = tuple(network for source in sources for network in _inside(source, problems))
    drafts = _all_drafts(roots, [entry for entry, _ in subscribers], problems)
    lists = [loaded for source in sources for loaded in source.lists.values()]
    lint(drafts, lists, problems)
    check_boxes(sources, problems)
    if problems:
        raise RulesError(_essential(problems, reader.unreadable))
    models = [source.model for source in sources if source.model is not None]
    seeds = [model.defaults.seed for model in models if model.defaults.seed is not None]
    engine = merged(model.engine for model in models)
    drafts, boxes = in_series(drafts, models, engine)
    rules = compile_rules(drafts)
    rule_set = RuleSet(
        rules=rules,
        options=boxes[0].options if len(boxes) == 1 else engine_options(engine),
        dissectors=needed_dissectors(drafts),
        subscribers=tuple(entry for entry, _ in subscribers),
        inside=inside,
        seed=seed if seed is not None else seeds[-1] if seeds else 0,
        on_error=engine.get("on_error", "accept"),
        fail_open=engine.get("fail_open", True),
        description=models[-1].description if models else "",
        source=", ".join(map(shown_path, paths)),
        lists={loaded.name: loaded.size for loaded in lists},
        box=boxes[0].name if len(boxes) == 1 else "",
        boxes=boxes if len(boxes) > 1 else (),
    )
    return Loaded(rule_set, tuple(source.shown for source in sources), tuple(lists))


def _essential(problems: Sequence[Problem], unreadable: set[Place]) -> list[Problem]:
    """Each problem once; of a value that could not be read, only that."""
    told: dict[Place, str] = {}
    for problem in problems:
        if problem.place in unreadable:
            told.setdefault(problem.place, problem.message)
    return [one for one in dict.fromkeys(problems) if told.get(one.place, one.message) == one.message]


def _all_drafts(roots: Sequence[SourceFile], subscribers: Sequence[Subscriber], problems: list[Problem]) -> list[Draft]:
    """The rules of all files in the order in which they are tried, without those that an includer disables."""
    names = frozenset(entry.name for entry in subscribers)
    groups = frozenset(group for entry in subscribers for group in entry.groups)

    def visit(source: SourceFile, above: tuple[SourceFile, ...]) -> list[Draft]:
        included = [draft for one in source.includes for draft in visit(one, (*above, source))]
        scope = Names(visible_lists(source, above), names, groups, source.path.parent)
        drafts = _without_disabled(source, included, problems) + read_drafts(source, scope, problems)
        return _replaced(source, drafts, problems)

    return [draft for root in roots for draft in visit(root, ())]


def _without_disabled(source: SourceFile, drafts: list[Draft], problems: list[Problem]) -> list[Draft]:
    disabled = _texts(source.tree.get("disable"))
    known = {draft.name for draft in drafts}
    complete = not problems
    for item in disabled:
        if complete and not fnmatch.filter(known, item.text):
            near = suggestion(item.text, known) or "; only included rules can be disabled"
            problems.append(Problem(item.place, f"'disable': no included rule is named '{shorten(item.text)}'{near}"))
    names = {name for item in disabled for name in fnmatch.filter(known, item.text)}
    return [draft for draft in drafts if draft.name not in names]


def _replaced(source: SourceFile, drafts: list[Draft], problems: list[Problem]) -> list[Draft]:
    """Of the rules that share a name under `replace`, only the last, in the place of the first."""
    last = {draft.name: draft for draft in drafts}
    counts = Counter(draft.name for draft in drafts)
    complete = not problems
    names: set[str] = set()
    for item in _texts(source.tree.get("replace")):
        names.add(item.text)
        if counts[item.text] < 2 and complete:
            near = suggestion(item.text, counts) if item.text not in counts else ""
            fix = near or "; the last of several rules of that name takes the place of the others"
            problems.append(Problem(item.place, f"'replace': no two rules are named '{shorten(item.text)}'{fix}"))
    kept = {draft.name: last[draft.name] for draft in reversed(drafts) if draft.name in names}
    return [kept.pop(draft.name, draft) for draft in drafts if draft.name not in names or draft.name in kept]


def _subscribers(source: SourceFile, problems: list[Problem]) -> list[tuple[Subscriber, Node]]:
    node = source.tree.get("subscribers")
    found: list[tuple[Subscriber, Node]] = []
    for key, value in node.entries if isinstance(node, Mapping) else ():
        entry = validated(SubscriberEntry, value, [], "")
        if entry is None or not isinstance(value, Mapping):
            continue
        networks = _networks(value.get("addresses"), f"subscriber '{key.text}'", problems)
        if not entry.addresses:
            problems.append(Problem(value.place, f"subscriber '{key.text}' needs at least one address"))
        found.append((Subscriber(key.text, networks, frozenset(entry.groups)), value))
    return found


def _distinct(subscribers: Sequence[tuple[Subscriber, Node]], problems: list[Problem]) -> None:
    names: set[str] = set()
    owners: dict[Network, str] = {}
    for entry, node in subscribers:
        if entry.name in names:
            problems.append(Problem(node.place, f"subscriber '{entry.name}' is already defined in another file"))
        names.add(entry.name)
        for network in entry.networks:
            owner = owners.setdefault(network, entry.name)
            if owner != entry.name:
                message = f"subscriber '{entry.name}' has an address that '{owner}' has, too"
                problems.append(Problem(node.place, message))


def _inside(source: SourceFile, problems: list[Problem]) -> tuple[Network, ...]:
    return _networks(source.tree.get("inside"), "'inside'", problems)


def _networks(node: Node | None, what: str, problems: list[Problem]) -> tuple[Network, ...]:
    found: list[Network] = []
    for item in _texts(node):
        try:
            found.append(parse_network(item.text))
        except ValueError as error:
            problems.append(Problem(item.place, f"{what}: {error}"))
    return tuple(found)


def _texts(node: Node | None) -> list[Scalar]:
    items = node.items if isinstance(node, Items) else ()
    return [item for item in items if isinstance(item, Scalar)]
