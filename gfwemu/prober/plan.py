"""Which probes when: drawn from an action's numbers, without a clock or a socket.

Everything random comes from the generator that is handed in, so that a seed settles a whole campaign.
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Literal

from pydantic import TypeAdapter

from gfwemu.engine.commands import SendProbes
from gfwemu.model import address_text
from gfwemu.rules.quantities import Varied

LAB_NETWORKS: tuple[IPv4Network | IPv6Network, ...] = tuple(
    map(ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"))
)
"""Probes go to these addresses only, which exist in laboratories alone (RFC 5737, RFC 3849)."""

LOWEST_PORT = 1024
_MOST_PROBES = 256
"""Of one request. One payload was replayed up to 47 times (Alice et al., IMC 2020)."""

Send = Literal["replay", "random", "tls", "tor", "http"]

HTTP_PROBE = (
    b"POST /vpnsvc/connect.cgi HTTP/1.1\r\nContent-Type: image/jpeg\r\nContent-Length: 1972\r\n\r\nGIF89a" + bytes(1966)
)
"""The first message of a SoftEther client: a picture in a POST. The prober's own bytes are not published: a guess."""


@dataclass(frozen=True, slots=True)
class Type:
    """As `ProbeType` in a rule file."""

    name: str
    send: Send
    changed: tuple[int, ...]
    length: Varied
    weight: float
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """As the command `SendProbes`, in plain values: it travels as one line of JSON. payload: hex."""

    request_id: int
    server: str
    port: int
    payload: str
    types: tuple[Type, ...]
    count: Varied
    delay: Varied
    timeout: Varied
    pool: tuple[str, ...]
    ttl: Varied
    source_port: Varied

    @classmethod
    def of(cls, order: SendProbes) -> Request:
        action = order.action
        return cls(
            order.request_id,
            address_text(order.server),
            order.port,
            order.payload.hex(),
            tuple(Type(one.name, one.send, one.changed, one.length, one.weight, one.after) for one in action.types),
            action.count,
            action.delay,
            action.timeout,
            action.pool,
            action.ttl,
            action.source_port,
        )

    def to_line(self) -> bytes:
        return _REQUESTS.dump_json(self) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Request:
        """Raises ValueError."""
        return _REQUESTS.validate_json(line)


_REQUESTS = TypeAdapter(Request)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One probe. data is empty where a protocol is spoken (`tls`, `tor`). ttl: at the server."""

    type: str
    send: Send
    data: bytes
    source: str
    port: int
    ttl: int
    timeout: float


def is_lab_address(text: str) -> bool:
    address = ip_address(text)
    return any(address in network for network in LAB_NETWORKS)


def delays(request: Request, rng: random.Random) -> list[float]:
    """When the probes are sent: seconds of the censor's clock after the order, ascending."""
    count = min(_MOST_PROBES, max(0, request.count.sample_int(rng)))
    return sorted(request.delay.sample(rng) for _ in range(count))


def choose(request: Request, answered: Container[str], rng: random.Random) -> Type | None:
    """The next type, by weight; of those that come after others only where one of these was answered.

    answered: names of the types to which the server sent data. Without a payload there is nothing to replay.
    """
    able = [
        one
        for one in request.types
        if (request.payload or one.send != "replay") and (not one.after or any(name in answered for name in one.after))
    ]
    return rng.choices(able, [one.weight for one in able])[0] if able else None


def prepare(request: Request, kind: Type, rng: random.Random) -> Attempt | None:
    """Draws everything of one probe. None where no address of the pool is of the server's family."""
    networks = [network for network in map(ip_network, request.pool) if network.version == _version(request.server)]
    if not networks:
        return None
    return Attempt(
        kind.name,
        kind.send,
        contents(kind, bytes.fromhex(request.payload), rng),
        _address(networks, rng),
        source_port(request, rng),
        request.ttl.sample_int(rng),
        request.timeout.sample(rng),
    )


def source_port(request: Request, rng: random.Random) -> int:
    return min(65535, max(LOWEST_PORT, round(request.source_port.sample(rng))))


def contents(kind: Type, payload: bytes, rng: random.Random) -> bytes:
    match kind.send:
        case "replay":
            replay = bytearray(payload)
            for offset in kind.changed:
                if offset < len(replay):
                    replay[offset] ^= rng.randrange(1, 256)
            return bytes(replay)
        case "random":
            return rng.randbytes(max(1, round(kind.length.sample(rng))))
        case "http":
            return HTTP_PROBE
    return b""


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _address(networks: Sequence[IPv4Network | IPv6Network], rng: random.Random) -> str:
    """Any address of the networks, as likely as any other, without the first and the last of a network of several."""
    sizes = [network.num_addresses for network in networks]
    network = rng.choices(networks, sizes)[0]
    spared = 1 if network.num_addresses > 2 else 0
    return str(network[rng.randrange(spared, network.num_addresses - spared)])
