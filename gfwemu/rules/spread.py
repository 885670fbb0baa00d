"""Over how many workers the rules allow flows to be spread, and by what.

A worker knows what it saw itself. So all packets that bear upon each other must reach the same one: both directions of
a flow, all fragments of a datagram, and every flow that meets a residual block of another.
"""

from __future__ import annotations

from typing import Literal

from gfwemu.rules.actions import Redirect, Throttle
from gfwemu.rules.compiled import CompiledRule, RuleSet

Spread = Literal["pair", "inside", "outside", "one"]
"""pair: by both addresses, which most residual keys contain. inside, outside: by the address there. one: not at all."""


def spread_of(rules: RuleSet) -> tuple[Spread, str]:
    """What flows are spread by, and the name of the rule that asks for more than `pair`."""
    found: Spread = "pair"
    reason = ""
    for rule in rules.rules:
        for wish in _wishes(rule, rules):
            if wish != found:
                found, reason = wish if found == "pair" else "one", rule.name
        if found == "one":
            break
    return found, reason


def _wishes(rule: CompiledRule, rules: RuleSet) -> list[Spread]:
    wishes: list[Spread] = []
    if rule.residual is not None and rule.residual.spans_clients:
        # Servers are outside: a block of a server inside holds only in the worker that saw its beginning.
        wishes.append("outside")
    match rule.action:
        case Throttle(per="rule"):
            wishes.append("one")
        case Throttle(per="subscriber"):
            # A subscriber with several addresses has one bucket for all of them.
            wishes.append("one" if rules.subscribers else "inside")
        case Redirect(address=address) if address:
            # The answers come from another address than the client wrote to.
            wishes.append("one")
    return wishes
