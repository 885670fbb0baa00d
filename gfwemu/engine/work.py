"""One packet on its way through the engine, and the decision of its flow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from gfwemu.engine.forge import Forged
from gfwemu.flow.flow import Flow
from gfwemu.model import Direction, Verdict
from gfwemu.rules.compiled import CompiledRule, Fact
from gfwemu.wire.packet import Packet


@dataclass(slots=True)
class Work:
    """What is to happen with the packet, as far as decided. `release_at` later than `now` means hold until then."""

    packet_id: int
    packet: Packet
    flow: Flow
    direction: Direction
    now: float
    verdict: Verdict = Verdict.ACCEPT
    data: bytes | None = None
    release_at: float = 0.0
    reason: str = ""
    dropped_by: CompiledRule | None = None
    forged: list[tuple[Forged, CompiledRule]] = field(default_factory=list)

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
        self.forged.extend((packet, rule) for packet in forged)


class Treatment(Protocol):
    """What a decided flow keeps getting."""

    def apply(self, work: Work) -> None: ...

    def offload(self, now: float) -> Verdict | None:
        """The verdict that every later packet of the flow gets in both directions, None where it depends."""
        ...


@dataclass(slots=True)
class Decision:
    """The engine's notes on one flow: which rules may still fire, and what those that fired ordered."""

    generation: int
    facts: dict[str, Fact]
    pending: list[CompiledRule]
    fresh: bool = True
    terminal: Treatment | None = None
    modifiers: list[Treatment] = field(default_factory=list)
    told_drops: set[Direction] = field(default_factory=set)
    spared_by: dict[str, bool] = field(default_factory=dict)
    offloaded: bool = False
