"""What a rule orders: one model for each action; `with:` in a rule file fills its fields.

These models are both the schema of the rule file and the parameters that the engine enforces.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gfwemu.model import Placement
from gfwemu.rules.odds import CERTAIN, Chance
from gfwemu.rules.quantities import Duration, HeaderField, Rate, Size, Varied, VariedDuration, VariedNumber, VariedSize

Way = Literal["both", "to_server", "to_client"]
Ends = Literal["both", "client", "server"]
FlagWord = Annotated[int, Field(ge=0x8000, le=0xFFFF)]
Aaaa = Literal["teredo"] | tuple[str, ...]
"""`teredo`: 2001::/32 with the low 32 bits an address of the IPv4 pool and zeros between (Hoang et al., USENIX Security
2021; Sheffey et al., 2025)."""


class Model(BaseModel):
    """Unknown keys are refused everywhere: a misspelt key never silently does nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Injector(Model):
    """One machine that injects: the header template of its packets and its delay after the trigger.

    ttl: a number or range; `mirror` copies the trigger's TTL; `increment` counts up by one for each packet it ever
    sends; `{increment_from: 60-200}` for each packet of a burst, from a value drawn for that burst. window and ip_id
    likewise. seq_offsets: one packet for each entry, added to the correct sequence number (the three resets at +0,
    +1460, +4380 of Clayton et al. 2006 are [0, 1460, 4380]). `count` repeats each of them; the copies are identical
    unless a field counts up from packet to packet. jitter: drawn for each packet and added to `delay`, so that
    packets of a burst may change places. probability: `{value: 0.35, per: endpoints}` draws once for client address
    and port and server address, for ever (Bhaskar and Pearce, USENIX Security 2022). flags: with `redirect`,
    `blockpage` and `tls_alert` those of the last segment, after which nothing more is sent to the client.
    Of `poison` only: a, aaaa: addresses of this injector alone, in its own turn (Fan et al., NDSS 2025: each process
    has a list of its own); dns_flags, dns_flags_no_rd: the whole flag word in answer to a query with and without RD
    (0x8180 and 0x8400 in Fan et al.), to which `rcode` is added.
    """

    name: str = ""
    count: Annotated[int, Field(ge=1, le=64)] = 1
    flags: Annotated[str, Field(pattern=r"^[FSRPAUEC]+$")] | None = None
    ttl: HeaderField = Varied.constant(64)
    window: HeaderField = Varied.constant(0)
    ip_id: HeaderField | None = None
    df: bool = False
    seq_offsets: tuple[int, ...] = (0,)
    payload: Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2}\s*)*$")] = ""
    delay: VariedDuration = Varied.constant(0.0)
    jitter: VariedDuration = Varied.constant(0.0)
    probability: Chance = CERTAIN
    towards: Ends | None = None
    authoritative: bool = False
    answer_ttl: VariedNumber | None = None
    a: tuple[str, ...] = ()
    aaaa: Aaaa = ()
    dns_flags: FlagWord | None = None
    dns_flags_no_rd: FlagWord | None = None


class Pass(Model):
    """The flow passes, and no later rule looks at it."""


class Drop(Model):
    """The packet that matched and those after it vanish. `after`: that long after the match, the trigger passing."""

    direction: Way = "both"
    trigger: bool = True
    after: VariedDuration = Varied.constant(0.0)


class Reset(Model):
    """Forged TCP resets. In-path, the trigger and the rest of the flow are dropped too; on-path they pass."""

    towards: Ends = "both"
    injectors: tuple[Injector, ...] = (Injector(),)


class Fin(Model):
    """A forged FIN, as an orderly close by the other end."""

    towards: Ends = "both"
    injectors: tuple[Injector, ...] = (Injector(),)


class RewriteToReset(Model):
    """Packets of the flow in that direction become RST/ACK in place: same sequence numbers, TTL and addresses."""

    direction: Way = "to_client"


class NameGroup(Model):
    """Names, with their subdomains, that have false addresses of their own.

    33 Google names share four addresses (Anonymous et al., FOCI 2020).
    """

    names: tuple[str, ...]
    a: tuple[str, ...] = ()
    aaaa: Aaaa = ()


class Poison(Model):
    """A forged DNS answer for the query that matched. Of `a`, `aaaa` and `rcode`, what the query asks for is used.

    With neither addresses of the asked type nor `rcode: nxdomain` the answer is empty (NOERROR, no data).
    `other_types: a` answers queries for all types but A and AAAA with an A record (Fan et al., "Wallbleed", NDSS
    2025). Addresses are taken in turn (`order: cyclic`) or at random. `groups`: names with addresses of their own;
    the first group that has the name counts. On-path, later rules look at the same query too: each injector of its
    own list is a rule.
    """

    a: tuple[str, ...] = ()
    aaaa: Aaaa = ()
    rcode: Literal["noerror", "nxdomain", "refused", "servfail"] = "noerror"
    answer_ttl: Annotated[int, Field(ge=0, le=2_147_483_647)] = 60
    order: Literal["cyclic", "random"] = "cyclic"
    other_types: Literal["empty", "a"] = "empty"
    groups: tuple[NameGroup, ...] = ()
    injectors: tuple[Injector, ...] = (Injector(),)


