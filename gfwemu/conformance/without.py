"""A profile, whole or without some of its rules."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from gfwemu.errors import UsageError
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.load import load_rules
from gfwemu.rules.validate import suggestion


@dataclass(frozen=True, slots=True)
class LoadedProfile:
    """The rules, and a file that has them."""

    path: Path
    rules: RuleSet


@contextmanager
def load_without(path: Path, disabled: Sequence[str]) -> Iterator[LoadedProfile]:
    """The file exists as long as the context. Raises UsageError for a rule that the profile does not have."""
    rules = load_rules([path])
    if not disabled:
        yield LoadedProfile(path, rules)
        return
    names = [rule.name for rule in rules.rules]
    for name in disabled:
        if name not in names:
            raise UsageError(f"{path.stem} has no rule '{name}'{suggestion(name, names)}")
    with tempfile.TemporaryDirectory(prefix="gfwemu-") as directory:
        reduced = Path(directory, path.name)
        text = {"version": 1, "include": [str(path.resolve())], "disable": list(disabled)}
        reduced.write_text(yaml.safe_dump(text, sort_keys=False), encoding="utf-8")
        yield LoadedProfile(reduced, load_rules([reduced]))
