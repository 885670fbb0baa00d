"""Rules that an earlier rule always decides first."""

from __future__ import annotations

from collections.abc import Sequence

from gfwemu.errors import Problem
from gfwemu.model import Transport
from gfwemu.rules.actions import NOT_TERMINAL
from gfwemu.rules.compile import allowed_transports, needs_tcp
from gfwemu.rules.conditions import Alternative, Clause
from gfwemu.rules.draft import Draft

Reach = tuple[Draft, Alternative]


def shadowing(drafts: Sequence[Draft]) -> list[Problem]:
    """One problem for each alternative that can never fire because an earlier, terminal rule matches all of it."""
    problems: list[Problem] = []
    deciding: list[Reach] = []
    for draft in drafts:
        own: list[Reach] = []
        for alternative in draft.alternatives:
            earlier = next((one for one in deciding if _covers(one, (draft, alternative))), None)
            if earlier is not None:
                first = f"'{earlier[0].name}' at {earlier[0].place}"
                message = (
                    f"can never fire: {first} decides all that it matches; put it before that rule, or take it out"
                )
                problems.append(Problem(draft.place, f"rule '{draft.name}' {message}"))
                break
            if _decides(draft, alternative):
                own.append((draft, alternative))
        deciding.extend(own)
    return problems


def _decides(draft: Draft, alternative: Alternative) -> bool:
    """Whether the rule, where it matches, leaves nothing to later rules."""
    return (
        draft.action_name not in NOT_TERMINAL
        and draft.probability >= 1.0
        and draft.schedule is None
        and not alternative.hooks
    )


def _covers(earlier: Reach, later: Reach) -> bool:
    """Whether each condition of the earlier rule follows from one of the later rule."""
    if needs_tcp(earlier[0]) and not needs_tcp(later[0]) and not allowed_transports(later[1]) <= {Transport.TCP}:
        return False
    return all(any(_implied(mine, theirs) for theirs in later[1].clauses) for mine in earlier[1].clauses)


def _implied(wide: Clause, narrow: Clause) -> bool:
    if wide.field.name != narrow.field.name or wide.negated != narrow.negated:
        return False
    if wide.negated:
        return narrow.matcher.covers(wide.matcher)
    return wide.matcher.covers(narrow.matcher)
