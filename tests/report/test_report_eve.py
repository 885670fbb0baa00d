from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest
from eve_schema import eve_schema
from hypothesis import given
from hypothesis import strategies as st
from samples import (
    DNS,
    DOWN,
    HELLO_FACTS,
    HTTP,
    PING,
    QUIC,
    RECORDS,
    START,
    TLS,
    UP,
    VPN,
    ended,
    events_of,
    hit,
    log_of,
)

from gfwemu.engine.commands import Report, SetVerdict
from gfwemu.engine.records import EngineFault, Evidence, MessageSeen, PacketDropped, ResidualHit
from gfwemu.model import Placement, Verdict
from gfwemu.report.eve import EveWriter, signature_id, timestamp
from gfwemu.report.metrics import Counters


@pytest.mark.parametrize("strict", [False, True])
def test_every_record_fits_the_schema(strict: bool) -> None:
    schema = jsonschema.Draft202012Validator(eve_schema(strict=strict))
    lines = log_of(RECORDS, strict=strict)
    assert len(lines) == len(RECORDS)
    for line in lines:
        schema.validate(json.loads(line))


def test_the_schema_refuses_what_is_not_eve() -> None:
    schema = jsonschema.Draft202012Validator(eve_schema(strict=True))
    (event,) = events_of(hit(), strict=True)
    for change in ({"rule": "x"}, {"proto": "tcp"}, {"alert": {"action": "reset"}}, {"event_type": "censor"}):
        with pytest.raises(jsonschema.ValidationError):
            schema.validate({**event, **change})


def test_strict_mode_leaves_out_the_censor_object_alone() -> None:
    for plain, strict in zip(events_of(*RECORDS), events_of(*RECORDS, strict=True), strict=True):
        assert plain.pop("censor")["kind"]
        assert plain == strict


def test_a_rule_hit_is_an_alert() -> None:
    (event,) = events_of(hit())
    assert event["timestamp"] == "2026-01-02T03:04:05.281000+0000"
    assert (event["src_ip"], event["src_port"]) == ("192.0.2.2", 40112)
    assert (event["dest_ip"], event["dest_port"]) == ("198.51.100.7", 443)
    assert (event["proto"], event["app_proto"], event["flow_id"]) == ("TCP", "tls", 1)
    assert event["alert"] == {
        "action": "blocked",
        "gid": 1,
        "signature_id": signature_id("sni-news"),
        "rev": 1,
        "signature": "sni-news",
        "category": "Emulated censorship",
        "severity": 1,
        "metadata": {
            "rule": ["sni-news"],
            "rule_action": ["reset"],
            "cite": ["Wu et al., S&P 2025"],
            "observed": ["2024-10"],
            "placement": ["on-path"],
        },
    }
    assert event["verdict"] == {"action": "alert", "reject": ["tcp-reset"], "reject_target": "both"}
    assert event["tls"]["sni"] == "www.blocked.example"
    assert event["censor"] == {
        "kind": "rule",
        "rule": "sni-news",
        "action": "reset",
        "placement": "on-path",
        "packet_number": 4,
        "packet_length": 557,
        "evidence": [
            {
                "field": "tls.sni",
                "value": "www.blocked.example",
                "entry": "blocked.example from @news",
                "offset": 127,
                "length": 19,
                "excerpt": b"www.blocked.example".hex(),
            }
        ],
        "facts": {**HELLO_FACTS, "ip.client": "192.0.2.2", "payload.bytes": "160301", "tls.alpn": ["h2", "http/1.1"]},
        "cite": "Wu et al., S&P 2025",
        "observed": "2024-10",
        "place": "rules/sample.yaml:4:7",
        "residual_seconds": 180.0,
    }


@pytest.mark.parametrize(
    ("action", "placement", "towards", "allowed", "severity", "verdict"),
    [
        ("pass", Placement.IN_PATH, "", "allowed", 3, {"action": "pass"}),
        ("alert", Placement.IN_PATH, "", "allowed", 3, {"action": "alert"}),
        ("throttle", Placement.IN_PATH, "", "allowed", 2, {"action": "alert"}),
        ("drop", Placement.IN_PATH, "", "blocked", 1, {"action": "drop"}),
        ("poison", Placement.ON_PATH, "", "blocked", 1, {"action": "alert"}),
        (
            "reset",
            Placement.IN_PATH,
            "client",
            "blocked",
            1,
            {"action": "drop", "reject": ["tcp-reset"], "reject_target": "to_client"},
        ),
        (
            "icmp_unreachable",
            Placement.IN_PATH,
            "",
            "blocked",
            1,
            {"action": "drop", "reject": ["icmp-prohib"], "reject_target": "to_client"},
        ),
    ],
)
def test_what_became_of_the_packet(
    action: str, placement: Placement, towards: str, allowed: str, severity: int, verdict: dict[str, Any]
) -> None:
    (event,) = events_of(hit(action=action, placement=placement, towards=towards))
    assert (event["alert"]["action"], event["alert"]["severity"]) == (allowed, severity)
    assert event["verdict"] == verdict


