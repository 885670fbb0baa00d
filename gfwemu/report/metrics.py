"""Counters of a running censor, in Prometheus' text exposition format for node_exporter's textfile collector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gfwemu.engine.commands import Command, Hold, Inject, Report, SetVerdict
from gfwemu.engine.records import EngineFault, FlowEnded, MessageSeen, PacketDropped, ResidualHit, RuleHit
from gfwemu.model import Verdict


@dataclass(slots=True)
class Counters:
    """What a censor did since it started. `observe` counts the engine's commands; the shell sets the rest.

    verdicts and verdict_bytes: decided in user space. flows: in the table now. queue_dropped: packets that the kernel's
    queue could not take. kernel_packets and kernel_bytes: by (rule, action) that the kernel decided alone.
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
    flows: int = 0
    flows_ended: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    queue_dropped: int = 0
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
            case PacketDropped():
                pass


class _Exposition(Collector):
    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        now = self._counters
        by_verdict = {(verdict.value,): now.verdicts[verdict] for verdict in Verdict}
        bytes_by_verdict = {(verdict.value,): now.verdict_bytes[verdict] for verdict in Verdict}
        by_reason = {(reason,): count for reason, count in now.flows_ended.items()}
        by_protocol = {(protocol,): count for protocol, count in now.messages.items()}
        for name, text, labels, values in (
            ("packets", "Packets decided in user space.", ("verdict",), by_verdict),
            ("bytes", "IP bytes of the packets decided in user space.", ("verdict",), bytes_by_verdict),
            ("rewritten_packets", "Packets that left with other bytes.", (), {(): now.rewritten}),
            ("held_packets", "Packets that had to wait for their verdict.", (), {(): now.held}),
            ("offloaded_flows", "Flows left to the kernel.", (), {(): now.offloaded}),
            ("injected_packets", "Forged packets sent.", (), {(): now.injected}),
            ("injected_bytes", "IP bytes of forged packets sent.", (), {(): now.injected_bytes}),
            ("rule_hits", "Rules fired.", ("rule", "action"), now.rule_hits),
            ("residual_hits", "Flows that met a residual block.", ("rule", "action"), now.residual_hits),
            ("messages", "Protocol messages read.", ("protocol",), by_protocol),
            ("flows_ended", "Flows that left the table.", ("reason",), by_reason),
            ("engine_faults", "Packets on which the engine failed.", (), {(): now.faults}),
            ("queue_dropped", "Packets that the kernel's queue could not take.", (), {(): now.queue_dropped}),
            ("kernel_packets", "Packets decided by the kernel alone.", ("rule", "action"), now.kernel_packets),
            ("kernel_bytes", "IP bytes decided by the kernel alone.", ("rule", "action"), now.kernel_bytes),
        ):
            family = CounterMetricFamily(f"gfwemu_{name}", text, labels=labels)
            for key, count in sorted(values.items()):
                family.add_metric(key, count)
            yield family
        for name, text, value in (
            ("flows", "Flows in the table now.", now.flows),
            ("start_time_seconds", "When the censor started, since the epoch.", now.start_time),
            ("last_reload_time_seconds", "When rules were last loaded, since the epoch.", now.reload_time),
        ):
            yield GaugeMetricFamily(f"gfwemu_{name}", text, value=value)


def write_metrics(counters: Counters, path: Path) -> None:
    """Writes all metrics; a reader sees the old file or the new one, never half. Raises OSError."""
    registry = CollectorRegistry()
    registry.register(_Exposition(counters))
    write_to_textfile(str(path), registry)
