"""The errors that a user sees, each with its exit code.

Exit codes: 2 wrong usage, 3 wrong rules, 4 the machine lacks a capability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class GfwemuError(Exception):
    """One clear sentence for the user. The command line prints it and exits with `exit_code`."""

    exit_code = 1


class UsageError(GfwemuError):
    """A command line or a file that is not a rule file is wrong."""

    exit_code = 2


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A position in a file; line and column count from 1, 0 where unknown."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        parts = [self.file]
        if self.line:
            parts.append(str(self.line))
            if self.column:
                parts.append(str(self.column))
        return ":".join(parts)


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong in a rule file or in a list that it names."""

    place: Place
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class RulesError(GfwemuError):
    """Everything that is wrong with a rule file, at once."""

    exit_code = 3

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(sorted(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class CapabilityError(GfwemuError):
    """The machine lacks something. `advice` is the fix, as `gfwemu doctor` words it."""

    exit_code = 4

    def __init__(self, message: str, advice: str = "") -> None:
        self.advice = advice
        super().__init__(f"{message} {advice}".strip())
