"""Rule files with what they include: read, validated, their lists loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gfwemu.errors import Place, Problem, UsageError
from gfwemu.rules.catalogue import find_profile
from gfwemu.rules.lists import LoadedList, load_list
from gfwemu.rules.models import ListEntry, RuleFile
from gfwemu.rules.tree import Items, Mapping, Node, Scalar, read_tree, shorten
from gfwemu.rules.validate import describe, validated

INCLUDE_DEPTH = 16


@dataclass(slots=True)
class SourceFile:
    """One rule file. `model` is None where the file is wrong; `shown` is how messages call it."""

    path: Path
    shown: str
    tree: Mapping
    model: RuleFile | None
    includes: list[SourceFile] = field(default_factory=list)
    lists: dict[str, LoadedList] = field(default_factory=dict)

    def walk(self) -> Iterator[SourceFile]:
        """The included files first, each before the file that includes it; then this one."""
        for included in self.includes:
            yield from included.walk()
        yield self


class FileReader:
    """Reads files and their includes; collects problems. `unreadable`: places that hold no value at all."""

    def __init__(self, problems: list[Problem]) -> None:
        self._problems = problems
        self._seen: dict[Path, str] = {}
        self.unreadable: set[Place] = set()

    def read(self, path: Path, shown: str, place: Place | None = None, above: Sequence[Path] = ()) -> SourceFile | None:
        """The file with its includes, or None where its text cannot be read. `place`: of the include that names it."""
        real = Path(os.path.realpath(path))
        where = place or Place(shown)
        if real in above:
            chain = " -> ".join([*(one.name for one in above[above.index(real) :]), real.name])
            self._problems.append(Problem(where, f"the file includes itself: {chain}"))
            return None
        if real in self._seen:
            self._problems.append(
                Problem(where, f"'{shown}' is loaded twice (first by {self._seen[real]}); take one out")
            )
            return None
        if len(above) >= INCLUDE_DEPTH:
            self._problems.append(Problem(where, f"includes are nested deeper than {INCLUDE_DEPTH} files"))
            return None
        self._seen[real] = str(place) if place else "the command line"
        if not _is_file(path):
            self._problems.append(Problem(where, f"there is no rule file '{shorten(shown, 200)}'"))
            return None
        tree, problems = read_tree(path, shown)
        self._problems.extend(problems)
        self.unreadable.update(problem.place for problem in problems)
        if tree is None:
            return None
        if not isinstance(tree, Mapping):
            self._problems.append(
                Problem(tree.place, f"a rule file is a mapping that begins with 'version: 1', found {describe(tree)}")
            )
            return None
        source = SourceFile(path, shown, tree, validated(RuleFile, tree, self._problems, "the rule file"))
        for item in _texts(tree.get("include")):
            self._include(source, item, (*above, real))
        self._lists(source)
        return source

    def _include(self, source: SourceFile, item: Scalar, above: Sequence[Path]) -> None:
        try:
            path = source.path.parent / item.text
            shown = str(Path(source.shown).parent / item.text)
            if not path.is_file():
                path = find_profile(item.text)
                shown = shown_path(path)
        except (UsageError, OSError, ValueError) as error:
            reason = str(error) if isinstance(error, UsageError) else f"'{shorten(item.text)}' is not a path"
            self._problems.append(Problem(item.place, reason))
            return
        included = self.read(path, shown, item.place, above)
        if included is not None:
            source.includes.append(included)

    def _lists(self, source: SourceFile) -> None:
        node = source.tree.get("lists")
        if not isinstance(node, Mapping):
            return
        for key, value in node.entries:
            entry = validated(ListEntry, value, [], "")
            if entry is not None and isinstance(value, Mapping):
                directory, shown = source.path.parent, Path(source.shown).parent
                source.lists[key.text] = load_list(key.text, entry, value, directory, shown, self._problems)
            else:
                source.lists[key.text] = LoadedList(key.text, value.place, "", used=True)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def shown_path(path: Path) -> str:
    """How messages call a file: relative where it lies below the current directory."""
    return os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)


def visible_lists(source: SourceFile, above: Sequence[SourceFile]) -> dict[str, LoadedList]:
    """The lists that the rules of a file see: its own and those of its includes, replaced by those of its includers.

    `above` runs from the outermost file to the one that includes `source`.
    """
    found: dict[str, LoadedList] = {}
    for one in source.walk():
        found.update(one.lists)
    for includer in reversed(above):
        for name, loaded in includer.lists.items():
            if name in found:
                found[name].used = True
                found[name] = loaded
    return found


def _texts(node: Node | None) -> list[Scalar]:
    items = node.items if isinstance(node, Items) else ()
    return [item for item in items if isinstance(item, Scalar) and item.text]
