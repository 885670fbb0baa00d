"""Rules made in Python, so that the engine's tests do not depend on the rule language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gfwemu.dissect.options import DissectOptions
from gfwemu.engine.facts import FLOW_FIELDS, PACKET_FIELDS
from gfwemu.errors import Place
from gfwemu.model import Placement, address_bytes
from gfwemu.rules.actions import ACTIONS, Residual
from gfwemu.rules.compiled import (
    CompiledRule,
    Condition,
    EngineOptions,
    Fact,
    FlowOptions,
    FragmentOptions,
    RuleSet,
    Schedule,
    Scope,
    TcpOptions,
)
from gfwemu.rules.odds import Odds

EVERY_DISSECTOR = frozenset({"tls", "quic", "dns", "http", "openvpn", "wireguard"})


@dataclass(frozen=True)
class Is:
    """Matches one value; addresses may be given as text."""

    wanted: Fact

    def match(self, value: Fact) -> str | None:
        wanted = (
            address_bytes(self.wanted) if isinstance(value, bytes) and isinstance(self.wanted, str) else self.wanted
        )
        return str(self.wanted) if value == wanted else None


@dataclass(frozen=True)
class Holds:
    """Matches payloads that contain the bytes."""

    wanted: bytes

    def match(self, value: Fact) -> str | None:
        return self.wanted.hex() if isinstance(value, bytes) and self.wanted in value else None


@dataclass(frozen=True)
class AtMost:
    """Matches numbers up to a limit; counts that only grow exhaust it."""

    limit: int

    def match(self, value: Fact) -> str | None:
        return f"<={self.limit}" if isinstance(value, int) and value <= self.limit else None

    def exhausted(self, value: int) -> bool:
        return value > self.limit


@dataclass(frozen=True)
class Hours:
    """In force between two hours of the UTC day."""

    first: int
    last: int

    def active(self, now: float) -> bool:
        return self.first <= now % 86400 / 3600 < self.last


def rule(
    action: str,
    match: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    placement: str = "in-path",
    residual: Mapping[str, Any] | None = None,
    chance: float = 1.0,
    odds: Odds | None = None,
    repeat: bool = False,
    schedule: Schedule | None = None,
    hook: Callable[[Mapping[str, Fact]], bool] | None = None,
    **parameters: Any,
) -> CompiledRule:
    """A rule; plain values in `match` are compared, `("not", value)` negates; `chance` is the rule's
    probability, `odds` where it is more than that number."""
    conditions = []
    for field, value in (match or {}).items():
        negated = isinstance(value, tuple) and value[0] == "not"
        wanted = value[1] if negated else value
        conditions.append(Condition(field, wanted if hasattr(wanted, "match") else Is(wanted), negated))
    fields = {condition.field for condition in conditions}
    scope = Scope.FLOW
    if not fields <= FLOW_FIELDS:
        scope = Scope.PACKET if fields & set(PACKET_FIELDS) else Scope.MESSAGE
    return CompiledRule(
        index=0,
        name=name or action,
        action_name=action,
        action=ACTIONS[action](**parameters),  # type: ignore[arg-type]
        conditions=tuple(conditions),
        scope=scope if hook is None else Scope.PACKET,
        placement=Placement(placement),
        place=Place("test.yaml", 1, 1),
        hooks=() if hook is None else (hook,),
        probability=chance,
        odds=odds,
        repeat=repeat,
        residual=None if residual is None else Residual(**residual),
        schedule=schedule,
        cite="a test",
    )


def ruleset(
    *rules: CompiledRule,
    tcp: TcpOptions | None = None,
    fragments: FragmentOptions | None = None,
    flows: FlowOptions | None = None,
    dissect: DissectOptions | None = None,
    **others: Any,
) -> RuleSet:
    options = EngineOptions(
        tcp=tcp or TcpOptions(),
        fragments=fragments or FragmentOptions(),
        flows=flows or FlowOptions(),
        dissect=dissect or DissectOptions(),
    )
    return RuleSet(rules=tuple(rules), options=options, dissectors=EVERY_DISSECTOR, **others)


def client_hello(name: str) -> bytes:
    """A ClientHello of the standard library's own TLS for that server name."""
    import ssl

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("the handshake ended without a server")


def dns_query(name: str, qtype: int = 1, ident: int = 0x1234) -> bytes:
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    return (
        ident.to_bytes(2, "big")
        + b"\x01\x00\x00\x01"
        + bytes(6)
        + labels
        + b"\x00"
        + qtype.to_bytes(2, "big")
        + b"\x00\x01"
    )
