"""Engine records to report on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

from gfwemu.engine.records import (
    EngineFault,
    Evidence,
    FlowEnded,
    FlowRef,
    MessageSeen,
    PacketDropped,
    ProbeReacted,
    Record,
    ResidualHit,
    RuleHit,
    ServerBlocked,
)
from gfwemu.model import Direction, FiveTuple, Placement, address_bytes
from gfwemu.report.eve import EveWriter

START = 1_767_323_045.25
"""2026-01-02T03:04:05.25 UTC."""

UP, DOWN = Direction.TO_SERVER, Direction.TO_CLIENT


def flow(number: int, proto: int, client: str, cport: int, server: str, sport: int, protocol: str = "") -> FlowRef:
    return FlowRef(number, FiveTuple(proto, address_bytes(client), cport, address_bytes(server), sport), protocol)


TLS = flow(1, 6, "192.0.2.2", 40112, "198.51.100.7", 443, "tls")
TLS_AGAIN = flow(2, 6, "192.0.2.2", 40113, "198.51.100.7", 443, "tls")
DNS = flow(3, 17, "2001:db8::2", 5353, "2001:db8:53::1", 53, "dns")
HTTP = flow(4, 6, "192.0.2.2", 40114, "203.0.113.9", 80, "http")
QUIC = flow(5, 17, "192.0.2.2", 40115, "203.0.113.9", 443, "quic")
VPN = flow(6, 17, "192.0.2.2", 40116, "203.0.113.10", 1194, "openvpn")
PING = flow(7, 1, "192.0.2.2", 0, "203.0.113.10", 0)

HELLO_FACTS = {
    "ip.client": b"\xc0\x00\x02\x02",
    "tls.sni": "www.blocked.example",
    "tls.version": "1.3",
    "tls.alpn": ("h2", "http/1.1"),
    "tls.ja3": "0123456789abcdef0123456789abcdef",
    "tls.ja4": "t13d1516h2_8daaf6152771_e5627efa2ab1",
    "tls.ech": False,
    "payload.bytes": b"\x16\x03\x01",
}

HELLO_EVIDENCE = Evidence(
    "tls.sni", "www.blocked.example", "blocked.example from @news", 127, 19, b"www.blocked.example"
)


def hit(of: FlowRef = TLS, **changes: Any) -> RuleHit:
    members: dict[str, Any] = {
        "time": START + 0.031,
        "flow": of,
        "rule": "sni-news",
        "action": "reset",
        "placement": Placement.ON_PATH,
        "direction": UP,
        "packet_number": 4,
        "packet_length": 557,
        "evidence": (HELLO_EVIDENCE,),
        "facts": HELLO_FACTS,
        "cite": "Wu et al., S&P 2025",
        "observed": "2024-10",
        "place": "rules/sample.yaml:4:7",
        "residual_seconds": 180.0,
        "towards": "both",
    }
    return RuleHit(**{**members, **changes})


def ended(of: FlowRef, *, dropped: int = 0, injected: int = 0, rules: tuple[str, ...] = ()) -> FlowEnded:
    return FlowEnded(START + 9, of, START, START + 4.5, 5, 4, 600, 700, dropped, injected, "closed", "stopping", rules)


MESSAGES = (
    MessageSeen(START + 0.03, TLS, UP, HELLO_FACTS),
    MessageSeen(START, DNS, UP, {"dns.qname": "a.example", "dns.qtype": "AAAA", "dns.response": False}),
    MessageSeen(START, DNS, DOWN, {"dns.qname": "a.example", "dns.qtype": "AAAA", "dns.response": True}),
    MessageSeen(START, HTTP, UP, {"http.host": "b.example", "http.path": "/x", "http.method": "GET"}),
    MessageSeen(START, QUIC, UP, {"quic.version": "1", "quic.sni": "c.example", "quic.ja4": "q13d..."}),
    MessageSeen(START, VPN, UP, {"openvpn.stage": "reset", "openvpn.opcode": 7}),
)

RECORDS: tuple[Record, ...] = (
    *MESSAGES,
    hit(),
    hit(TLS_AGAIN, time=START + 0.5),
    hit(HTTP, action="throttle", rule="slow", placement=Placement.IN_PATH, evidence=(), facts={}, towards=""),
    hit(PING, action="icmp_unreachable", rule="no-ping", placement=Placement.IN_PATH, direction=DOWN, facts={}),
    ResidualHit(START + 1, TLS_AGAIN, "sni-news", "reset", "3tuple", 179.0, "Wu et al., S&P 2025"),
    ProbeReacted(
        START + 2, HTTP, "prober", "http", "closed", 1.5, 221, "198.51.100.1", 40117, "Alice et al., IMC 2020"
    ),
    ServerBlocked(
        START + 2,
        HTTP,
        "prober",
        "server",
        43_200.0,
        (("http", "closed"), ("tls", "timeout")),
        "Alice et al., IMC 2020",
        "2020-01",
        "rules/sample.yaml:9:7",
    ),
    PacketDropped(START + 1, TLS_AGAIN, "sni-news", DOWN, 40, 63, "residual", 1, 2, 0x12),
    PacketDropped(START + 1, QUIC, "no-quic", UP, 1228, 63, "rule"),
    ended(TLS, injected=2, rules=("sni-news",)),
    ended(TLS_AGAIN, dropped=3, injected=2, rules=("sni-news",)),
    *(ended(other) for other in (DNS, HTTP, QUIC, VPN, PING)),
    EngineFault(START + 2, "ZeroDivisionError: division by zero"),
)


def log_of(records: Iterable[Record], *, strict: bool = False) -> list[str]:
    """The event log's lines."""
    stream = io.StringIO()
    writer = EveWriter(stream, strict=strict)
    for record in records:
        writer.write(record)
    return stream.getvalue().splitlines()


def events_of(*records: Record, strict: bool = False) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log_of(records, strict=strict)]
