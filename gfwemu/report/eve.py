"""The event log: one JSON object a line, in the conventions of Suricata's EVE.

Names and types follow Suricata's user guide ("EVE JSON Format"). What EVE has no place for stands in the one object
`censor`; strict mode leaves it out, and `alert.metadata` keeps the essentials.

Packet events (`alert`, `drop`, `tls`, `quic`, `dns`, `http`, `metadata`) name the packet's source as `src_ip`; `flow`
events name the client. `signature_id` is the CRC-32 of the rule's name without its top bit: the same rule has the same
number in every run, wherever it stands in its file.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

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
from gfwemu.model import Direction, FiveTuple, Placement, address_text
from gfwemu.report.community_id import known_community_id
from gfwemu.report.eve_facts import (
    Json,
    members_text,
    probe_evidence,
    proto_name,
    protocol_of,
    protocol_text,
    quoted,
    texts_text,
)
from gfwemu.rules.compiled import Fact
from gfwemu.wire.packet import TcpFlags

if TYPE_CHECKING:  # it brings in a library that few runs need
    from gfwemu.report.counters import Counters

Object = dict[str, Json]
Event = tuple[str, str, str]
"""Members as text: the common ones, the event's own, and what goes into `censor`."""

_MOST_LINES = 512
"""Lines that wait for `flush`."""

CATEGORY = "Emulated censorship"

_ALLOWED = frozenset({"pass", "alert", "probe"})
_DEGRADED = frozenset({"throttle", "delay", "lose"})
_REJECTS: Mapping[str, str] = {
    "reset": "tcp-reset",
    "rewrite_to_reset": "tcp-reset",
    "icmp_unreachable": "icmp-prohib",
}
_REJECT_TARGETS: Mapping[str, str] = {"client": "to_client", "server": "to_server", "both": "both"}
_FLOW_REASONS: Mapping[str, str] = {
    "timeout": "timeout",
    "closed": "timeout",
    "evicted": "forced",
    "stopping": "shutdown",
}

_DROP_FLAGS = tuple((name, int(TcpFlags[name.upper()])) for name in ("syn", "ack", "psh", "rst", "urg", "fin"))
_TO_CLIENT = Direction.TO_CLIENT
_DIRECTIONS: Mapping[Direction | None, str] = {
    None: "",
    **{direction: f',"direction":"{direction.value}"' for direction in Direction},
}


def signature_id(rule: str) -> int:
    """1 to 2^31 - 1, the same for the same rule name."""
    return (zlib.crc32(rule.encode()) & 0x7FFFFFFF) or 1


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as `2026-01-02T03:04:05.000006+0000`."""
    whole, microseconds = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{_second(whole)}.{microseconds:06}+0000"


@lru_cache(maxsize=256)
def _second(whole: int) -> str:
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}"


class Lines(Protocol):
    """What the writer needs of a text stream."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


