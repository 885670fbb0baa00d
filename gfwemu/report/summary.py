"""What an event log says in sum: which rule touched which flows, and which flows passed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
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
from gfwemu.model import Direction, address_text, record
from gfwemu.report.eve_facts import probe_evidence, proto_name, protocol_of
from gfwemu.rules.compiled import Fact

Event = Mapping[str, Any]

HARMLESS = frozenset({"pass", "alert", "probe"})
"""Actions after which a flow still counts as untouched."""

_NAMES: tuple[tuple[str, str, str], ...] = (
    ("tls", "sni", "tls.sni"),
    ("quic", "sni", "quic.sni"),
    ("http", "hostname", "http.host"),
    ("dns", "rrname", "dns.qname"),
)
"""Where a flow's name stands: the object of an event, its member, and the field of which that is made."""
_NAME_FIELDS = {kind: field for kind, _, field in _NAMES}


@record
class Endpoints:
    """A flow's ends as text, client first; ports are 0 where there are none."""

    proto: str
    client: str
    client_port: int
    server: str
    server_port: int


@dataclass(slots=True)
class FlowFacts:
    """What the log tells of one flow."""

    ends: Endpoints
    protocol: str = ""
    name: str = ""
    injected: int = 0
    dropped: int = 0


@dataclass(slots=True)
class Row:
    """One rule and the like flows that it touched: same client, server, server port, protocol and name.

    when: seconds after the log's first event, of the first hit. kind: `rule`, `residual`, `probe`, `block`.
    packet_number, packet_length and evidence are those of the first hit. flows: their numbers in the log.
    """

    when: float
    rule: str
    ends: Endpoints
    protocol: str
    name: str
    cite: str
    kind: str = ""
    action: str = ""
    placement: str = ""
    direction: str = Direction.TO_SERVER.value
    packet_number: int = 0
    packet_length: int = 0
    evidence: tuple[Evidence, ...] = ()
    residual_seconds: float = 0.0
    residual_key: str = ""
    observed: str = ""
    place: str = ""
    flows: set[int] = field(default_factory=set)
    hits: int = 0
    injected: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class KernelRow:
    """A rule that the kernel decided alone."""

    rule: str
    action: str
    packets: int
    bytes: int
    cite: str = ""


@dataclass(slots=True)
class Summary:
    """rows in the order of their first hit; passed_names as first seen; unreadable counts lines that are no event."""

    rows: list[Row] = field(default_factory=list)
    kernel: list[KernelRow] = field(default_factory=list)
    passed_flows: int = 0
    passed_names: list[str] = field(default_factory=list)
    flows: int = 0
    injected: int = 0
    dropped: int = 0
    faults: list[str] = field(default_factory=list)
    unreadable: int = 0

    @property
    def touched(self) -> bool:
        """Whether any packet met another fate than in an open network."""
        acted = any(row.action not in HARMLESS for row in self.rows)
        in_kernel = any(row.action not in HARMLESS and row.packets for row in self.kernel)
        return bool(acted or in_kernel or self.injected or self.dropped)


def summarise(lines: Iterable[str]) -> Summary:
    """Reads an event log, also a strict one or one that ends in the middle of a line."""
    reader = SummaryReader()
    for line in lines:
        if line.strip():
            reader.read(line)
    return reader.finish()


