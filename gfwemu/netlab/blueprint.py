"""What the supervisor is told to build: plain data, everything decided.

`design` draws it from a topology, `supervisor` builds it and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gfwemu.netlab.links import Pipe


@dataclass(frozen=True, slots=True)
class Interface:
    """One end of a veth pair; addresses as text with their prefix length."""

    name: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """`destination` is a prefix or `default`, `via` an address on `interface`."""

    destination: str
    via: str
    interface: str


@dataclass(frozen=True, slots=True)
class Hook:
    """A pipe and the place where its packets are caught: mangle PREROUTING -i or POSTROUTING -o an interface."""

    pipe: Pipe
    chain: str
    interface: str


@dataclass(frozen=True, slots=True)
class Node:
    """One network namespace of the chain.

    `left` and `right` lie towards the client and towards the internet. `extra_hops`: how much the node takes off the
    TTL beyond its own one. `local`: networks all of whose addresses are the node's own. `resolvers`: the nameservers
    that programs on this node see.
    """

    name: str
    left: Interface | None = None
    right: Interface | None = None
    loopback: tuple[str, ...] = ()
    local: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    forwards: bool = False
    extra_hops: int = 0
    hooks: tuple[Hook, ...] = ()
    resolvers: tuple[str, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address of the node without its prefix length."""
        ends = [end.addresses for end in (self.left, self.right) if end is not None]
        return tuple(address.split("/")[0] for group in (*ends, self.loopback) for address in group)


@dataclass(frozen=True, slots=True)
class Service:
    """A program that the supervisor starts on a node.

    It gets the descriptor number of its readiness pipe appended to `argv` and writes one byte there within `deadline`
    seconds. Its output goes to `NAME.log` in the lab's directory. Services stop in the order in which they are listed.
    """

    name: str
    node: str
    argv: tuple[str, ...]
    deadline: float
    stop_deadline: float = 3.0


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A whole lab. `nodes` from the client to the internet; `owner` is the process whose end ends the lab (0: none).

    `environment`: what programs inside get. `labels`: what `gfwemu lab status` says about the lab.
    """

    name: str
    directory: str
    nodes: tuple[Node, ...]
    services: tuple[Service, ...] = ()
    owner: int = 0
    seed: int = 0
    offloads: bool = False
    ipv6: bool = True
    authority: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
