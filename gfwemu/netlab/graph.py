"""A topology drawn as text, and for Graphviz."""

from __future__ import annotations

from collections.abc import Iterator

from gfwemu.netlab.links import Link
from gfwemu.netlab.topology import Internet, Stretch, Topology

_NAME_WIDTH = 10


def draw_text(topology: Topology, link: Link | None, censor: str) -> str:
    """The chain from the client to the internet, one node a line, what lies between them on the lines between."""
    lines = []
    for name, addresses, note, between in _chain(topology, link, censor):
        lines.append(f"{name:{_NAME_WIDTH}}{'  '.join(addresses)}")
        if note:
            lines.append(f"{'':{_NAME_WIDTH}}{note}")
        if between is not None:
            lines.append(f"    |     {between}".rstrip())
    return "\n".join(lines)


def draw_dot(topology: Topology, link: Link | None, censor: str) -> str:
    """For `dot -Tsvg`."""
    lines = ["graph lab {", "  rankdir=LR;", "  node [shape=box];"]
    previous: tuple[str, str] | None = None
    for name, addresses, note, between in _chain(topology, link, censor):
        label = "\\n".join([name, *addresses, *([note] if note else [])]).replace('"', "'")
        lines.append(f'  {name} [label="{label}"];')
        if previous is not None:
            lines.append(f'  {previous[0]} -- {name} [label="{previous[1]}"];')
        previous = (name, between or "")
    return "\n".join([*lines, "}"])


def _chain(
    topology: Topology, link: Link | None, censor: str
) -> Iterator[tuple[str, tuple[str, ...], str, str | None]]:
    """Name, addresses, a note, and what lies between the node and the next one."""
    path = topology.path
    forwarder = "the ISP's resolver" if topology.forwarder and topology.internet.resolvers else ""
    yield "client", topology.client, "", f"line: {link}" if link else ""
    yield "access", (*topology.access.inside, *topology.access.outside), forwarder, _stretch(path.inside)
    yield "censor", (*topology.censor.inside, *topology.censor.outside), censor, ""
    yield "transit", (*topology.transit.inside, *topology.transit.outside), "", _stretch(path.outside)
    yield "internet", topology.internet_link, _contents(topology.internet), None


def _stretch(stretch: Stretch) -> str:
    parts = [f"{stretch.hops} hops" if stretch.hops > 1 else "1 hop"]
    if stretch.rtt:
        parts.append(f"{stretch.rtt * 1000:g} ms there and back")
    if stretch.loss:
        parts.append(f"{stretch.loss:.1%} lost")
    return ", ".join(parts)


def _contents(internet: Internet) -> str:
    counted = (("resolvers", internet.resolvers), ("sites", internet.sites), ("services", internet.services))
    parts = [f"{len(items)} {what}" for what, items in counted if items]
    if internet.catch_all is not None:
        parts.append("one site for every other name")
    return ", ".join(parts)
