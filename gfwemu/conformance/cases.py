"""Case files: found beside the profiles, read, and fitted to an era."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from gfwemu.conformance.language import CaseEntry, CaseFile, Changes, Expect, Quantiles, Rate, Step
from gfwemu.conformance.rates import check_rate
from gfwemu.errors import Place, Problem, RulesError, UsageError
from gfwemu.rules.catalogue import PROFILE_DIRECTORIES
from gfwemu.rules.files import shown_path
from gfwemu.rules.tree import Items, Mapping, Node, read_tree
from gfwemu.rules.validate import suggestion, validated

NOON = "2024-11-15T12:00:00+08:00"
"""When cases play that name no time: a working day in China."""


@dataclass(frozen=True, slots=True)
class Case:
    """One behaviour of one era. `rules`: those without which it does not hold; `clock`: seconds since the
    epoch, when the censor's clock begins."""

    id: str
    mechanism: str
    about: str
    behaviour: str
    cite: str
    evidence: str
    rules: tuple[str, ...]
    must_not: bool
    where: str
    clock: float
    repeat: int
    rate: Rate | None
    delays: Quantiles | None
    steps: tuple[Step, ...]
    expect: Expect | None
    note: str
    gap: str
    place: Place

    @property
    def live(self) -> bool:
        return self.where in ("live", "both")

    @property
    def replayed(self) -> bool:
        return self.where in ("replay", "both")


def case_directories() -> list[Path]:
    """Where the files are: `cases/PROFILE/MECHANISM.yaml` beside the shipped profiles."""
    found = [directory / "cases" for directory in PROFILE_DIRECTORIES]
    return [directory for directory in found if directory.is_dir()][:1]


def case_files() -> list[Path]:
    return sorted(path for directory in case_directories() for path in directory.glob("*/*.yaml"))


def load_cases(profile: str, files: Sequence[Path] | None = None) -> list[Case]:
    """The cases that hold for a profile. Raises RulesError with everything that is wrong in any file."""
    problems: list[Problem] = []
    found: list[Case] = []
    places: dict[str, Place] = {}
    for path in case_files() if files is None else files:
        tree, file, wrong = _read(path)
        problems += wrong
        if not isinstance(tree, Mapping) or file is None:
            continue
        nodes = tree.get("cases")
        items = nodes.items if isinstance(nodes, Items) else ()
        for entry, node in zip(file.cases, items, strict=True):
            if entry.id in places:
                problems.append(Problem(node.place, f"the case '{entry.id}' is already in {places[entry.id]}"))
            places[entry.id] = node.place
            eras = entry.profiles or file.profiles or [path.parent.name]
            _check(entry, eras, node.place, problems)
            if profile in eras:
                found.append(_fit(entry, file, profile, node.place))
    if problems:
        raise RulesError(problems)
    return found


def _read(path: Path) -> tuple[Node | None, CaseFile | None, tuple[Problem, ...]]:
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        stamp = 0
    return _read_as_of(path, stamp)


@lru_cache(256)
def _read_as_of(path: Path, _: int) -> tuple[Node | None, CaseFile | None, tuple[Problem, ...]]:
    """The tree of a file, what it says, and what is wrong with it; read once, since every era asks for every file."""
    tree, problems = read_tree(path, shown_path(path))
    problems = list(problems)
    file = validated(CaseFile, tree, problems, "the case file") if isinstance(tree, Mapping) else None
    return tree, file, tuple(problems)


def eras_of_cases(files: Sequence[Path] | None = None) -> list[str]:
    """Every profile that some case holds for, by name."""
    names: set[str] = set()
    for path in case_files() if files is None else files:
        _, file, _ = _read(path)
        for entry in file.cases if file is not None else ():
            names.update(entry.profiles or (file.profiles if file is not None else None) or [path.parent.name])
    return sorted(names)


def choose(cases: Iterable[Case], wanted: Sequence[str]) -> list[Case]:
    """Those with the ids, in their order. Raises UsageError."""
    known = {case.id: case for case in cases}
    for name in wanted:
        if name not in known:
            near = suggestion(name, known) or "; --list shows the cases"
            raise UsageError(f"there is no case '{name}' for this profile{near}")
    return [case for case in known.values() if not wanted or case.id in wanted]


def _check(entry: CaseEntry, eras: Sequence[str], place: Place, problems: list[Problem]) -> None:
    for name, changes in entry.eras.items():
        if name not in eras:
            problems.append(
                Problem(place, f"the case '{entry.id}' has changes for '{name}', which is none of its profiles")
            )
        rate = changes.rate or entry.rate
        if rate is not None:
            try:
                check_rate(rate.published, rate.tolerance, rate.not_, changes.repeat or entry.repeat)
            except ValueError as error:
                problems.append(Problem(place, f"the case '{entry.id}' in '{name}': {error}"))


def _fit(entry: CaseEntry, file: CaseFile, era: str, place: Place) -> Case:
    """The case as it holds for that era."""
    changes = entry.eras.get(era, Changes())
    rule = changes.rule if changes.rule is not None else entry.rule
    must_not = entry.must_not if changes.must_not is None else changes.must_not
    return Case(
        id=entry.id,
        mechanism=file.mechanism,
        about=" ".join(file.about.split()),
        behaviour=" ".join((changes.behaviour or entry.behaviour).split()),
        cite=" ".join((changes.cite or entry.cite).split()),
        evidence=changes.evidence or entry.evidence,
        rules=() if rule is None else (rule,) if isinstance(rule, str) else tuple(rule),
        must_not=must_not,
        where=changes.where or entry.where,
        clock=datetime.fromisoformat(changes.clock or entry.clock or NOON).timestamp(),
        repeat=changes.repeat or entry.repeat,
        rate=changes.rate or (None if "rate" in changes.model_fields_set else entry.rate),
        delays=changes.delays or entry.delays,
        steps=tuple(changes.steps if changes.steps is not None else entry.steps),
        expect=changes.expect if changes.expect is not None else entry.expect,
        note=" ".join((changes.note or entry.note or "").split()),
        gap=(entry.gap if changes.gap is None else changes.gap) or "",
        place=place,
    )