class EveWriter:
    """Writes each record as one line. Errors of the stream pass through.

    each: every line goes out at once, so that a reader may follow; otherwise lines wait for `flush`.
    """

    def __init__(self, stream: Lines, *, strict: bool = False, each: bool = True) -> None:
        self._stream = stream
        self._strict = strict
        self._each = each
        self._lines: list[str] = []
        self._told_protocol = ""
        self._told_facts: Mapping[str, Fact] = {}
        self._told = "", "", ""

    def write(self, record: Record) -> None:
        match record:
            case MessageSeen():
                self._put(*_message(record, *self._facts(record.flow.protocol, record.facts)))
            case FlowEnded():
                self._put(*_flow(record))
            case RuleHit():
                self._put(*_rule_hit(record, *self._facts(record.flow.protocol, record.facts)))
            case ResidualHit():
                self._put(*_residual_hit(record))
            case ProbeReacted():
                self._put(*_probe(record))
            case ServerBlocked():
                self._put(*_blocked(record))
            case PacketDropped():
                self._put(*_drop(record))
            case EngineFault():
                self._put(*_fault(record))

    def flush(self) -> None:
        """Lets out the lines that wait, in one write."""
        if self._lines:
            text, self._lines = "".join(self._lines), []
            self._stream.write(text)
            self._stream.flush()

    def kernel_rule(
        self, time: float, rule: str, action: str, packets: int, bytes: int, *, cite: str = "", observed: str = ""
    ) -> None:
        """What a rule did that the kernel decided alone: counters, as a `stats` event, for no single packet."""
        verdict = "accepted" if action in _ALLOWED else "rejected" if action in _REJECTS else "blocked"
        censor = _present(
            kind="kernel-rule", rule=rule, action=action, packets=packets, bytes=bytes, cite=cite, observed=observed
        )
        self._put(_head(time, "stats"), members_text({"stats": {"ips": {verdict: packets}}}), members_text(censor))

    def stats(self, time: float, counters: Counters) -> None:
        """The state of a running censor."""
        packets = max(counters.packets, counters.verdicts.total())
        dropped = counters.queue_dropped + counters.socket_dropped
        event: Object = {
            "stats": {
                "uptime": max(0, int(time - counters.start_time)),
                "capture": {"kernel_packets": packets, "kernel_drops": dropped},
                "decoder": {"pkts": packets, "bytes": counters.verdict_bytes.total()},
                "flow": {"active": counters.flows, "total": counters.flows + counters.flows_ended.total()},
                "ips": _ips(counters),
            },
        }
        censor: Object = {
            "kind": "stats",
            "injected": counters.injected,
            "held": counters.held,
            "faults": counters.faults,
            "queue_dropped": counters.queue_dropped,
            "socket_dropped": counters.socket_dropped,
            "socket_overruns": counters.overruns,
        }
        self._put(_head(time, "stats"), members_text(event), members_text(censor))

    def _facts(self, protocol: str, facts: Mapping[str, Fact]) -> tuple[str, str, str]:
        """The event type for a message, what that event says of it, and its facts. A hit and its message share them."""
        if facts is not self._told_facts or protocol != self._told_protocol or not facts:
            # The object first: facts that are worked out late stand in the order in which they were asked for.
            kind, content = protocol_text(protocol_of(protocol, facts), facts)
            self._told_facts, self._told_protocol = facts, protocol
            self._told = kind, content, _facts_member(facts)
        return self._told

    def _put(self, head: str, event: str, censor: str) -> None:
        if event:
            head = f"{head},{event}"
        self._lines.append(f"{{{head}}}\n" if self._strict else f'{{{head},"censor":{{{censor}}}}}\n')
        if self._each or len(self._lines) >= _MOST_LINES:
            self.flush()


def _ips(counters: Counters) -> Object:
    by_name = {verdict.value: count for verdict, count in counters.verdicts.items()}
    return {
        "accepted": by_name.get("accept", 0),
        "blocked": by_name.get("drop", 0),
        "rejected": 0,
        "replaced": counters.rewritten,
    }


def _head(time: float, kind: str) -> str:
    return f'"timestamp":"{timestamp(time)}","event_type":"{kind}"'


def _common(time: float, kind: str, flow: FlowRef, direction: Direction | None) -> str:
    """The common section. Without a direction it is an event of the flow, not of a packet."""
    forth, back, community_id = _ends(flow.tuple)
    protocol = f',"app_proto":{quoted(flow.protocol)}' if flow.protocol else ""
    return (
        f'"timestamp":"{timestamp(time)}","flow_id":{flow.flow_id},"event_type":"{kind}",'
        f"{back if direction is _TO_CLIENT else forth}{protocol}{_DIRECTIONS[direction]}{community_id}"
    )


@lru_cache(maxsize=4096)
def _ends(flow: FiveTuple) -> tuple[str, str, str]:
    """A packet's endpoints, of one to the server and of one to the client, and the member that names the flow."""
    proto = f'"proto":"{proto_name(flow.proto)}","ip_v":{4 if len(flow.src) == 4 else 6}'
    src, dst = address_text(flow.src), address_text(flow.dst)
    name = known_community_id(flow)
    return (
        f'"src_ip":"{src}","src_port":{flow.sport},"dest_ip":"{dst}","dest_port":{flow.dport},{proto}',
        f'"src_ip":"{dst}","src_port":{flow.dport},"dest_ip":"{src}","dest_port":{flow.sport},{proto}',
        f',"community_id":"{name}"' if name else "",
    )


