"""What a rule orders: one model for each action; `with:` in a rule file fills its fields.

These models are both the schema of the rule file and the parameters that the engine enforces.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from gfwemu.rules.quantities import Duration, Rate, Size, Varied, VariedDuration, VariedNumber, VariedSize

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Way = Literal["both", "to_server", "to_client"]
Ends = Literal["both", "client", "server"]


class Model(BaseModel):
    """Unknown keys are refused everywhere: a misspelt key never silently does nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Injector(Model):
    """One machine that injects: the header template of its packets and its delay after the trigger.

    ttl: a number or range; `mirror` copies the trigger's TTL; `increment` counts up by one for each packet.
    window and ip_id likewise. seq_offsets: one packet for each entry, added to the correct sequence number (the three
    resets at +0, +1460, +4380 of Clayton et al. 2006 are [0, 1460, 4380]). `count` repeats each of them.
    """

    name: str = ""
    count: Annotated[int, Field(ge=1, le=64)] = 1
    flags: Annotated[str, Field(pattern=r"^[FSRPAUEC]+$")] | None = None
    ttl: VariedNumber | Literal["mirror", "increment"] = Varied.constant(64)
    window: VariedNumber | Literal["mirror", "increment"] = Varied.constant(0)
    ip_id: VariedNumber | Literal["mirror", "increment"] | None = None
    df: bool = False
    seq_offsets: tuple[int, ...] = (0,)
    payload: Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2}\s*)*$")] = ""
    delay: VariedDuration = Varied.constant(0.0)
    probability: Probability = 1.0
    towards: Ends | None = None
    authoritative: bool = False
    answer_ttl: VariedNumber | None = None


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


class Poison(Model):
    """A forged DNS answer for the query that matched. Of `a`, `aaaa` and `rcode`, what the query asks for is used.

    With neither addresses of the asked type nor `rcode: nxdomain` the answer is empty (NOERROR, no data).
    Addresses are taken in turn (`order: cyclic`) or at random.
    """

    a: tuple[str, ...] = ()
    aaaa: tuple[str, ...] = ()
    rcode: Literal["noerror", "nxdomain", "refused", "servfail"] = "noerror"
    answer_ttl: Annotated[int, Field(ge=0, le=2_147_483_647)] = 60
    order: Literal["cyclic", "random"] = "cyclic"
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
    """Every packet is dropped with that probability."""

    probability: Probability
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
}

NOT_TERMINAL: frozenset[str] = frozenset({"throttle", "delay", "lose", "alert"})
"""After these, later rules still look at the flow."""

ON_PATH_ABLE: frozenset[str] = frozenset(
    {"reset", "fin", "poison", "blockpage", "redirect", "tls_alert", "alert", "pass"}
)
"""Actions that need no more than injecting. `redirect` only with `location`."""


class Residual(Model):
    """What happens to the same endpoints for a while after the rule fired.

    key: 2tuple (client, server address), 3tuple (client, server address, server port), 4tuple (and client port).
    refresh: every packet that meets the block starts its time anew. probability: of each new flow to meet the block.
    after: that long after the trigger the block begins. action `same`: what the rule orders.
    """

    key: Literal["2tuple", "3tuple", "4tuple"] = "3tuple"
    seconds: VariedDuration = Varied.constant(180.0)
    refresh: bool = False
    action: Literal["same", "drop", "reset"] = "same"
    direction: Way = "both"
    probability: Probability = 1.0
    after: VariedDuration = Varied.constant(0.0)


__all__ = ["ACTIONS", "NOT_TERMINAL", "ON_PATH_ABLE", "Action", "Duration", "Injector", "Model", "Residual"]
