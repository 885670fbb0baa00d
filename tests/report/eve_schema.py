"""A JSON Schema that restates the names and types of Suricata's user guide ("EVE JSON Format")."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "array", "items": TEXT}
TIME: Schema = {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}[+-]\d{4}$"}
PORT: Schema = {"type": "integer", "minimum": 0, "maximum": 65535}


def choice(*values: str) -> Schema:
    return {"enum": list(values)}


def closed(required: str, **members: Schema) -> Schema:
    return {"type": "object", "properties": members, "required": required.split(), "additionalProperties": False}


COMMON = "timestamp event_type"
FLOW = f"{COMMON} flow_id src_ip src_port dest_ip dest_port proto"

MEMBERS: dict[str, Schema] = {
    "timestamp": TIME,
    "event_type": TEXT,
    "flow_id": WHOLE,
    "src_ip": TEXT,
    "src_port": PORT,
    "dest_ip": TEXT,
    "dest_port": PORT,
    "proto": {"type": "string", "pattern": "^([A-Z][A-Za-z0-9-]*|[0-9]{3})$"},
    "ip_v": {"enum": [4, 6]},
    "app_proto": TEXT,
    "direction": choice("to_server", "to_client"),
    "community_id": {"type": "string", "pattern": "^1:[A-Za-z0-9+/]{27}=$"},
    "alert": closed(
        "action gid signature_id rev signature category severity",
        action=choice("allowed", "blocked"),
        gid=WHOLE,
        signature_id={"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
        rev=WHOLE,
        signature=TEXT,
        category=TEXT,
        severity={"type": "integer", "minimum": 1, "maximum": 255},
        metadata={"type": "object", "additionalProperties": TEXTS},
    ),
    "verdict": closed(
        "action",
        action=choice("alert", "pass", "drop"),
        reject={"type": "array", "items": choice("tcp-reset", "icmp-prohib")},
        reject_target=choice("to_client", "to_server", "both"),
    ),
    "drop": closed(
        "len reason",
        len=WHOLE,
        ttl=WHOLE,
        hoplimit=WHOLE,
        reason=TEXT,
        tcpseq=WHOLE,
        tcpack=WHOLE,
        syn=FLAG,
        ack=FLAG,
        psh=FLAG,
        rst=FLAG,
        urg=FLAG,
        fin=FLAG,
    ),
    "flow": closed(
        "pkts_toserver pkts_toclient bytes_toserver bytes_toclient start end age state reason alerted",
        pkts_toserver=WHOLE,
        pkts_toclient=WHOLE,
        bytes_toserver=WHOLE,
        bytes_toclient=WHOLE,
        start=TIME,
        end=TIME,
        age=WHOLE,
        state=choice("new", "established", "closed", "bypassed"),
        reason=choice("timeout", "forced", "shutdown", "unknown"),
        alerted=FLAG,
        action=choice("pass", "drop"),
    ),
    "tls": closed("", sni=TEXT, version=TEXT, ja3=closed("hash", hash=TEXT), ja4=TEXT, client_alpns=TEXTS),
    "quic": closed("", version=TEXT, sni=TEXT, ja4=TEXT),
    "dns": closed("version type", version=WHOLE, type=choice("query", "answer"), rrname=TEXT, rrtype=TEXT),
    "http": closed("", hostname=TEXT, url=TEXT, http_method=TEXT, protocol=TEXT, http_user_agent=TEXT),
    "metadata": closed("", flowvars={"type": "array", "items": {"type": "object", "additionalProperties": TEXT}}),
    "anomaly": closed(
        "type event", type=choice("decode", "stream", "applayer"), event=TEXT, layer=TEXT, app_proto=TEXT
    ),
    "stats": closed(
        "",
        uptime=WHOLE,
        capture=closed("", kernel_packets=WHOLE, kernel_drops=WHOLE),
        decoder=closed("", pkts=WHOLE, bytes=WHOLE),
        flow=closed("", active=WHOLE, total=WHOLE),
        ips=closed("", accepted=WHOLE, blocked=WHOLE, rejected=WHOLE, replaced=WHOLE),
    ),
}

OF_FLOWS = ("alert", "drop", "flow", "tls", "quic", "dns", "http", "metadata")
OTHERS = ("anomaly", "stats")


def eve_schema(*, strict: bool) -> Schema:
    """Of one line. Not strict: one further object, `censor`, may stand in it."""
    members = dict(MEMBERS)
    if not strict:
        members["censor"] = {"type": "object", "required": ["kind"]}
    alternatives = [
        {"properties": {"event_type": {"const": kind}}, "required": [*required.split(), kind]}
        for kinds, required in ((OF_FLOWS, FLOW), (OTHERS, COMMON))
        for kind in kinds
    ]
    return {"type": "object", "properties": members, "additionalProperties": False, "oneOf": alternatives}