def _present(**members: Json) -> Object:
    """Only what has something to say."""
    return {name: value for name, value in members.items() if value not in ("", None, [], {})}


def _alert(rule: str, action: str, **metadata: str) -> Object:
    known: Object = {name: [text] for name, text in {"rule": rule, "rule_action": action, **metadata}.items() if text}
    return {
        "action": "allowed" if action in _ALLOWED | _DEGRADED else "blocked",
        "gid": 1,
        "signature_id": signature_id(rule),
        "rev": 1,
        "signature": rule,
        "category": CATEGORY,
        "severity": 3 if action in _ALLOWED else 2 if action in _DEGRADED else 1,
        "metadata": known,
    }


def _verdict(action: str, placement: Placement, towards: str) -> Object:
    if action == "pass":
        return {"action": "pass"}
    if placement is Placement.ON_PATH or action in _ALLOWED | _DEGRADED:
        verdict: Object = {"action": "alert"}
    else:
        verdict = {"action": "drop"}
    if action in _REJECTS:
        verdict["reject"] = [_REJECTS[action]]
    target = "client" if action == "icmp_unreachable" else towards
    if target:
        verdict["reject_target"] = _REJECT_TARGETS[target]
    return verdict


def _evidence_member(evidence: tuple[Evidence, ...]) -> str:
    if not evidence:
        return ""
    # Most conditions are on what every packet of the flow has, and many flows have in common.
    texts = [_common_evidence(one) if one.offset is None else _evidence(one) for one in evidence]
    return f',"evidence":[{",".join(texts)}]'


def _evidence(evidence: Evidence) -> str:
    value = f',"value":{quoted(evidence.value)}' if evidence.value else ""
    entry = f',"entry":{quoted(evidence.entry)}' if evidence.entry else ""
    offset = "" if evidence.offset is None else f',"offset":{evidence.offset}'
    length = "" if evidence.length is None else f',"length":{evidence.length}'
    excerpt = f',"excerpt":"{evidence.excerpt.hex()}"' if evidence.excerpt else ""
    return f'{{"field":{quoted(evidence.field)}{value}{entry}{offset}{length}{excerpt}}}'


_common_evidence = lru_cache(maxsize=1024)(_evidence)


def _rule_hit(hit: RuleHit, kind: str, content: str, facts: str) -> Event:
    of_packet = f'"packet_number":{hit.packet_number},"packet_length":{hit.packet_length}'
    evidence = _evidence_member(hit.evidence)
    event, first, last = _of_rule(
        hit.rule, hit.action, hit.cite, hit.observed, hit.place, hit.placement, hit.residual_seconds, hit.towards
    )
    if kind != "metadata":
        event = f"{event},{content}"
    return (
        _common(hit.time, "alert", hit.flow, hit.direction),
        event,
        f"{first},{of_packet}{evidence}{facts}{last}",
    )


@lru_cache(maxsize=1024)
def _of_rule(
    rule: str,
    action: str,
    cite: str,
    observed: str,
    place: str,
    placement: Placement,
    residual_seconds: float,
    towards: str,
) -> tuple[str, str, str]:
    """What a hit says of the rule alone: members of the event, and the first and the last ones of `censor`."""
    alert = _alert(rule, action, cite=cite, observed=observed, placement=placement.value)
    last = members_text(_present(cite=cite, observed=observed, place=place, residual_seconds=residual_seconds or None))
    return (
        members_text({"alert": alert, "verdict": _verdict(action, placement, towards)}),
        members_text({"kind": "rule", "rule": rule, "action": action, "placement": placement.value}),
        f",{last}" if last else "",
    )


