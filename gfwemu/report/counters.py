"""What a censor counts while it runs."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from gfwemu.engine.commands import Command, Hold, Inject, Report, SetVerdict
from gfwemu.engine.records import (
    EngineFault,
    FlowEnded,
    MessageSeen,
    PacketDropped,
    ProbeReacted,
    ResidualHit,
    RuleHit,
    ServerBlocked,
)
from gfwemu.model import Verdict


@dataclass(slots=True)
class Counters:
    """What a censor did since it started. `observe` counts the engine's commands; the shell sets the rest.

    verdicts and verdict_bytes: decided in user space. packets: that came to user space. flows: in the table now.
    queue_dropped: packets that the kernel's full queue did not take. socket_dropped: packets that it could not hand
    over because the socket was full. overruns: how often the socket said so; with fail-open those packets passed.
    kernel_packets and kernel_bytes: by (rule, action) that the kernel decided alone.
    start_time and reload_time: seconds since the epoch.
    """

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    verdict_bytes: Counter[Verdict] = field(default_factory=Counter)
    rewritten: int = 0
    held: int = 0
    offloaded: int = 0
    injected: int = 0
    injected_bytes: int = 0
    rule_hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    residual_hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    packets: int = 0
    flows: int = 0
    flows_ended: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    queue_dropped: int = 0
    socket_dropped: int = 0
    overruns: int = 0
    kernel_packets: Counter[tuple[str, str]] = field(default_factory=Counter)
    kernel_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    start_time: float = 0.0
    reload_time: float = 0.0

    def observe(self, command: Command, length: int = 0) -> None:
        """Counts one command. `length`: of the packet that a SetVerdict decides, in bytes, where it is known."""
        match command:
            case SetVerdict():
                self.verdicts[command.verdict] += 1
                self.verdict_bytes[command.verdict] += length
                self.rewritten += command.data is not None
                self.offloaded += command.offload
            case Hold():
                self.held += 1
            case Inject():
                self.injected += 1
                self.injected_bytes += len(command.data)
            case Report():
                self._observe_record(command)

    def _observe_record(self, command: Report) -> None:
        match command.record:
            case RuleHit(rule=rule, action=action):
                self.rule_hits[rule, action] += 1
            case ResidualHit(rule=rule, action=action):
                self.residual_hits[rule, action] += 1
            case MessageSeen(flow=flow):
                self.messages[flow.protocol or "unknown"] += 1
            case FlowEnded(reason=reason):
                self.flows_ended[reason] += 1
            case EngineFault():
                self.faults += 1
            case PacketDropped() | ProbeReacted() | ServerBlocked():
                pass

    def plus(self, others: Iterable[Counters]) -> Counters:
        """These and what others counted beside them; times are these'."""
        total = copy.deepcopy(self)
        for other in others:
            for name in _SUMMED:
                setattr(total, name, getattr(total, name) + getattr(other, name))
        return total


_SUMMED = tuple(one.name for one in fields(Counters) if not one.name.endswith("_time"))
