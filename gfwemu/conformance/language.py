"""The language of conformance cases: what may stand in a file of rules/cases; docs/cases.md explains it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from gfwemu.conformance.rates import check_rate
from gfwemu.conformance.specs import AnyPayload, Flags, Hex, Numbers, Port, Range, Span
from gfwemu.rules.models import Name, Section
from gfwemu.rules.quantities import Duration

Evidence = Literal["found", "secondary", "computed", "anecdote", "recall", "inference", "guess"]
Where = Literal["live", "replay", "both"]

# -- steps --------------------------------------------------------------------------------------------------------


class Connect(Section):
    """A TCP connection by hand.

    handshake: full; `syn` (all but the last ACK); `blind` (SYN, then on without waiting, as a spoofed client does);
    `none` (no packet at all: what is sent next comes out of the blue).
    server: `fresh` (one that this client never met), `same` (as the connection before), `other`, `silent` (answers
    nothing), `hand` (the script plays it, with `by: server`), `resolver`, an address or a network.
    client: `same` or `other`. from: the client's side.
    """

    port: Port = 443
    client_port: Port | Literal["above", "below", "equal"] | None = None
    server: str = "same"
    client: Literal["same", "other"] = "same"
    from_: Annotated[Literal["inside", "outside"], Field(alias="from")] = "inside"
    ipv6: bool = False
    handshake: Literal["full", "syn", "blind", "none"] = "full"
    timestamps: bool = False
    window: Annotated[int, Field(ge=0, le=65535)] = 64240
    syn_ttl: Ttl | None = None


Ttl = Annotated[int, Field(ge=1, le=255)] | Literal["censor", "before-censor"]
Connect.model_rebuild()


def _as_connect(value: object) -> object:
    return {"port": value} if isinstance(value, int) and not isinstance(value, bool) else value


AnyConnect = Annotated[Connect, BeforeValidator(_as_connect)]


class Dig(Section):
    name: str
    server: str = "198.51.100.53"
    type: str = "A"
    tcp: bool = False


Outcome = Literal["free", "blocked", "reset", "timeout"]

_VERBS = (
    "connect", "udp", "send", "packet", "answer", "wait", "at", "pause", "try", "expect", "curl", "dig", "run",
    "finish",
)  # fmt: skip
_SHAPES = (
    "cut", "order", "overlap", "ttl", "checksum", "md5", "seq", "ack", "data_offset", "window", "timestamp", "times",
    "every", "fragments", "fragment_order", "flags",
)  # fmt: skip
_MODIFIERS: dict[str, tuple[str, ...]] = {
    "send": _SHAPES,
    "packet": ("payload", "by", *_SHAPES),
    "try": ("outcome", "server", "client", "client_port", "from", "payload", "ipv6"),
    "curl": ("options",),
}


class Step(Section):
    """One verb with what shapes it."""

    connect: AnyConnect | None = None
    udp: AnyConnect | None = None
    send: AnyPayload | None = None
    packet: Flags | None = None
    answer: AnyPayload | None = None
    wait: Duration | None = None
    at: Duration | None = None
    pause: Duration | None = None
    try_: Annotated[Port | Literal["same"] | None, Field(alias="try")] = None
    expect: AnyExpect | None = None
    curl: str | None = None
    dig: Dig | None = None
    run: list[str] | None = None
    finish: Literal["fin", "reset"] | None = None

    payload: AnyPayload | None = None
    by: Literal["client", "server"] = "client"
    cut: tuple[Annotated[int, Field(ge=1)], ...] | Literal["sni", "half", "name"] = ()
    order: tuple[Annotated[int, Field(ge=1)], ...] = ()
    overlap: Annotated[int, Field(ge=0)] = 0
    ttl: Ttl | None = None
    checksum: Literal["good", "bad"] = "good"
    md5: bool = False
    flags: Flags | None = None
    seq: int = 0
    ack: int | Literal["right", "wrong"] = "right"
    data_offset: Annotated[int, Field(ge=0, le=15)] | None = None
    window: Annotated[int, Field(ge=0, le=65535)] | None = None
    timestamp: Literal["old"] | None = None
    times: Annotated[int, Field(ge=1, le=200)] = 1
    every: Duration = 0.0
    fragments: tuple[Annotated[int, Field(ge=8, multiple_of=8)], ...] = ()
    fragment_order: tuple[Annotated[int, Field(ge=1)], ...] = ()

    outcome: Outcome | None = None
    server: str = "same"
    client: Literal["same", "other"] = "same"
    client_port: Port | Literal["above", "below", "equal"] | None = None
    from_: Annotated[Literal["inside", "outside"] | None, Field(alias="from")] = None
    ipv6: bool | None = None
    options: tuple[str, ...] = ()

    @property
    def verb(self) -> str:
        return next(name for name in _VERBS if name in self.given)

    @property
    def given(self) -> set[str]:
        return {type(self).model_fields[name].alias or name for name in self.model_fields_set}

    @model_validator(mode="after")
    def _sensible(self) -> Step:
        verbs = [name for name in _VERBS if name in self.given]
        if len(verbs) != 1:
            what = " and ".join(verbs) or "none"
            raise ValueError(f"a step has one of {', '.join(_VERBS)}; this one has {what}")
        allowed = _MODIFIERS.get(verbs[0], ())
        for name in sorted(self.given - {verbs[0]} - set(allowed)):
            raise ValueError(f"'{name}' means nothing for '{verbs[0]}'")
        if verbs[0] == "try" and self.outcome is None:
            raise ValueError("'try' needs 'outcome': free, blocked, reset or timeout")
        return self


# -- expectations -------------------------------------------------------------------------------------------------


class DnsAnswer(Section):
    """What a DNS answer holds. pool: networks that hold every address of it."""

    aa: bool | None = None
    ra: bool | None = None
    rd: bool | None = None
    flags: Numbers | None = None
    rcode: Numbers | None = None
    ttl: Numbers | None = None
    type: Literal["A", "AAAA"] | None = None
    pool: list[str] | None = None
    answers: Numbers | None = None
    questions: Numbers | None = None
    additional: Numbers | None = None


class Forged(Section):
    """A kind of injected packet, and how many of it.

    seq and ack: relative to what the receiver expects next, `+1460`; raw_seq, raw_ack: as they stand.
    increment: fields that grow by 1 from packet to packet. same: fields that are equal in all of them.
    """

    count: Numbers = Range(low=1, high=1)
    flags: Flags | None = None
    ttl: Numbers | Literal["mirrored"] | None = None
    id: Numbers | None = None
    df: bool | None = None
    window: Numbers | None = None
    seq: Annotated[list[int] | None, BeforeValidator(lambda value: [value] if isinstance(value, int) else value)] = None
    ack: int | None = None
    raw_seq: Numbers | None = None
    raw_ack: Numbers | None = None
    length: Numbers | None = None
    payload: Hex | None = None
    contains: str | None = None
    delay: Span | None = None
    dns: DnsAnswer | None = None
    increment: tuple[Literal["ttl", "window", "id"], ...] = ()
    same: tuple[Literal["ttl", "window", "id", "seq"], ...] = ()


def _as_forged(value: object) -> object:
    if value in ("none", "nothing"):
        return []
    return [value] if isinstance(value, dict) else value


ForgedList = Annotated[list[Forged] | Numbers, BeforeValidator(_as_forged)]
Share = Annotated[str | int, AfterValidator(lambda value: _share(value))]


def _share(value: str | int) -> str | int:
    if isinstance(value, str) and value not in ("all", "none") and not re.fullmatch(r"\d+ of \d+|\d+", value):
        raise ValueError(f"'{value}' is not 'all', 'none', a number or 'M of N'")
    return value


class Expect(Section):
    """What must be so, at the latest some time after the last step. All of it counts from the last `expect` on.

    at_client, at_server: packets that arrived there although the other end never sent them. delivered: of the client's
    packets with a payload, how many reached the server; answered: the other way; packets_delivered, packets_answered:
    of all packets. server_reads: the server's program has read all that `send` sent. suspected: whether the censor has
    ordered probes (replay only). probes: connections that others opened to the server. real_answer: of the resolver.
    exit, output, took: of the program.
    """

    at_client: ForgedList | None = None
    at_server: ForgedList | None = None
    delivered: Share | None = None
    answered: Share | None = None
    packets_delivered: Share | None = None
    packets_answered: Share | None = None
    server_reads: bool | None = None
    connection: Literal["ok", "reset", "timeout", "blocked"] | None = None
    probes: Numbers | None = None
    suspected: bool | None = None
    real_answer: Literal["last", "arrives", "none"] | None = None
    exit: int | list[int] | None = None
    output: str | None = None
    took: Span | None = None


_SHORT: dict[str, dict[str, Any]] = {
    "passes": {"at_client": 0, "at_server": 0, "delivered": "all"},
    "evades": {"at_client": 0, "at_server": 0, "server_reads": True},
    "reset": {"at_client": [{"count": "1+", "flags": "R"}]},
    "resets": {"at_client": "1+", "at_server": "1+"},
    "dropped": {"at_client": 0, "at_server": 0, "delivered": "none"},
}


def _as_expect(value: object) -> object:
    if isinstance(value, str):
        if value not in _SHORT:
            raise ValueError(f"'{value}' is no expectation: write {', '.join(_SHORT)}, or a mapping")
        return _SHORT[value]
    return value


AnyExpect = Annotated[Expect, BeforeValidator(_as_expect)]
Step.model_rebuild()


# -- cases --------------------------------------------------------------------------------------------------------


def _clock(text: str) -> str:
    try:
        aware = datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        aware = False
    if not aware:
        raise ValueError(f"'{text}' is no date and time with an offset, as in '2024-11-15T04:30:00+08:00'")
    return text


Clock = Annotated[str, AfterValidator(_clock)]


class Rate(Section):
    """How often the case holds. `not`: published or thinkable rates that the number of repetitions must tell apart."""

    published: Annotated[float, Field(ge=0, le=1)]
    tolerance: Annotated[float, Field(gt=0, le=0.5)]
    not_: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(alias="not")] = ()


class Quantiles(Section):
    """Bounds for quantiles, over all repetitions, of the delay of the first injected packet at the client."""

    p5: Span | None = None
    p50: Span | None = None
    p95: Span | None = None


class Changes(Section):
    """What another era has else."""

    behaviour: str | None = None
    cite: str | None = None
    evidence: Evidence | None = None
    rule: str | list[str] | None = None
    where: Where | None = None
    must_not: bool | None = None
    steps: list[Step] | None = None
    expect: AnyExpect | None = None
    rate: Rate | None = None
    repeat: Annotated[int, Field(ge=1, le=2000)] | None = None
    delays: Quantiles | None = None
    clock: Clock | None = None
    gap: str | None = None
    note: str | None = None


class CaseEntry(Section):
    """One behaviour, and the script that shows it. gap: why the profile does not show it yet."""

    id: Name
    behaviour: str
    cite: str
    evidence: Evidence
    profiles: list[Name] | None = None
    rule: str | list[str] | None = None
    must_not: bool = False
    where: Where = "both"
    clock: Clock | None = None
    repeat: Annotated[int, Field(ge=1, le=2000)] = 1
    rate: Rate | None = None
    delays: Quantiles | None = None
    steps: list[Step]
    expect: AnyExpect | None = None
    eras: Annotated[dict[Name, Changes], Field(default_factory=dict)]
    gap: str | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _sensible(self) -> CaseEntry:
        if self.rate is not None:
            check_rate(self.rate.published, self.rate.tolerance, self.rate.not_, self.repeat)
        if self.rule is None and not self.must_not:
            raise ValueError("'rule' is missing: which rule makes this true? (or say must_not: true)")
        if self.delays is not None and self.repeat < 50:
            raise ValueError("'delays' needs repeat: 50 or more")
        return self


class CaseFile(Section):
    """A file of cases about one mechanism. `profiles`, `cite` of the file are taken where a case has none."""

    version: Literal[1]
    mechanism: str
    about: str = ""
    profiles: list[Name] | None = None
    cases: list[CaseEntry]
