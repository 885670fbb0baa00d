"""What the mini-internet is told to be: addresses, names, sites, resolvers, services.

The lab fills these dataclasses from its topology and hands them over as one JSON file (`Plan.to_json`, `load_plan`).
Addresses are text (`192.0.2.1`, `2001:db8::1`). Those that something listens on must exist on an interface of the
namespace before the mini-internet starts; `Plan.addresses` lists them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from gfwemu.errors import UsageError

SiteKind = Literal["http", "https", "h3"]
CertificateKind = Literal["trusted", "untrusted", "self-signed", "expired", "wrong-name"]
Behaviour = Literal[
    "normal", "blockpage", "captcha", "redirect", "status", "close", "reset", "stall", "slow", "tls-close", "tls-reset"
]
ResolverKind = Literal["udp", "tcp", "dot", "doh"]
OpenVpnVariant = Literal["plain", "tls-auth", "tls-crypt", "tls-crypt-v2"]
Transport = Literal["tcp", "udp"]


def _v4(text: str) -> str:
    if ip_address(text).version != 4:
        raise ValueError(f"{text} is not an IPv4 address")
    return text


def _v6(text: str) -> str:
    if ip_address(text).version != 6:
        raise ValueError(f"{text} is not an IPv6 address")
    return text


def _network(text: str) -> str:
    return str(ip_network(text))


def _name(text: str) -> str:
    return text.rstrip(".").lower()


V4 = Annotated[str, AfterValidator(_v4)]
V6 = Annotated[str, AfterValidator(_v6)]
Network = Annotated[str, AfterValidator(_network)]
Name = Annotated[str, AfterValidator(_name)]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Strict:
    """Unknown keys are errors, also when the topology's models embed these dataclasses."""

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site(_Strict):
    """One web site.

    `names`: exact names, or `*.suffix` for everything below a suffix (the suffix itself not included); IDNA A-labels.
    `listen` empty: the name resolves, and nobody listens (the kernel refuses, or, when the address exists nowhere, the
    packets are lost). `v4` and `v6` both empty: the name exists without an address.

    `certificate`: what TLS shows; anything but `trusted` is an innocent failure (curl 60).
    `behaviour`: what the server does with every request:
      normal (see sites.py for the paths) · blockpage (451 and the page) · captcha (403 and a challenge page) ·
      redirect (302 to `location`) · status (`status` and a short text) · close (ends the connection without an
      answer; curl 52) · reset (RST instead of an answer) · stall (never answers) · slow (one byte of body each
      200 ms) · tls-close, tls-reset (ends the connection, or sends RST, instead of a TLS ServerHello).
    `https_records`: texts of HTTPS resource records (RFC 9460) such as `1 . alpn=h3,h2`; none by default.
    """

    names: tuple[Name, ...]
    v4: tuple[V4, ...] = ()
    v6: tuple[V6, ...] = ()
    listen: tuple[SiteKind, ...] = ("http", "https", "h3")
    http_port: Port = 80
    https_port: Port = 443
    behaviour: Behaviour = "normal"
    location: str = ""
    status: int = 404
    certificate: CertificateKind = "trusted"
    https_records: tuple[str, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        return (*self.v4, *self.v6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolver(_Strict):
    """A recursive resolver that knows the whole plan. DoH answers at `https://NAME-OR-ADDRESS/dns-query`."""

    names: tuple[Name, ...] = ()
    v4: tuple[V4, ...] = ()
    v6: tuple[V6, ...] = ()
    listen: tuple[ResolverKind, ...] = ("udp", "tcp", "dot", "doh")

    @property
    def addresses(self) -> tuple[str, ...]:
        return (*self.v4, *self.v6)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVpn(_Strict):
    """An OpenVPN server. Its client configuration is `NAME.ovpn` in the plan's directory.

    Where no TUN device can be opened, server and client run with `dev null`: the handshake is real, the tunnel is not.
    """

    kind: Literal["openvpn"] = "openvpn"
    name: str
    address: str
    port: Port = 1194
    transport: Transport = "udp"
    variant: OpenVpnVariant = "plain"
    tunnel: Network | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WireGuard(_Strict):
    """A WireGuard server (wireguard-go). Client: `NAME.conf` and the script `NAME-up` in the plan's directory."""

    kind: Literal["wireguard"] = "wireguard"
    name: str
    address: str
    port: Port = 51820
    tunnel: Network | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssh(_Strict):
    """An OpenSSH server; key-only login as user `lab`. Client: `ssh -F $GFWEMU_LAB/NAME.config NAME`."""

    kind: Literal["ssh"] = "ssh"
    name: str
    address: str
    port: Port = 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo(_Strict):
    """Sends back whatever it gets, over TCP or UDP."""

    kind: Literal["echo"] = "echo"
    name: str
    address: str
    port: Port = 7
    transport: Transport = "tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink(_Strict):
    """Reads and never answers, over TCP (for fully encrypted and random payloads)."""

    kind: Literal["sink"] = "sink"
    name: str
    address: str
    port: Port = 9


Service = Annotated[OpenVpn | WireGuard | Ssh | Echo | Sink, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(_Strict):
    """Everything that the mini-internet serves.

    `directory`: where certificates, client configurations and logs go; made when missing, kept when it exists.
    `catch_all`: the site behind every name that nothing else mentions; its own `names` may be empty.
    `absent`: names that do not exist (NXDOMAIN), with everything below them; `invalid` (RFC 6761) is always absent.
    `tunnels`: the pool from which VPN services without a `tunnel` of their own get one /29 each.
    """

    directory: str
    catch_all: Site | None = None
    sites: tuple[Site, ...] = ()
    resolvers: tuple[Resolver, ...] = ()
    absent: tuple[Name, ...] = ()
    services: tuple[Service, ...] = ()
    tunnels: Network = "203.0.113.128/25"
    ttl: Annotated[int, Field(ge=0)] = 60

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address that something listens on, in the plan's order, each once."""
        found: dict[str, None] = {}
        for site in (*self.sites, *((self.catch_all,) if self.catch_all else ())):
            if site.listen:
                found.update(dict.fromkeys(site.addresses))
        for resolver in self.resolvers:
            if resolver.listen:
                found.update(dict.fromkeys(resolver.addresses))
        found.update(dict.fromkeys(service.address for service in self.services))
        return tuple(found)


def load_plan(path: Path) -> Plan:
    """Read a plan. Raises `UsageError` that names the wrong entries."""
    try:
        return TypeAdapter(Plan).validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the plan {path}: {error.strerror}") from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'plan'}: {e['msg']}" for e in error.errors())
        raise UsageError(f"the plan {path} is wrong: {wrong}") from None
