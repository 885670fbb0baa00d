"""Rules are replaced beside packets: nothing here keeps the packets' thread waiting for long.

Only one thread of Python runs at a time. Another gets its turn between two steps of the interpreter, and a step can
take long: freeing a set of a million names, or the garbage collector's look at one.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from itertools import islice

from gfwemu.rules.compiled import Matcher, RuleSet
from gfwemu.rules.domains import DomainSet
from gfwemu.rules.matchers import AnyOf, ExactSet

_TURN = 0.0005
"""Seconds until a thread that works has to let another one run. Our choice: Python's 5 ms are felt in an answer."""

_GRACE = 1.0
"""Seconds in which everybody else gives up the rules."""

_PIECE = 10_000
"""Strings freed in one step: about a millisecond."""


@contextmanager
def unhurried() -> Iterator[None]:
    """For a thread that loads rules: packets come first, and the garbage collector never looks at what it makes."""
    turn = sys.getswitchinterval()
    sys.setswitchinterval(_TURN)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        sys.setswitchinterval(turn)


def retire(rules: RuleSet) -> None:
    """Frees rules that nobody needs any more, in a thread and piece by piece. Give up your own reference at once."""
    sets = [one for rule in rules.rules for condition in rule.conditions for one in _sets(condition.matcher)]
    large = list({id(one): one for one in sets if len(one) > _PIECE}.values())
    if large:
        threading.Thread(target=_let_go, args=(large,), daemon=True).start()


def _sets(matcher: Matcher | object) -> Iterator[AbstractSet[str]]:
    match matcher:
        case AnyOf():
            for part in matcher.parts:
                yield from _sets(part)
        case DomainSet():
            yield from (matcher.suffixes, matcher.below, matcher.full)
        case ExactSet():
            yield matcher.texts


def _let_go(sets: list[AbstractSet[str]]) -> None:
    time.sleep(_GRACE)
    pieces: list[list[str]] = []
    while sets:
        names = iter(sets.pop())
        while piece := list(islice(names, _PIECE)):
            pieces.append(piece)
    # The sets are gone, and none of their strings yet.
    del names
    while pieces:
        pieces.pop()
