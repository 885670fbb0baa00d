"""One packet on its way through the engine, and the decision of its flow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from gfwemu.dissect.outcome import Message
from gfwemu.engine.facts import FlowFacts
from gfwemu.engine.forge import Forged
from gfwemu.engine.pending import Pending
from gfwemu.flow.flow import Flow
from gfwemu.model import Direction, Verdict
from gfwemu.rules.compiled import CompiledRule
from gfwemu.wire.packet import Packet


@dataclass(slots=True)
class Work:
    """What is to happen with the packet, as far as decided. `release_at` later than `now` means hold until then.

    blocked: a residual block decided, not the flow's own fate. messages: what the packet completed, where it was read
    before. censor_now: `now` on the censor's clock.
    """

    packet_id: int
    packet: Packet
    flow: Flow
    direction: Direction
    now: float
    censor_now: float = 0.0
    verdict: Verdict = Verdict.ACCEPT
    data: bytes | None = None
    release_at: float = 0.0
    reason: str = ""
    dropped_by: CompiledRule | None = None
    blocked: bool = False
    forged: list[tuple[Forged, CompiledRule]] = field(default_factory=list)
    messages: list[Message] | None = None

    def drop(self, rule: CompiledRule) -> None:
        self.verdict = Verdict.DROP
        self.dropped_by = rule
        self.touch(rule, "dropped")

    def touch(self, rule: CompiledRule, what: str) -> None:
        """Notes for the capture what a rule did to the packet."""
        note = f"{rule.name}: {what}"
        if note not in self.reason:
            self.reason = f"{self.reason}; {note}" if self.reason else note

    def inject(self, forged: list[Forged], rule: CompiledRule) -> None:
        self.forged += [(packet, rule) for packet in forged]


class Treatment(Protocol):
    """What a decided flow keeps getting."""

    def apply(self, work: Work) -> None: ...

    def offload(self, now: float) -> Verdict | None:
        """The verdict that every later packet of the flow gets in both directions, None where it depends."""
        ...


class Modifier(Treatment, Protocol):
    """A treatment beside which later rules still look at the flow. It rests while its rule is not in force."""

    @property
    def rule(self) -> CompiledRule: ...


@dataclass(slots=True)
class Decision:
    """The engine's notes on one flow: which rules may still fire, and what those that fired ordered.

    pending: the rules that may still fire. settled: at some packet it was clear that all later ones get the same
    verdict.
    """

    generation: int
    facts: FlowFacts
    pending: Pending
    fresh: bool = True
    messages_over: bool = False
    terminal: Treatment | None = None
    modifiers: tuple[Modifier, ...] = ()
    told_drops: tuple[Direction, ...] = ()
    spared_by: dict[str, bool] | None = None
    settled: bool = False
