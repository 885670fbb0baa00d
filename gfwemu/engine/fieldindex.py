"""All conditions of a rule set on one field, asked together."""

from __future__ import annotations

from collections.abc import Sequence

from gfwemu.engine.matching import match_condition
from gfwemu.rules.compiled import Condition, Fact
from gfwemu.rules.domainindex import DomainIndex, is_indexed

_MOST_KEPT = 1024
_LONGEST_KEPT = 255
"""Answers that are kept, and the longest value that one is kept for. Our choice: names repeat, long texts do not."""

_FEWEST_TOGETHER = 2
"""Lists of names for which one table pays."""


class FieldIndex:
    """Which rules a value of the field leaves in play. Rules are bits; a rule may have several conditions on the field.

    asking: the rules that have any.
    """

    __slots__ = ("_conditions", "_everybody", "_kept", "_listed", "_names", "asking", "field")

    def __init__(self, field: str, conditions: Sequence[tuple[int, Condition]], everybody: int) -> None:
        self.field = field
        self._everybody = everybody
        self._kept: dict[Fact, int] = {}
        self.asking = 0
        # Rules often share a list: each test is made once.
        tests: dict[tuple[int, bool], tuple[Condition, int]] = {}
        for bit, condition in conditions:
            self.asking |= bit
            test = id(condition.matcher), condition.negated
            tests[test] = condition, tests.get(test, (condition, 0))[1] | bit
        listed = [entry for entry in tests.values() if is_indexed(entry[0].matcher)]
        if len(listed) < _FEWEST_TOGETHER:
            listed = []
        self._conditions = tuple(entry for entry in tests.values() if entry not in listed)
        self._listed = tuple((1 << number, entry[0].negated, entry[1]) for number, entry in enumerate(listed))
        self._names = DomainIndex((1 << number, entry[0].matcher) for number, entry in enumerate(listed))

    def holding(self, value: Fact | None) -> int:
        """The rules of which all conditions on the field hold, and those that have none."""
        if value is None:
            return self._everybody & ~self.asking
        bits = self._kept.get(value)
        if bits is None:
            bits = self._everybody
            for condition, askers in self._conditions:
                if match_condition(condition, value) is None:
                    bits &= ~askers
            if self._listed:
                matching = self._names.matching(value) if isinstance(value, str) else 0
                for bit, negated, askers in self._listed:
                    if bool(matching & bit) is negated:
                        bits &= ~askers
            if not isinstance(value, tuple) and (isinstance(value, (int, float)) or len(value) <= _LONGEST_KEPT):
                if len(self._kept) >= _MOST_KEPT:
                    self._kept.clear()
                self._kept[value] = bits
        return bits
