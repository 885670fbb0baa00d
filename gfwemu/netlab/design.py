"""From a topology to a blueprint: every address, route, hop and pipe decided."""

from __future__ import annotations

from ipaddress import ip_interface

from gfwemu.netlab.blueprint import Hook, Interface, Node, Route
from gfwemu.netlab.internet.plan import Plan
from gfwemu.netlab.links import Link, Pipe
from gfwemu.netlab.topology import Ends, Stretch, Topology, of_version

NODES = ("client", "access", "censor", "transit", "internet")


def design_nodes(topology: Topology, plan: Plan | None, link: Link | None, *, ipv6: bool) -> tuple[Node, ...]:
    """The five nodes, from the client to the internet. `plan` adds its addresses to the internet's loopback."""

    def kept(addresses: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(address for address in addresses if ipv6 or ":" not in address)

    def ends(router: Ends) -> tuple[Interface, Interface]:
        return Interface("inside", kept(router.inside)), Interface("outside", kept(router.outside))

    client, internet = Interface("eth0", kept(topology.client)), Interface("eth0", kept(topology.internet_link))
    access, censor, transit = ends(topology.access), ends(topology.censor), ends(topology.transit)
    served = dict.fromkeys((*topology.internet.addresses, *(plan.addresses if plan else ())))
    taken = {address.split("/")[0] for address in internet.addresses}
    loopback = tuple(
        f"{address}/{128 if ':' in address else 32}" for address in kept(tuple(served)) if address not in taken
    )
    forwarder = tuple(a.split("/")[0] for a in access[0].addresses if ":" not in a)[:1]
    upstream = tuple(a for r in plan.resolvers for a in kept(r.addresses) if ":" not in a)[:1] if plan else ()
    resolvers = forwarder if topology.forwarder and upstream else upstream
    path = topology.path
    inner = [network for end in access for network in _networks(end)]
    return (
        Node("client", right=client, routes=_defaults(access[0], "eth0"), resolvers=resolvers),
        Node(
            "access",
            *access,
            routes=_defaults(censor[0], "outside"),
            forwards=True,
            extra_hops=path.inside.hops - 1,
            hooks=(*_line(link), *_stretch("inside", path.inside, "outside")),
            resolvers=upstream,
        ),
        Node(
            "censor",
            *censor,
            local=kept(topology.probers),
            routes=(*_defaults(transit[0], "outside"), *_towards(_networks(access[0]), access[1], "inside")),
            forwards=True,
            resolvers=upstream,
        ),
        Node(
            "transit",
            *transit,
            # Addresses that exist nowhere are lost at the internet node, without an answer.
            routes=(*_defaults(internet, "outside"), *_towards([*inner, *kept(topology.probers)], censor[1], "inside")),
            forwards=True,
            extra_hops=path.outside.hops - 1,
            hooks=_stretch("outside", path.outside, "outside"),
            resolvers=upstream,
        ),
        Node(
            "internet",
            left=internet,
            loopback=loopback,
            routes=_defaults(transit[1], "eth0"),
            resolvers=upstream,
        ),
    )


def _networks(interface: Interface) -> list[str]:
    return list(dict.fromkeys(str(ip_interface(address).network) for address in interface.addresses))


def _gateway(interface: Interface, version: int) -> str | None:
    found = of_version(interface.addresses, version)
    return str(found[0].ip) if found else None


def _defaults(gateway: Interface, interface: str) -> tuple[Route, ...]:
    vias = [_gateway(gateway, version) for version in (4, 6)]
    return tuple(Route("default", via, interface) for via in vias if via)


def _towards(networks: list[str], gateway: Interface, interface: str) -> tuple[Route, ...]:
    routes = []
    for network in networks:
        via = _gateway(gateway, 6 if ":" in network else 4)
        if via:
            routes.append(Route(network, via, interface))
    return tuple(routes)


def _line(link: Link | None) -> tuple[Hook, ...]:
    """The subscriber's line, so placed that the ISP's own resolver lies behind it."""
    if link is None:
        return ()
    return (
        Hook(link.pipe("line-up", down=False), "PREROUTING", "inside"),
        Hook(link.pipe("line-down", down=True), "POSTROUTING", "inside"),
    )


def _stretch(name: str, stretch: Stretch, interface: str) -> tuple[Hook, ...]:
    up, down = (Pipe(f"{name}-{way}", delay=stretch.rtt / 2, loss=stretch.loss) for way in ("up", "down"))
    if not up.shapes:
        return ()
    return Hook(up, "POSTROUTING", interface), Hook(down, "PREROUTING", interface)