class Blockpage(Model):
    """A forged HTTP response to the request that matched, then FIN to the client and RST to the server."""

    status: Annotated[int, Field(ge=200, le=599)] = 451
    body: str = "<html><body><h1>This site is blocked</h1></body></html>\n"
    headers: dict[str, str] = {}
    injectors: tuple[Injector, ...] = (Injector(),)


class Redirect(Model):
    """HTTP: a forged redirect to `location`. Any protocol: `address` (and `port`) replaces the server's own."""

    location: str = ""
    status: Literal[301, 302, 303, 307, 308] = 302
    address: tuple[str, ...] = ()
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    injectors: tuple[Injector, ...] = (Injector(),)


class TlsAlert(Model):
    """A forged TLS alert record to the client (RFC 8446 section 6), then FIN."""

    description: Annotated[int, Field(ge=0, le=255)] = 49
    injectors: tuple[Injector, ...] = (Injector(),)


class Throttle(Model):
    """A token bucket. `police` drops the excess, `shape` holds it (at most `limit` bytes wait, the rest drops)."""

    rate: Rate
    mode: Literal["police", "shape"] = "police"
    per: Literal["flow", "subscriber", "rule"] = "flow"
    direction: Way = "both"
    burst: Size = 16_000
    limit: Size = 64_000


class Delay(Model):
    """Every packet waits; the order of a flow is kept."""

    time: VariedDuration
    direction: Way = "both"


class Lose(Model):
    """Every packet is dropped with that probability. It may depend on the hour."""

    probability: Chance
    direction: Way = "both"


class Freeze(Model):
    """After that many packets or bytes the flow goes silent: no reset, only drops.

    `counting` says what counts: one direction, or both summed. `payload_only`: bare ACKs do not count.
    """

    packets: VariedNumber | None = None
    bytes: VariedSize | None = None
    counting: Literal["sum", "to_server", "to_client", "either"] = "sum"
    payload_only: bool = False
    direction: Way = "both"


class IcmpUnreachable(Model):
    """An ICMP destination unreachable to the client for each packet to the server, which is dropped."""

    code: Literal["network", "host", "port", "admin_prohibited"] = "admin_prohibited"


class Alert(Model):
    """Only an event; the flow goes on and later rules still look at it."""


Reaction = Literal["confirmed", "data", "reset", "fin", "timeout", "refused", "unreachable"]
"""Of a server to a probe: it speaks the protocol that was asked for; other bytes; a RST or a FIN before any byte;
nothing until the prober gave up; a RST to the SYN; no answer to the SYN."""


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text))


class ProbeType(Model):
    """One kind of probe.

    send: `replay` the first payload of the connection that set the rule off, with the bytes at the offsets `changed`
    replaced by others; `random` bytes, as many as `length` says; `tls`: a ClientHello; `tor`: a TLS handshake and a
    VERSIONS cell; `http`: SoftEther's POST. weight: its share among the probes. after: only once the server answered
    one of these types with data.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    send: Literal["replay", "random", "tls", "tor", "http"]
    changed: tuple[Annotated[int, Field(ge=0, le=65535)], ...] = ()
    length: VariedSize = Varied.constant(221)
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    after: tuple[str, ...] = ()


_NR1 = tuple(float(middle + step) for middle in (8, 12, 16, 22, 33, 41, 49) for step in (-1, 0, 1))

SHADOWSOCKS_PROBES = (
    ProbeType(name="R1", send="replay", weight=6),
    ProbeType(name="R2", send="replay", changed=(0,)),
    ProbeType(name="R3", send="replay", changed=(*range(8), 62, 63), after=("R1", "R2")),
    ProbeType(name="R4", send="replay", changed=(16,), after=("R1", "R2")),
    ProbeType(name="R5", send="replay", changed=(6, 16), weight=0.1, after=("R1", "R2")),
    ProbeType(name="NR1", send="random", length=Varied((), _NR1)),
    ProbeType(name="NR2", send="random", weight=3),
)
"""Alice et al., IMC 2020, sections 3.2 and 4.2: contents, staging, and 3 NR2 to 1 NR1. Guesses: replays' weights."""


