from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_fd_to_metric_families
from samples import DOWN, HELLO_FACTS, TLS, UP, ended, hit

from gfwemu.engine.commands import Hold, Inject, Report, SetTimer, SetVerdict
from gfwemu.engine.records import EngineFault, MessageSeen, PacketDropped, ResidualHit
from gfwemu.model import Verdict
from gfwemu.report.metrics import Counters, write_metrics

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(path: Path) -> Samples:
    with path.open() as stream:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_fd_to_metric_families(stream)
            for sample in family.samples
        }


def at(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_commands_are_counted(tmp_path: Path) -> None:
    counters = Counters(flows=3, queue_dropped=7, start_time=1.5, reload_time=2.5)
    for command, length in (
        (SetVerdict(1, Verdict.ACCEPT, offload=True), 100),
        (SetVerdict(2, Verdict.DROP, reason="x"), 40),
        (SetVerdict(3, Verdict.ACCEPT, data=b"new"), 60),
        (Hold(4), 0),
        (Inject(b"12345", "x"), 0),
        (SetTimer(None), 0),
        (Report(hit()), 0),
        (Report(hit(rule='a "quoted" rule\n')), 0),
        (Report(ResidualHit(1.0, TLS, "sni-news", "reset", "3tuple", 9.0)), 0),
        (Report(MessageSeen(1.0, TLS, UP, HELLO_FACTS)), 0),
        (Report(ended(TLS)), 0),
        (Report(PacketDropped(1.0, TLS, "sni-news", DOWN, 40, 64, "x")), 0),
        (Report(EngineFault(1.0, "x")), 0),
    ):
        counters.observe(command, length)
    counters.kernel_packets["block-ip", "drop"] = 12
    counters.kernel_bytes["block-ip", "drop"] = 720
    path = tmp_path / "gfwemu.prom"
    write_metrics(counters, path)
    found = read(path)
    assert at(found, "gfwemu_packets_total", verdict="accept") == 2
    assert at(found, "gfwemu_packets_total", verdict="drop") == 1
    assert at(found, "gfwemu_bytes_total", verdict="accept") == 160
    assert at(found, "gfwemu_rewritten_packets_total") == 1
    assert at(found, "gfwemu_held_packets_total") == 1
    assert at(found, "gfwemu_offloaded_flows_total") == 1
    assert at(found, "gfwemu_injected_packets_total") == 1
    assert at(found, "gfwemu_injected_bytes_total") == 5
    assert at(found, "gfwemu_rule_hits_total", rule="sni-news", action="reset") == 1
    assert at(found, "gfwemu_rule_hits_total", rule='a "quoted" rule\n', action="reset") == 1
    assert at(found, "gfwemu_residual_hits_total", rule="sni-news", action="reset") == 1
    assert at(found, "gfwemu_messages_total", protocol="tls") == 1
    assert at(found, "gfwemu_flows_ended_total", reason="stopping") == 1
    assert at(found, "gfwemu_engine_faults_total") == 1
    assert at(found, "gfwemu_flows") == 3
    assert at(found, "gfwemu_queue_dropped_total") == 7
    assert at(found, "gfwemu_kernel_packets_total", rule="block-ip", action="drop") == 12
    assert at(found, "gfwemu_kernel_bytes_total", rule="block-ip", action="drop") == 720
    assert at(found, "gfwemu_start_time_seconds") == 1.5
    assert at(found, "gfwemu_last_reload_time_seconds") == 2.5


def test_the_file_is_replaced_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "gfwemu.prom"
    write_metrics(Counters(), path)
    with path.open() as reader:
        write_metrics(Counters(injected=5), path)
        assert "gfwemu_injected_packets_total 0.0" in reader.read()
    assert at(read(path), "gfwemu_injected_packets_total") == 5
    assert list(tmp_path.iterdir()) == [path]
