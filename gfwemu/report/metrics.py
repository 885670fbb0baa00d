"""Counters of a running censor, in Prometheus' text exposition format for node_exporter's textfile collector."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gfwemu.model import Verdict
from gfwemu.report.counters import Counters


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
            ("queued_packets", "Packets that came to user space.", (), {(): now.packets}),
            ("queue_dropped", "Packets that the kernel's full queue did not take.", (), {(): now.queue_dropped}),
            ("socket_dropped", "Packets lost because the queue's socket was full.", (), {(): now.socket_dropped}),
            ("socket_overruns", "How often the queue's socket was full.", (), {(): now.overruns}),
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
