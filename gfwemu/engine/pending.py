"""Which rules may still fire at a flow: sets of rules as bits of numbers, and what follows from a set worked out once.

Flows by the thousand are in the same situation, and a rule file leads to few situations. So each set of rules that may
still fire is one object for all of them, and a fact is turned at once into all the rules that it leaves in play.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_

from gfwemu.engine.candidates import Candidate
from gfwemu.engine.facts import FlowFacts
from gfwemu.engine.fieldindex import FieldIndex
from gfwemu.flow.flow import Flow
from gfwemu.rules.compiled import CompiledRule, Condition, Facts

_MOST_SETS = 4096
"""Sets that are kept. Our choice: shipped profiles lead to a few dozen."""


class Pending:
    """Rules that may still fire, in order. Immutable.

    eager: those that a packet may set off which completes no message. limited: those of them that end with a count.
    whole: whether any is looked at with all that is known of the flow, and not message by message.
    heeds_answers: whether DNS answers of a flow's server, over UDP, may matter to any.
    """

    __slots__ = ("bits", "candidates", "eager", "heeds_answers", "limited", "whole")

    def __init__(self, bits: int, candidates: tuple[Candidate, ...]) -> None:
        self.bits = bits
        self.candidates = candidates
        self.eager = tuple(one for one in candidates if one.eager)
        self.limited = tuple(one for one in self.eager if one.limits)
        self.whole = any(not one.by_message for one in candidates)
        self.heeds_answers = any(one.heeds_answers for one in candidates)

    def __bool__(self) -> bool:
        return bool(self.bits)

    def ended_by_count(self, flow: Flow) -> bool:
        """Whether a count has left the range that one of the rules asks for."""
        return any(one.exhausted(flow) for one in self.limited)


class Prospects:
    """The rules of one rule set. Bit n of a number stands for the nth of them."""

    def __init__(self, rules: Sequence[CompiledRule]) -> None:
        candidates = tuple(Candidate.of(rule) for rule in rules)
        numbered = tuple((1 << number, one) for number, one in enumerate(candidates))
        self._numbered = numbered
        self._sets: dict[int, Pending] = {}
        self._all = _union(bit for bit, _ in numbered)
        self._by_message = _union(bit for bit, one in numbered if one.by_message)
        self._at_opening = _union(bit for bit, one in numbered if not one.lasts)
        self._watched = tuple(
            (bit, one) for bit, one in numbered if one.limits or (one.message_conditions and not one.by_message)
        )
        self._transports = tuple((bit, one.transports) for bit, one in numbered if one.transports)
        self._carried: dict[int, int] = {}
        self._named: dict[str, int] = {}
        for bit, one in numbered:
            self._named[one.rule.name] = self._named.get(one.rule.name, 0) | bit
        self._of_flow = _indexes(((bit, one.flow_conditions) for bit, one in numbered), self._all)
        asked = ((bit, one.message_conditions) for bit, one in numbered if one.by_message)
        self._of_message = _indexes(asked, self._all)

    def retire(self) -> None:
        """Other rules are in force. Idle flows keep their sets of these, and must not keep large lists with them."""
        for pending in self._sets.values():
            pending.candidates = pending.eager = pending.limited = ()

    def opening(self, facts: FlowFacts) -> Pending:
        """Those that what is known when a flow opens does not rule out for good."""
        bits = self._on_transport(facts.key.proto)
        for index in self._of_flow:
            bits &= index.holding(facts.get(index.field))
        return self._set(bits)

    def touched(self, pending: Pending, messages: Sequence[Facts]) -> tuple[Candidate, ...]:
        """Those of the pending that may hold now that these messages came; the others certainly do not.

        Rules that are looked at with all that is known of the flow are among them, whatever they ask for.
        """
        asked = pending.bits & self._by_message
        found = 0
        for facts in messages:
            bits = asked
            for index in self._of_message:
                if not bits:
                    break
                if bits & index.asking:
                    bits &= index.holding(facts.get(index.field))
            found |= bits
        return self._set(pending.bits & ~self._by_message | found).candidates

    def remaining(self, pending: Pending, flow: Flow, *, messages_over: bool) -> Pending:
        """Those that may still fire at a later packet. messages_over: the flow's facts are complete."""
        bits = pending.bits & ~self._at_opening
        if messages_over:
            bits &= ~self._by_message
        if bits:
            for bit, one in self._watched:
                if bits & bit and (one.exhausted(flow) or (messages_over and one.refuted_by(flow.facts))):
                    bits &= ~bit
        return pending if bits == pending.bits else self._set(bits)

    def without(self, pending: Pending, name: str) -> Pending:
        """The rule of that name, all its alternatives included, will not fire again."""
        return self._set(pending.bits & ~self._named[name])

    def _on_transport(self, proto: int) -> int:
        bits = self._carried.get(proto)
        if bits is None:
            off = _union(bit for bit, transports in self._transports if proto not in transports)
            bits = self._carried[proto] = self._all & ~off
        return bits

    def _set(self, bits: int) -> Pending:
        found = self._sets.get(bits)
        if found is None:
            if len(self._sets) >= _MOST_SETS:
                self._sets.clear()
            found = self._sets[bits] = Pending(bits, tuple(one for bit, one in self._numbered if bits & bit))
        return found


def _union(bits: Iterable[int]) -> int:
    return reduce(or_, bits, 0)


def _indexes(asked: Iterable[tuple[int, tuple[Condition, ...]]], everybody: int) -> tuple[FieldIndex, ...]:
    by_field: dict[str, list[tuple[int, Condition]]] = {}
    for bit, conditions in asked:
        for condition in conditions:
            by_field.setdefault(condition.field, []).append((bit, condition))
    return tuple(FieldIndex(field, conditions, everybody) for field, conditions in by_field.items())