def _residual_hit(hit: ResidualHit) -> Event:
    event: Object = {"alert": _alert(hit.rule, hit.action, cite=hit.cite, residual_key=hit.key)}
    censor = _present(
        kind="residual", rule=hit.rule, action=hit.action, key=hit.key, remaining=hit.remaining, cite=hit.cite
    )
    return _common(hit.time, "alert", hit.flow, Direction.TO_SERVER), members_text(event), members_text(censor)


def _probe(probe: ProbeReacted) -> Event:
    """An alert of the flow that set the rule off; the prober's own connection is none that the censor follows."""
    event: Object = {"alert": _alert(probe.rule, "probe", cite=probe.cite, probe=probe.type, reaction=probe.reaction)}
    censor = _present(
        kind="probe",
        rule=probe.rule,
        action="probe",
        type=probe.type,
        reaction=probe.reaction,
        seconds=probe.seconds,
        sent=probe.sent,
        prober=probe.prober,
        prober_port=probe.port,
        cite=probe.cite,
    )
    return _common(probe.time, "alert", probe.flow, Direction.TO_SERVER), members_text(event), members_text(censor)


def _blocked(block: ServerBlocked) -> Event:
    event: Object = {"alert": _alert(block.rule, "block", cite=block.cite, residual_key=block.key)}
    first = _present(kind="block", rule=block.rule, action="block", key=block.key, residual_seconds=block.seconds)
    last = members_text(_present(cite=block.cite, observed=block.observed, place=block.place))
    censor = f"{members_text(first)}{_evidence_member(probe_evidence(block))}{f',{last}' if last else ''}"
    return _common(block.time, "alert", block.flow, Direction.TO_SERVER), members_text(event), censor


def _message(message: MessageSeen, kind: str, content: str, facts: str) -> Event:
    return _common(message.time, kind, message.flow, message.direction), content, f'"kind":"message"{facts}'


def _facts_member(facts: Mapping[str, Fact]) -> str:
    return f',"facts":{{{members_text(facts)}}}' if facts else ""


def _drop(drop: PacketDropped) -> Event:
    lifetime = "ttl" if len(drop.flow.tuple.src) == 4 else "hoplimit"
    of_tcp = ""
    if drop.tcp_flags is not None:
        flags = ",".join([f'"{name}":{"true" if drop.tcp_flags & flag else "false"}' for name, flag in _DROP_FLAGS])
        of_tcp = f',"tcpseq":{drop.tcp_seq},"tcpack":{drop.tcp_ack},{flags}'
    event = (
        f'"drop":{{"len":{drop.length},"{lifetime}":{drop.ttl},"reason":"rules"{of_tcp}}},"verdict":{{"action":"drop"}}'
    )
    censor = members_text(_present(kind="drop", rule=drop.rule, reason=drop.reason))
    return _common(drop.time, "drop", drop.flow, drop.direction), event, censor


def _flow(flow: FlowEnded) -> Event:
    reason = _FLOW_REASONS.get(flow.reason, "unknown")
    action = ',"action":"drop"' if flow.dropped else ""
    event = (
        f'"flow":{{"pkts_toserver":{flow.packets_to_server},"pkts_toclient":{flow.packets_to_client},'
        f'"bytes_toserver":{flow.bytes_to_server},"bytes_toclient":{flow.bytes_to_client},'
        f'"start":"{timestamp(flow.start)}","end":"{timestamp(flow.last)}",'
        f'"age":{max(0, int(flow.last - flow.start))},"state":"{flow.state}","reason":"{reason}",'
        f'"alerted":{"true" if flow.rules else "false"}{action}}}'
    )
    rules = f',"rules":{texts_text(flow.rules)}' if flow.rules else ""
    censor = (
        f'"kind":"flow","dropped":{flow.dropped},"injected":{flow.injected},"reason":"{flow.reason}"'
        f"{rules}{_facts_member(flow.facts)}"
    )
    return _common(flow.time, "flow", flow.flow, None), event, censor


def _fault(fault: EngineFault) -> Event:
    event: Object = {"anomaly": {"type": "applayer", "event": "ENGINE_FAULT", "layer": "engine"}}
    return _head(fault.time, "anomaly"), members_text(event), members_text({"kind": "fault", "error": fault.error})
