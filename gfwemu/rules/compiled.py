"""Compiled rules: what the engine reads. Everything here is immutable and free of YAML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Literal, Protocol

from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import FactValue
from gfwemu.errors import Place
from gfwemu.flow.options import FlowOptions, FragmentOptions, TcpOptions
from gfwemu.model import Placement
from gfwemu.rules.actions import Action, Residual, decides
from gfwemu.rules.odds import Odds

Fact = FactValue | bytes
"""Addresses and payloads are bytes; all else is as dissectors say it."""

Facts = Mapping[str, Fact]


class Scope(IntEnum):
    """When a field is known and a rule on it is looked at: once a flow, once a message, or at every packet."""

    FLOW = 0
    MESSAGE = 1
    PACKET = 2


class Matcher(Protocol):
    """One compiled test of one value."""

    def match(self, value: Fact) -> str | None:
        """The entry that matched, as text for the user (`example.com from @news`), or None."""
        ...


@dataclass(frozen=True, slots=True)
class Condition:
    """`field` must be known and match, or, negated, be known and not match."""

    field: str
    matcher: Matcher
    negated: bool = False


class Schedule(Protocol):
    """When a rule is in force."""

    def active(self, now: float) -> bool:
        """`now` is the censor's clock in seconds since the epoch (UTC)."""
        ...


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """All conditions and all hooks must hold. Rules are tried in order; the first terminal one decides the flow.

    probability: the smallest that it ever has; odds: where it is more than that one number. repeat: it acts at each
    message or packet that matches, and decides nothing.
    """

    index: int
    name: str
    action_name: str
    action: Action
    conditions: tuple[Condition, ...]
    scope: Scope
    placement: Placement
    place: Place
    hooks: tuple[Callable[[Facts], bool], ...] = ()
    probability: float = 1.0
    residual: Residual | None = None
    schedule: Schedule | None = None
    odds: Odds | None = None
    repeat: bool = False
    cite: str = ""
    observed: str = ""
    evidence: str = ""
    guessed: tuple[str, ...] = ()
    box: str = ""

    @property
    def terminal(self) -> bool:
        """Whether no later rule looks at the packet, or the flow, on which this one acted."""
        return decides(self.action_name, self.placement, repeat=self.repeat)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    tcp: TcpOptions = TcpOptions()
    fragments: FragmentOptions = FragmentOptions()
    flows: FlowOptions = FlowOptions()
    dissect: DissectOptions = DissectOptions()
    hold_packets: int = 4096


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Who sits behind client addresses: packed networks as (address, prefix length)."""

    name: str
    networks: tuple[tuple[bytes, int], ...]
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Box:
    """One of several censors in series: the rules that name it, its way to read, the dissectors that it needs."""

    name: str
    options: EngineOptions
    dissectors: frozenset[str]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """A whole rule file with its includes and lists, ready for the engine.

    boxes: empty where one censor holds all rules; its name is `box`. With several, `rules` stand in the order of boxes.
    dissectors: the names of those that any rule needs. inside: networks of the inside as (address, prefix length),
    used only where the daemon does not know the side from the interface (replay).
    """

    rules: tuple[CompiledRule, ...]
    options: EngineOptions = EngineOptions()
    dissectors: frozenset[str] = frozenset()
    subscribers: tuple[Subscriber, ...] = ()
    inside: tuple[tuple[bytes, int], ...] = ()
    seed: int = 0
    on_error: Literal["accept", "drop"] = "accept"
    fail_open: bool = True
    description: str = ""
    source: str = ""
    lists: Mapping[str, int] = field(default_factory=dict)
    box: str = ""
    boxes: tuple[Box, ...] = ()

    def split(self) -> tuple[RuleSet, ...]:
        """One rule set for each box, in the order in which packets meet them."""
        return tuple(
            replace(
                self,
                rules=tuple(rule for rule in self.rules if rule.box == box.name),
                options=box.options,
                dissectors=box.dissectors,
                box=box.name,
                boxes=(),
            )
            for box in self.boxes
        ) or (self,)

    @property
    def hold_packets(self) -> int:
        """How many packets all boxes together let wait at a time."""
        return sum(box.options.hold_packets for box in self.boxes) or self.options.hold_packets


__all__ = [
    "Box",
    "CompiledRule",
    "Condition",
    "EngineOptions",
    "Fact",
    "Facts",
    "FlowOptions",
    "FragmentOptions",
    "Matcher",
    "RuleSet",
    "Schedule",
    "Scope",
    "Subscriber",
    "TcpOptions",
]