class Probe(Model):
    """Somebody connects to the server afterwards and looks at how it reacts; the flow itself goes on.

    The defaults are the prober of Shadowsocks servers of Alice et al., IMC 2020: types; delay of the first replay after
    the connection; timeout below 10 s; ttl of its packets at the server; source_port; except for count (probes for each
    hit) and the tails of delay and source_port, which are guesses. pool: networks of the probers' addresses.
    blocks_when: any of these mappings of types to reactions; in each, every type must have met one of its reactions,
    and no `data` or `confirmed` that is not among them. Then, with block_probability, the block under `residual`
    begins. Delays follow the censor's clock, timeouts do not.
    """

    types: tuple[ProbeType, ...] = SHADOWSOCKS_PROBES
    count: VariedNumber = Varied.constant(4)
    delay: VariedDuration = Varied(
        ((0.01, 0.45), (0.05, 0.58), (0.2, 0.86), (0.5, 37.0), (0.75, 884.0), (0.9, 1156.0), (0.95, 1302.0))
    )
    timeout: VariedDuration = Varied.constant(9.0)
    pool: tuple[Annotated[str, AfterValidator(_network)], ...] = ("192.0.2.192/26", "2001:db8:9::/64")
    ttl: VariedNumber = Varied(((0.0, 46.0), (1.0, 50.0)))
    source_port: VariedNumber = Varied(((0.0, 1212.0), (0.05, 32768.0), (0.95, 60999.0), (1.0, 65535.0)))
    blocks_when: tuple[dict[str, tuple[Reaction, ...]], ...] = ()
    block_probability: Chance = CERTAIN


Action = (
    Pass
    | Drop
    | Reset
    | Fin
    | RewriteToReset
    | Poison
    | Blockpage
    | Redirect
    | TlsAlert
    | Throttle
    | Delay
    | Lose
    | Freeze
    | IcmpUnreachable
    | Alert
    | Probe
)

ACTIONS: dict[str, type[Model]] = {
    "pass": Pass,
    "drop": Drop,
    "reset": Reset,
    "fin": Fin,
    "rewrite_to_reset": RewriteToReset,
    "poison": Poison,
    "blockpage": Blockpage,
    "redirect": Redirect,
    "tls_alert": TlsAlert,
    "throttle": Throttle,
    "delay": Delay,
    "lose": Lose,
    "freeze": Freeze,
    "icmp_unreachable": IcmpUnreachable,
    "alert": Alert,
    "probe": Probe,
}

NOT_TERMINAL: frozenset[str] = frozenset({"throttle", "delay", "lose", "alert", "probe"})
"""After these, later rules still look at the flow; so they do after an on-path `poison`, and with `repeat: true`."""

REPEATABLE: frozenset[str] = frozenset({"reset", "fin", "blockpage", "redirect", "tls_alert"})
"""Actions that take `repeat: true`. `redirect` only with `location`."""


def decides(action_name: str, placement: Placement, *, repeat: bool) -> bool:
    """Whether later rules no longer look at what such a rule acted on."""
    answers_beside = action_name == "poison" and placement is Placement.ON_PATH
    return action_name not in NOT_TERMINAL and not answers_beside and not repeat


ON_PATH_ABLE: frozenset[str] = frozenset(
    {"reset", "fin", "poison", "blockpage", "redirect", "tls_alert", "alert", "pass", "probe"}
)
"""Actions that need no more than injecting. `redirect` only with `location`."""


class Escalation(Model):
    """A wider block: once the rule fired for `ports` ports of the same server while their blocks last.

    Shadowsocks servers were blocked by port or by whole address (Alice et al., IMC 2020); that the second port of a
    server costs it its address is what users of TLS proxies told in 2022 (net4people/bbs issue 129).
    """

    ports: Annotated[int, Field(ge=2, le=64)] = 2
    key: Literal["2tuple", "server"] = "2tuple"
    seconds: VariedDuration | None = None


class Residual(Model):
    """What happens to the same endpoints for a while after the rule fired.

    key: 2tuple (client, server address), 3tuple (client, server address, server port), 4tuple (and client port);
    server (its address, whoever the client is), server_port (its address and port). refresh: every packet that meets
    the block starts its time anew (the blocks of Tor bridges, 12 hours: Dunna et al., FOCI 2018). probability: of
    each new flow to meet the block; `{value: 0.5, per: packet}` of each packet. after: that long after the trigger
    the block begins. action `same`: what the rule orders. injectors, towards: of the resets, where they differ from
    the rule's own. syn `forged_synack`: a SYN is answered with a SYN/ACK of a wrong sequence number in the form of
    the first injector, all other packets with resets (Wang et al., IMC 2017, section 2.1). escalate: the block of a
    second port widens to the address.
    """

    key: Literal["2tuple", "3tuple", "4tuple", "server", "server_port"] = "3tuple"
    seconds: VariedDuration = Varied.constant(180.0)
    refresh: bool = False
    action: Literal["same", "drop", "reset"] = "same"
    direction: Way = "both"
    probability: Chance = CERTAIN
    after: VariedDuration = Varied.constant(0.0)
    towards: Ends | None = None
    injectors: tuple[Injector, ...] | None = None
    syn: Literal["reset", "forged_synack"] = "reset"
    escalate: Escalation | None = None

    @property
    def spans_ports(self) -> bool:
        """Whether a block meets other ports of the server, and other protocols, than the rule fired on."""
        return self.key in ("2tuple", "server") or self.escalate is not None

    @property
    def spans_clients(self) -> bool:
        """Whether a block meets other clients than the one that set the rule off."""
        return self.key in ("server", "server_port") or (self.escalate is not None and self.escalate.key == "server")


__all__ = ["ACTIONS", "NOT_TERMINAL", "ON_PATH_ABLE", "Action", "Duration", "Injector", "Model", "Residual"]