def test_packet_events_name_the_packets_source_and_flow_events_the_client() -> None:
    down, flow = events_of(hit(direction=DOWN), ended(TLS))
    assert (down["src_ip"], down["dest_ip"], down["direction"]) == ("198.51.100.7", "192.0.2.2", "to_client")
    assert (flow["src_ip"], flow["dest_ip"]) == ("192.0.2.2", "198.51.100.7")
    assert "direction" not in flow
    assert down["community_id"] == flow["community_id"]


@pytest.mark.parametrize(
    ("message", "kind", "content"),
    [
        (
            MessageSeen(START, TLS, UP, HELLO_FACTS),
            "tls",
            {
                "sni": "www.blocked.example",
                "version": "TLS 1.3",
                "ja3": {"hash": "0123456789abcdef0123456789abcdef"},
                "ja4": "t13d1516h2_8daaf6152771_e5627efa2ab1",
                "client_alpns": ["h2", "http/1.1"],
            },
        ),
        (
            MessageSeen(START, DNS, UP, {"dns.qname": "a.example", "dns.qtype": "A", "dns.response": False}),
            "dns",
            {"version": 2, "type": "query", "rrname": "a.example", "rrtype": "A"},
        ),
        (
            MessageSeen(START, DNS, DOWN, {"dns.qname": "a.example", "dns.response": True}),
            "dns",
            {"version": 2, "type": "answer", "rrname": "a.example"},
        ),
        (
            MessageSeen(START, HTTP, UP, {"http.host": "b.example", "http.path": "/x?y", "http.method": "GET"}),
            "http",
            {"hostname": "b.example", "url": "/x?y", "http_method": "GET"},
        ),
        (
            MessageSeen(START, QUIC, UP, {"quic.version": "1", "quic.sni": "c.example"}),
            "quic",
            {"version": "1", "sni": "c.example"},
        ),
        (
            MessageSeen(START, VPN, UP, {"openvpn.stage": "reset", "openvpn.opcode": 7}),
            "metadata",
            {"flowvars": [{"openvpn.stage": "reset"}, {"openvpn.opcode": "7"}]},
        ),
    ],
)
def test_messages_become_their_protocols_events(message: MessageSeen, kind: str, content: dict[str, Any]) -> None:
    (event,) = events_of(message)
    assert event["event_type"] == kind
    assert event[kind] == content


def test_facts_are_told_of_whom_they_are() -> None:
    """A hit, its message and the next one, of the same facts or of others."""
    other = {**HELLO_FACTS, "tls.sni": "other.example"}
    asked = {"dns.qname": "a.example"}
    records = [
        MessageSeen(START, TLS, UP, HELLO_FACTS),
        hit(),
        hit(facts=other),
        MessageSeen(START, TLS, UP, HELLO_FACTS),
        hit(of=PING, facts=asked),
        MessageSeen(START, VPN, UP, asked),
        hit(of=PING, facts={}),
        hit(of=PING, facts={"payload.length": 3}),
    ]
    for record, event in zip(records, events_of(*records), strict=True):
        assert event == events_of(record)[0]
        assert event["censor"].get("facts", {}).get("tls.sni") == record.facts.get("tls.sni")
        assert event.get("tls", {}).get("sni") == record.facts.get("tls.sni")


def test_a_flow_record() -> None:
    (event,) = events_of(ended(TLS, dropped=3, injected=2, rules=("sni-news",)))
    assert event["flow"] == {
        "pkts_toserver": 5,
        "pkts_toclient": 4,
        "bytes_toserver": 600,
        "bytes_toclient": 700,
        "start": "2026-01-02T03:04:05.250000+0000",
        "end": "2026-01-02T03:04:09.750000+0000",
        "age": 4,
        "state": "closed",
        "reason": "shutdown",
        "alerted": True,
        "action": "drop",
    }
    assert event["censor"] == {
        "kind": "flow",
        "dropped": 3,
        "injected": 2,
        "reason": "stopping",
        "rules": ["sni-news"],
    }


def test_a_flow_that_no_rule_touched() -> None:
    (event,) = events_of(ended(TLS))
    assert event["flow"]["alerted"] is False
    assert "action" not in event["flow"]
    assert event["censor"] == {"kind": "flow", "dropped": 0, "injected": 0, "reason": "stopping"}