class SummaryReader:
    """Takes records or lines one by one; keeps the rows and what it knows of each flow, not the lines."""

    def __init__(self) -> None:
        self._summary = Summary()
        self._flows: dict[int, FlowFacts] = {}
        self._hits: list[tuple[int, Row]] = []
        self._first: float | None = None

    def record(self, record: Record) -> None:
        """The same as reading the line that the event log has of it."""
        match record:
            case RuleHit() | ResidualHit() | ProbeReacted() | ServerBlocked():
                flow = self._flow(record.flow)
                if isinstance(record, RuleHit):
                    flow.name = flow.name or _name_in(record.flow.protocol, record.facts)
                self._note_time(record.time)
                self._hits.append((record.flow.flow_id, _row_of(record, flow)))
            case MessageSeen():
                flow = self._flow(record.flow)
                flow.name = flow.name or _name_in(record.flow.protocol, record.facts)
                self._note_time(record.time)
            case FlowEnded():
                flow = self._flow(record.flow)
                flow.injected, flow.dropped = record.injected, record.dropped
                self._note_time(record.start)
            case PacketDropped():
                flow = self._flow(record.flow)
                flow.dropped = max(flow.dropped, 1)
                self._note_time(record.time)
            case EngineFault():
                self._summary.faults.append(record.error)

    def _flow(self, told: FlowRef) -> FlowFacts:
        flow = self._flows.get(told.flow_id)
        if flow is None:
            key = told.tuple
            ends = Endpoints(proto_name(key.proto), address_text(key.src), key.sport, address_text(key.dst), key.dport)
            flow = self._flows[told.flow_id] = FlowFacts(ends)
        flow.protocol = told.protocol or flow.protocol
        return flow

    def read(self, line: str) -> None:
        """A line of an event log."""
        try:
            event = json.loads(line)
            time = datetime.fromisoformat(event["timestamp"]).timestamp()
            self._take(event, time)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            self._summary.unreadable += 1

    def _take(self, event: Event, time: float) -> None:
        kind = event["event_type"]
        if "flow_id" in event:
            self._learn(event)
        if kind == "alert":
            self._note_time(time)
            number = int(event["flow_id"])
            self._hits.append((number, _row(time, event, self._flows[number])))
        elif kind == "flow":
            self._note_time(datetime.fromisoformat(event["flow"]["start"]).timestamp())
        elif kind == "stats" and event.get("censor", {}).get("kind") == "kernel-rule":
            told = event["censor"]
            self._summary.kernel.append(
                KernelRow(
                    str(told["rule"]),
                    str(told["action"]),
                    int(told["packets"]),
                    int(told["bytes"]),
                    told.get("cite", ""),
                )
            )
        elif kind == "anomaly":
            self._summary.faults.append(str(event.get("censor", {}).get("error", event["anomaly"]["event"])))
        else:
            self._note_time(time)

    def _note_time(self, time: float) -> None:
        self._first = time if self._first is None else min(self._first, time)

    def _learn(self, event: Event) -> None:
        source = (str(event["src_ip"]), int(event.get("src_port", 0)))
        target = (str(event["dest_ip"]), int(event.get("dest_port", 0)))
        if event.get("direction") == "to_client":
            source, target = target, source
        ends = Endpoints(str(event["proto"]), *source, *target)
        flow = self._flows.setdefault(int(event["flow_id"]), FlowFacts(ends))
        flow.protocol = str(event.get("app_proto", "")) or flow.protocol
        flow.name = flow.name or _name(event)
        if event["event_type"] == "flow":
            told = event.get("censor", {})
            flow.injected = int(told.get("injected", 0))
            flow.dropped = int(told.get("dropped", 0))
        elif event["event_type"] == "drop":
            flow.dropped = max(flow.dropped, 1)

    def finish(self) -> Summary:
        summary = self._summary
        rows: dict[tuple[object, ...], Row] = {}
        touched: set[int] = set()
        for number, hit in self._hits:
            flow = self._flows[number]
            hit.name, hit.protocol = flow.name, flow.protocol
            hit.when -= self._first or 0.0
            ends = hit.ends
            key = (hit.kind, hit.rule, hit.action, ends.proto, ends.client, ends.server, ends.server_port, hit.name)
            row = rows.setdefault(key, hit)
            row.hits += 1
            row.flows.add(number)
            if row.action not in HARMLESS:
                touched.add(number)
        for row in rows.values():
            row.injected = sum(self._flows[number].injected for number in row.flows)
            row.dropped = sum(self._flows[number].dropped for number in row.flows)
        summary.rows = sorted(rows.values(), key=lambda row: row.when)
        for number, flow in self._flows.items():
            summary.injected += flow.injected
            summary.dropped += flow.dropped
            if number in touched or flow.injected or flow.dropped:
                continue
            summary.passed_flows += 1
            if flow.name and flow.name not in summary.passed_names:
                summary.passed_names.append(flow.name)
        summary.flows = len(self._flows)
        return summary


def _row(when: float, event: Event, flow: FlowFacts) -> Row:
    told = event.get("censor", {})
    metadata = event["alert"].get("metadata", {})

    def either(member: str, *, mirrored: str = "") -> str:
        return str(told.get(member) or next(iter(metadata.get(mirrored or member, ())), ""))

    return Row(
        when=when,
        kind=str(told.get("kind", "residual" if "residual_key" in metadata else "rule")),
        rule=str(event["alert"]["signature"]),
        action=either("action", mirrored="rule_action"),
        ends=flow.ends,
        protocol=flow.protocol,
        name=flow.name,
        placement=either("placement"),
        direction=str(event.get("direction", "")),
        packet_number=int(told.get("packet_number", 0)),
        packet_length=int(told.get("packet_length", 0)),
        evidence=tuple(_evidence(item) for item in told.get("evidence", ())),
        residual_seconds=float(told.get("residual_seconds") or told.get("remaining") or 0.0),
        residual_key=either("key", mirrored="residual_key"),
        cite=either("cite"),
        observed=either("observed"),
        place=either("place"),
    )


def _row_of(told: RuleHit | ResidualHit | ProbeReacted | ServerBlocked, flow: FlowFacts) -> Row:
    """The same as `_row` of the line that the event log has of it."""
    row = Row(told.time, told.rule, flow.ends, flow.protocol, flow.name, told.cite)
    match told:
        case RuleHit():
            row.kind, row.action, row.placement = "rule", told.action, told.placement.value
            row.direction, row.evidence = told.direction.value, told.evidence
            row.packet_number, row.packet_length = told.packet_number, told.packet_length
            row.residual_seconds = told.residual_seconds
            row.observed, row.place = told.observed, told.place
        case ResidualHit():
            row.kind, row.action = "residual", told.action
            row.residual_seconds, row.residual_key = told.remaining, told.key
        case ProbeReacted():
            row.kind = row.action = "probe"
        case ServerBlocked():
            row.kind = row.action = "block"
            row.evidence, row.residual_seconds, row.residual_key = probe_evidence(told), told.seconds, told.key
            row.observed, row.place = told.observed, told.place
    return row


def _evidence(told: Event) -> Evidence:
    offset, length = told.get("offset"), told.get("length")
    return Evidence(
        field=str(told["field"]),
        value=str(told.get("value", "")),
        entry=str(told.get("entry", "")),
        offset=None if offset is None else int(offset),
        length=None if length is None else int(length),
        excerpt=bytes.fromhex(told.get("excerpt", "")),
    )


def _name(event: Event) -> str:
    for kind, member, _ in _NAMES:
        value = event.get(kind, {}).get(member)
        if value:
            return str(value)
    return ""


def _name_in(recognised: str, facts: Mapping[str, Fact]) -> str:
    """The name that the event of a message with these facts shows."""
    field = _NAME_FIELDS.get(protocol_of(recognised, facts))
    return "" if field is None else str(facts.get(field) or "")
