"""Topology files: the addresses of the chain, the path's hops and delays, and the mini-internet behind it.

The chain itself is fixed: client, access (the ISP's router), censor, transit, internet.
"""

from __future__ import annotations

import difflib
import re
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from gfwemu.errors import UsageError
from gfwemu.netlab.internet.plan import Name, Resolver, Service, Site
from gfwemu.rules.quantities import Duration

_HERE = Path(__file__).resolve().parent
DIRECTORIES = (_HERE.parents[1] / "lab" / "topologies", _HERE.parent / "data" / "topologies")


def _interfaces(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(ip_interface(address)) for address in addresses)


def _address(text: str) -> str:
    return str(ip_address(text))


def _percentage(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)%", value)
    if found is None:
        raise ValueError(f"'{value}' is not a percentage, as in '2.5%'")
    return float(found.group(1)) / 100


def _network(text: str) -> str:
    return str(ip_network(text))


Addresses = Annotated[tuple[str, ...], AfterValidator(_interfaces), Field(min_length=1)]
Loss = Annotated[float, BeforeValidator(_percentage), Field(ge=0, lt=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ends(_Strict):
    """A router's two interfaces; addresses with their prefix length, at most one prefix per family and end."""

    inside: Addresses
    outside: Addresses


class Stretch(_Strict):
    """A stretch of the path on one side of the censor.

    `hops`: routers between that side's end and the censor. `rtt`: there and back. `loss`: in each direction.
    """

    hops: Annotated[int, Field(ge=1, le=64)] = 1
    rtt: Duration = 0.0
    loss: Loss = 0.0


class Way(_Strict):
    inside: Stretch = Stretch()
    outside: Stretch = Stretch()


class Internet(_Strict):
    """What the mini-internet serves; `addresses` exist there although nobody listens on them."""

    addresses: tuple[Annotated[str, AfterValidator(_address)], ...] = ()
    resolvers: tuple[Resolver, ...] = ()
    sites: tuple[Site, ...] = ()
    catch_all: Site | None = None
    absent: tuple[Name, ...] = ()
    services: tuple[Service, ...] = ()
    tunnels: str = "203.0.113.128/25"
    ttl: Annotated[int, Field(ge=0)] = 60

    @property
    def serves(self) -> bool:
        return bool(self.resolvers or self.sites or self.catch_all or self.services)


class Topology(_Strict):
    """A topology file.

    `probers`: networks whose addresses the censor's active probers use. `forwarder`: whether the ISP's resolver runs on
    the access router (it needs a resolver).
    """

    version: Annotated[int, Field(ge=1, le=1)] = 1
    description: str = ""
    client: Addresses
    access: Ends
    censor: Ends
    transit: Ends
    internet_link: Addresses
    path: Way = Way()
    probers: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    forwarder: bool = True
    offloads: bool = False
    internet: Internet = Internet()

    @model_validator(mode="after")
    def _neighbours_share_networks(self) -> Topology:
        pairs = (
            ("client", self.client, "access.inside", self.access.inside),
            ("access.outside", self.access.outside, "censor.inside", self.censor.inside),
            ("censor.outside", self.censor.outside, "transit.inside", self.transit.inside),
            ("transit.outside", self.transit.outside, "internet_link", self.internet_link),
        )
        seen: dict[str, str] = {}
        for left_name, left, right_name, right in pairs:
            for name, group in ((left_name, left), (right_name, right)):
                for text in group:
                    address = text.split("/")[0]
                    if address in seen:
                        raise ValueError(f"{name} and {seen[address]} both have the address {address}")
                    seen[address] = name
            for version in (4, 6):
                networks = [{i.network for i in of_version(group, version)} for group in (left, right)]
                if networks[0] != networks[1] or len(networks[0]) > 1:
                    raise ValueError(f"{left_name} and {right_name} must share one IPv{version} network")
                if version == 4 and not networks[0]:
                    raise ValueError(f"{left_name} and {right_name} need an IPv4 address each")
        if self.forwarder and self.internet.serves and not self.internet.resolvers:
            raise ValueError("the forwarder needs a resolver in internet.resolvers; add one or set forwarder: false")
        return self


def of_version(addresses: tuple[str, ...], version: int) -> list[IPv4Interface | IPv6Interface]:
    """The addresses of one family."""
    return [address for address in map(ip_interface, addresses) if address.version == version]


def topology_names() -> list[str]:
    """The topologies that come with gfwemu."""
    return sorted({path.stem for directory in DIRECTORIES for path in directory.glob("*.yaml")})


def load_topology(name_or_path: str | Path) -> Topology:
    """Read a topology by path or by name. Raises UsageError that says everything that is wrong."""
    path = _find(str(name_or_path))
    try:
        tree: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read the topology {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"The topology {path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise UsageError(f"The topology {path} must be a mapping; see lab/topologies/default.yaml for one.")
    try:
        return Topology.model_validate(tree)
    except ValidationError as error:
        raise UsageError("\n".join(f"{path}: {_problem(one)}" for one in error.errors())) from None


def _problem(error: ErrorDetails) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "topology"
    reason = _REASONS.get(error["type"], error["msg"].removeprefix("Value error, "))
    return f"{where}: {reason[:1].lower()}{reason[1:]}"


_REASONS = {
    "extra_forbidden": "unknown key",
    "unexpected_keyword_argument": "unknown key",
    "missing": "is missing",
    "missing_keyword_only_argument": "is missing",
}


def _find(text: str) -> Path:
    path = Path(text)
    if "/" in text or path.suffix in {".yaml", ".yml"}:
        return path
    for directory in DIRECTORIES:
        if (directory / f"{text}.yaml").is_file():
            return directory / f"{text}.yaml"
    near = difflib.get_close_matches(text, topology_names(), 1)
    hint = f"did you mean '{near[0]}'?" if near else f"the names are {', '.join(topology_names())}."
    raise UsageError(f"There is no topology '{text}'; {hint}")
