"""The models of a rule file: what may stand where. The JSON Schema for editors comes from them, too.

`match:` and `with:` are open here: what they may hold depends on the field and on the action, and is read by
`conditions` and by the models of `actions`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from gfwemu.rules.actions import Residual
from gfwemu.rules.odds import Chance
from gfwemu.rules.protocols import (
    KNOWN_KEYS_ONLY,
    DnsSection,
    HttpSection,
    OpenvpnSection,
    QuicSection,
    TlsSection,
    WireguardSection,
)
from gfwemu.rules.quantities import Duration, Size
from gfwemu.rules.tcp import TcpSection

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
PlacementName = Literal["on-path", "in-path"]
Evidence = Literal["found", "secondary", "computed", "anecdote", "recall", "inference", "guess"]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Bytes = Annotated[Size, Field(ge=1, le=1_000_000_000)]
Seconds = Annotated[Duration, Field(gt=0, le=31_536_000)]


class Section(BaseModel):
    """Unknown keys are refused everywhere."""

    model_config = KNOWN_KEYS_ONLY


class ListEntry(Section):
    """A list, from a file (relative to the rule file) or written out under `entries`."""

    file: str | None = None
    entries: list[str] | None = None
    format: Literal["domains", "cidr", "hosts", "dnsmasq", "gfwlist", "v2fly", "regex", "text", "mmdb"] = "domains"
    country: list[Annotated[str, Field(pattern=r"^[A-Za-z]{2}$")]] | None = None
    attributes: list[str] | None = None


class Defaults(Section):
    """What the rules of this file use where they say nothing themselves. Included files keep their own defaults."""

    seed: Annotated[int, Field(ge=0)] | None = None
    placement: PlacementName | None = None
    residual: Residual | None = None
    probability: Chance | None = None


class FragmentSection(Section):
    """How this censor treats IP fragments."""

    reassemble: bool | None = None
    limit: Annotated[int, Field(ge=1, le=8192)] | None = None
    timeout: Seconds | None = None
    on_overlap: Literal["first", "last", "first_unless_wider", "drop"] | None = None
    datagrams: Count | None = None


class IpSection(Section):
    """The IP layer."""

    fragments: FragmentSection = FragmentSection()


class FlowSection(Section):
    """How many flows this censor remembers, and how long."""

    limit: Count | None = None
    tcp_opening: Seconds | None = None
    tcp_established: Seconds | None = None
    tcp_closing: Seconds | None = None
    udp: Seconds | None = None
    other: Seconds | None = None
    residual_limit: Count | None = None


class LimitSection(Section):
    """Bounds: packets held at once, bytes that one dissector keeps of one direction of a stream."""

    hold_packets: Count | None = None
    stream: Bytes | None = None


class BoxSection(Section):
    """How one box reads traffic, where it differs from `engine:`. Boxes stand in series, each a censor of its own."""

    tcp: TcpSection = TcpSection()
    tls: TlsSection = TlsSection()
    quic: QuicSection = QuicSection()
    http: HttpSection = HttpSection()
    dns: DnsSection = DnsSection()
    ip: IpSection = IpSection()
    flows: FlowSection = FlowSection()
    openvpn: OpenvpnSection = OpenvpnSection()
    wireguard: WireguardSection = WireguardSection()
    limits: LimitSection = LimitSection()


class EngineSection(BoxSection):
    """How this censor reads traffic. The last file that sets a knob wins; a file comes after those it includes."""

    on_error: Literal["accept", "drop"] | None = None
    fail_open: bool | None = None


class SubscriberEntry(Section):
    """Who sits behind these client addresses."""

    addresses: list[str]
    groups: list[str] = []


class ScheduleEntry(Section):
    """When a rule is in force. Everything given must hold; `hours` may run over midnight."""

    hours: str | list[str] | None = None
    days: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] | None = None
    dates: str | list[str] | None = None
    timezone: str = "UTC"


class RuleEntry(Section):
    """One rule: what it matches and what it orders."""

    name: Name
    match: dict[str, Any]
    action: str
    with_: dict[str, Any] = Field(default={}, alias="with")
    residual: Residual | Literal["none"] | None = None
    probability: Chance | None = None
    repeat: bool = False
    placement: PlacementName | None = None
    schedule: ScheduleEntry | None = None
    box: Name | None = None
    cite: str = ""
    observed: str = ""
    evidence: Evidence | None = None
    guessed: list[str] = []


class RuleFile(Section):
    """A rule file."""

    version: Literal[1]
    description: str = ""
    include: list[str] = []
    disable: list[str] = []
    replace: list[str] = []
    lists: dict[Name, ListEntry] = {}
    defaults: Defaults = Defaults()
    engine: EngineSection = EngineSection()
    boxes: dict[Name, BoxSection] = {}
    inside: list[str] = []
    subscribers: dict[Name, SubscriberEntry] = {}
    rules: list[RuleEntry] = []
