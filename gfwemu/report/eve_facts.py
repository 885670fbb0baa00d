"""From facts to the protocol objects of EVE (`tls`, `quic`, `dns` and so on, `metadata`), and to JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii
from typing import Any

from gfwemu.engine.records import Evidence, ServerBlocked
from gfwemu.model import address_text
from gfwemu.rules.compiled import Fact

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

quoted = encode_basestring_ascii
"""A text as JSON. An encoder would do the same and look first at what it has been given."""

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode

_TEXT, _TEXTS, _HASH, _TLS_VERSION, _DNS_TYPE = "text", "texts", "hash", "tls version", "dns type"

_MEMBERS: dict[str, dict[str, tuple[str, str]]] = {
    "tls": {
        "tls.sni": ("sni", _TEXT),
        "tls.version": ("version", _TLS_VERSION),
        "tls.ja3": ("ja3", _HASH),
        "tls.ja4": ("ja4", _TEXT),
        "tls.alpn": ("client_alpns", _TEXTS),
    },
    "quic": {
        "quic.version": ("version", _TEXT),
        "quic.sni": ("sni", _TEXT),
        "quic.ja4": ("ja4", _TEXT),
    },
    "dns": {
        "dns.response": ("type", _DNS_TYPE),
        "dns.qname": ("rrname", _TEXT),
        "dns.qtype": ("rrtype", _TEXT),
    },
    "http": {
        "http.host": ("hostname", _TEXT),
        "http.path": ("url", _TEXT),
        "http.method": ("http_method", _TEXT),
        "http.version": ("protocol", _TEXT),
        "http.user_agent": ("http_user_agent", _TEXT),
    },
    "ftp": {
        "ftp.command": ("command", _TEXT),
        "ftp.argument": ("command_data", _TEXT),
    },
    "smtp": {
        "smtp.mail_from": ("mail_from", _TEXT),
    },
}
"""EVE object: our field -> its member and form. Names and types as in Suricata's user guide, "EVE JSON Format"."""

_DNS_LOG_VERSION = 2
_PROTO_NAMES: Mapping[int, str] = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "IPv6-ICMP", 132: "SCTP"}


def proto_name(number: int) -> str:
    """EVE's name of an IP protocol: its number in three digits where it has none."""
    return _PROTO_NAMES.get(number, f"{number:03}")


def protocol_of(recognised: str, facts: Mapping[str, Fact]) -> str:
    """The protocol's name: the recognised one, else what the facts' names begin with, else ""."""
    if recognised:
        return recognised
    for name in facts:
        prefix, dot, _ = name.partition(".")
        if dot and prefix in _MEMBERS:
            return prefix
    return ""


def protocol_object(protocol: str, facts: Mapping[str, Fact]) -> tuple[str, dict[str, Json]]:
    """EVE's event type for a message of that protocol, and the object of that name.

    A protocol that EVE has no event for becomes a `metadata` event with its facts as flow variables.
    """
    members = _MEMBERS.get(protocol)
    if members is None:
        variables: list[Json] = [{name: _text(value)} for name, value in facts.items() if "." in name]
        return "metadata", {"flowvars": variables}
    content: dict[str, Json] = {}
    for field, (member, form) in members.items():
        value = facts.get(field)
        if value is not None:
            content[member] = value if form == _TEXT and isinstance(value, str) else _formed(value, form)
    if protocol == "dns":
        content["version"] = _DNS_LOG_VERSION
        content.setdefault("type", "query")
    return protocol, content


def protocol_text(protocol: str, facts: Mapping[str, Fact]) -> tuple[str, str]:
    """As `protocol_object`, the object as a member of the event."""
    kind, content = protocol_object(protocol, facts)
    return kind, members_text({kind: content})


def _formed(value: Fact, form: str) -> Json:
    if form == _TEXTS:
        return [_text(item) for item in value] if isinstance(value, tuple) else [_text(value)]
    if form == _HASH:
        return {"hash": _text(value)}
    if form == _TLS_VERSION:
        text = _text(value)
        return f"TLS {text}" if text[:1].isdigit() else text
    if form == _DNS_TYPE:
        return "answer" if value else "query"
    return _text(value)


def _text(value: Fact) -> str:
    if isinstance(value, str):
        return value
    plain = plain_value("", value)
    if isinstance(plain, list):
        return ",".join(str(item) for item in plain)
    return str(plain).lower() if isinstance(plain, bool) else str(plain)


def plain_value(field: str, value: Fact) -> Json:
    """Addresses (fields `ip.*`) as their text, other bytes as hex, tuples as lists."""
    if isinstance(value, bytes):
        return address_text(value) if field.startswith("ip.") and len(value) in (4, 16) else value.hex()
    if isinstance(value, tuple):
        return list(value)
    return value


def members_text(members: Mapping[str, Any]) -> str:
    """Facts or plain values as members of a JSON object, without the braces. Their names need no escapes."""
    return ",".join(
        [
            f'"{name}":{quoted(value) if value.__class__ is str else _value_text(name, value)}'
            for name, value in members.items()
        ]
    )


def _value_text(name: str, value: Any) -> str:
    kind = value.__class__
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return str(value)
    if kind is tuple:
        return texts_text(value)
    if kind is list:
        return f"[{','.join(map(_encode, value))}]"
    if kind is dict:
        return f"{{{members_text(value)}}}"
    return _encode(plain_value(name, value))


def texts_text(texts: tuple[str, ...]) -> str:
    """As a JSON list."""
    return f"[{','.join(map(quoted, texts))}]"


def probe_evidence(block: ServerBlocked) -> tuple[Evidence, ...]:
    """What the server answered, by type of probe."""
    return tuple(Evidence(f"probe {name}", reaction, "") for name, reaction in block.reactions)
