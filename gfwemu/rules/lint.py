"""What is right in form and wrong in sense: rules that can never fire, and parameters that would do nothing."""

from __future__ import annotations

from collections.abc import Sequence

from gfwemu.errors import Problem
from gfwemu.rules.draft import Draft
from gfwemu.rules.lists import LoadedList


def lint(drafts: Sequence[Draft], _lists: Sequence[LoadedList], problems: list[Problem]) -> None:
    """Adds what is wrong with the rules, each alone and all together, and with the lists."""
    _duplicates(drafts, problems)


def _duplicates(drafts: Sequence[Draft], problems: list[Problem]) -> None:
    first: dict[str, Draft] = {}
    for draft in drafts:
        earlier = first.setdefault(draft.name, draft)
        if earlier is not draft:
            message = (
                f"a rule named '{draft.name}' is already at {earlier.place}; rename one, or 'disable' the included one"
            )
            problems.append(Problem(draft.place, message))
