"""Over how many workers the rules allow flows to be spread, and by what.

A worker knows what it saw itself. So all packets that bear upon each other must reach the same one: both directions of
a flow, all fragments of a datagram, and every flow that meets a residual block of another.
"""

from __future__ import annotations

from typing import Literal

from gfwemu.rules.actions import Redirect, Throttle
from gfwemu.rules.compiled import CompiledRule, RuleSet

Spread = Literal["pair", "inside", "one"]
"""pair: by both addresses, which every residual key contains. inside: by the address inside. one: not at all."""


def spread_of(rules: RuleSet) -> tuple[Spread, str]:
    """What flows are spread by, and the name of the rule that asks for more than `pair`."""
    widest: tuple[Spread, str] = ("pair", "")
    for rule in rules.rules:
        wish = _wish(rule, rules)
        if wish == "one":
            return "one", rule.name
        if wish == "inside":
            widest = "inside", rule.name
    return widest


def _wish(rule: CompiledRule, rules: RuleSet) -> Spread:
    if rule.residual is not None and rule.residual.spans_clients:
        return "one"
    match rule.action:
        case Throttle(per="rule"):
            return "one"
        case Throttle(per="subscriber"):
            # A subscriber with several addresses has one bucket for all of them.
            return "one" if rules.subscribers else "inside"
        case Redirect(address=address) if address:
            # The answers come from another address than the client wrote to.
            return "one"
        case _:
            return "pair"