def test_a_dropped_segment_and_a_dropped_datagram() -> None:
    segment, datagram, over_ipv6 = events_of(
        PacketDropped(START, TLS, "sni-news", DOWN, 40, 63, "residual", 1, 2, 0x12),
        PacketDropped(START, QUIC, "no-quic", UP, 1228, 63, "rule"),
        PacketDropped(START, DNS, "no-dns", UP, 90, 61, "rule"),
    )
    assert segment["drop"] == {
        "len": 40,
        "ttl": 63,
        "reason": "rules",
        "tcpseq": 1,
        "tcpack": 2,
        "syn": True,
        "ack": True,
        "psh": False,
        "rst": False,
        "urg": False,
        "fin": False,
    }
    assert datagram["drop"] == {"len": 1228, "ttl": 63, "reason": "rules"}
    assert over_ipv6["drop"] == {"len": 90, "hoplimit": 61, "reason": "rules"}
    assert segment["censor"] == {"kind": "drop", "rule": "sni-news", "reason": "residual"}


def test_a_residual_hit_and_a_fault() -> None:
    residual, fault = events_of(
        ResidualHit(START, TLS, "sni-news", "reset", "3tuple", 172.5), EngineFault(START, "ValueError: x")
    )
    assert residual["alert"]["metadata"] == {
        "rule": ["sni-news"],
        "rule_action": ["reset"],
        "residual_key": ["3tuple"],
    }
    assert residual["censor"]["remaining"] == 172.5
    assert fault["event_type"] == "anomaly"
    assert fault["censor"]["error"] == "ValueError: x"


def test_flows_without_known_ports_have_no_community_id() -> None:
    ping, tls = events_of(ended(PING), ended(TLS))
    assert "community_id" not in ping
    assert tls["community_id"].startswith("1:")


def test_kernel_rules_and_stats() -> None:
    stream = io.StringIO()
    writer = EveWriter(stream)
    writer.kernel_rule(START, "block-ip", "drop", 12, 720, cite="A paper")
    writer.kernel_rule(START, "let", "pass", 3, 180)
    counters = Counters(start_time=START - 60, queue_dropped=4, injected=2, flows=5)
    counters.observe(SetVerdict(1, Verdict.ACCEPT), 100)
    counters.observe(SetVerdict(2, Verdict.DROP), 40)
    counters.observe(Report(ended(TLS)))
    writer.stats(START, counters)
    block, let, stats = (json.loads(line) for line in stream.getvalue().splitlines())
    schema = jsonschema.Draft202012Validator(eve_schema(strict=False))
    for event in (block, let, stats):
        schema.validate(event)
    assert block["stats"] == {"ips": {"blocked": 12}}
    assert block["censor"]["rule"] == "block-ip"
    assert let["stats"] == {"ips": {"accepted": 3}}
    assert stats["stats"] == {
        "uptime": 60,
        "capture": {"kernel_packets": 2, "kernel_drops": 4},
        "decoder": {"pkts": 2, "bytes": 140},
        "flow": {"active": 5, "total": 6},
        "ips": {"accepted": 1, "blocked": 1, "rejected": 0, "replaced": 0},
    }


def test_signature_ids_are_the_same_in_every_run() -> None:
    assert signature_id("sni-news") == 910790089
    assert signature_id("sni-news") != signature_id("sni-new")


class Watched(io.StringIO):
    """Knows how much of it was flushed."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed = 0

    def flush(self) -> None:
        self.flushed = len(self.getvalue())


def test_each_line_is_flushed_when_it_is_written() -> None:
    stream = Watched()
    writer = EveWriter(stream)
    for record in RECORDS:
        writer.write(record)
        assert stream.flushed == len(stream.getvalue())
        assert stream.getvalue().endswith("\n")


def test_lines_that_may_wait_go_out_together() -> None:
    stream = Watched()
    writer = EveWriter(stream, each=False)
    for record in RECORDS:
        writer.write(record)
    assert stream.getvalue() == ""
    writer.flush()
    assert stream.flushed == len(stream.getvalue())
    assert stream.getvalue().splitlines() == log_of(RECORDS)
    writer.flush()
    assert len(stream.getvalue().splitlines()) == len(RECORDS)


def test_only_so_many_lines_wait() -> None:
    stream = Watched()
    writer = EveWriter(stream, each=False)
    for _ in range(2000):
        writer.write(RECORDS[0])
    assert len(stream.getvalue().splitlines()) in range(1000, 2000)


@given(st.integers(min_value=0, max_value=4_000_000_000_000_000))
def test_timestamps_keep_their_microseconds(microseconds: int) -> None:
    text = timestamp(microseconds / 1_000_000)
    read = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z")
    assert read == datetime.fromtimestamp(microseconds // 1_000_000, UTC).replace(microsecond=microseconds % 1_000_000)


@given(st.text(), st.binary(max_size=64), st.text())
def test_whatever_a_packet_holds_is_one_line_of_json(value: str, excerpt: bytes, name: str) -> None:
    record = hit(evidence=(Evidence("x", value, value, 0, 1, excerpt),), facts={"tls.sni": name, "x": excerpt})
    (line,) = log_of([record])
    assert json.loads(line)["censor"]["evidence"][0].get("value", "") == value
