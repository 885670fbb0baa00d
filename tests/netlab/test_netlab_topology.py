"""Topology files: the shipped ones, and everything that can be wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.errors import UsageError
from gfwemu.netlab.design import NODES, design_nodes
from gfwemu.netlab.internet.plan import Plan
from gfwemu.netlab.links import find_link
from gfwemu.netlab.topology import Topology, load_topology, topology_names

BARE = Path(__file__).parents[2] / "lab" / "topologies" / "bare.yaml"


def changed(path: Path, change: Any) -> Path:
    tree = yaml.safe_load(BARE.read_text())
    change(tree)
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("name", topology_names())
def test_a_shipped_topology_loads(name: str) -> None:
    topology = load_topology(name)
    assert topology.description
    assert [node.name for node in design_nodes(topology, None, None, ipv6=True)] == list(NODES)


def test_the_default_topology_is_among_the_names() -> None:
    assert {"bare", "default"} <= set(topology_names())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.update(clients=[]), "clients: unknown key"),
        (lambda t: t.pop("client"), "client: is missing"),
        (lambda t: t.update(client=["192.0.2.300/25"]), "client: '192.0.2.300/25' does not appear to be"),
        (lambda t: t.update(client=[]), "should have at least 1 item"),
        (
            lambda t: t.update(client=["198.51.100.9/24", "2001:db8:1::10/64"]),
            "client and access.inside must share one IPv4 network",
        ),
        (lambda t: t.update(client=["192.0.2.10/25"]), "client and access.inside must share one IPv6 network"),
        (
            lambda t: (t.update(client=["2001:db8:1::10/64"]), t["access"].update(inside=["2001:db8:1::1/64"])),
            "client and access.inside need an IPv4 address each",
        ),
        (
            lambda t: t.update(client=["192.0.2.1/25", "2001:db8:1::10/64"]),
            "access.inside and client both have the address 192.0.2.1",
        ),
        (lambda t: t.update(path={"inside": {"hops": 0}}), "path.inside.hops: input should be greater than"),
        (lambda t: t.update(path={"outside": {"rtt": "5 parsecs"}}), "'5 parsecs' is not a duration"),
        (lambda t: t.update(path={"outside": {"loss": "100%"}}), "path.outside.loss: input should be less than 1"),
        (lambda t: t.update(path={"outside": {"loss": "much%"}}), "path.outside.loss: 'much%' is not a percentage"),
        (lambda t: t["internet"].update(addresses=["here"]), "internet.addresses.0: 'here' does not appear to be"),
        (
            lambda t: (t.update(forwarder=True), t["internet"].update(sites=[{"names": ["a.example"]}])),
            "the forwarder needs a resolver in internet.resolvers",
        ),
        (
            lambda t: t["internet"].update(sites=[{"names": ["a.example"], "behavior": "reset"}]),
            "internet.sites.0.behavior: unknown key",
        ),
        (lambda t: t.update(version=2), "version: input should be less than or equal to 1"),
    ],
)
def test_a_wrong_topology_is_refused_with_the_place(tmp_path: Path, change: Any, expected: str) -> None:
    path = changed(tmp_path / "wrong.yaml", change)
    with pytest.raises(UsageError) as caught:
        load_topology(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = changed(tmp_path / "wrong.yaml", lambda t: t.update(client=["x"], surplus=1, forwarder="maybe"))
    with pytest.raises(UsageError) as caught:
        load_topology(path)
    lines = str(caught.value).splitlines()
    assert [line.removeprefix(f"{path}: ").split(":")[0] for line in lines] == ["client", "forwarder", "surplus"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2", "is not YAML: while parsing a flow sequence"),
        ("just text", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: \x00", "is not YAML"),
    ],
)
def test_a_file_that_is_no_topology_at_all(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"^The topology") as caught:
        load_topology(path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_topology_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot read the topology .*: No such file or directory"):
        load_topology(tmp_path / "missing.yaml")


def test_an_unknown_name_comes_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="no topology 'defualt'; did you mean 'default'"):
        load_topology("defualt")
    with pytest.raises(UsageError, match="no topology 'xyzzy'; the names are bare, default"):
        load_topology("xyzzy")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from(sorted(Topology.model_fields)), value=_VALUES)
def test_any_value_anywhere_is_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, key: str, value: Any) -> None:
    path = changed(tmp_path_factory.getbasetemp() / "any.yaml", lambda t: t.update({key: value}))
    try:
        found: Topology | str = load_topology(path)
    except UsageError as error:
        found = str(error)
    assert isinstance(found, Topology) or str(path) in found


def test_hops_become_decrements_beyond_the_routers_own() -> None:
    access, transit = (design_nodes(load_topology("default"), None, None, ipv6=True)[at] for at in (1, 3))
    assert access.extra_hops == load_topology("default").path.inside.hops - 1
    assert transit.extra_hops == load_topology("default").path.outside.hops - 1


def test_a_line_is_shaped_between_client_and_access_router() -> None:
    access = design_nodes(load_topology("bare"), None, find_link("3g"), ipv6=True)[1]
    assert [(hook.pipe.name, hook.chain, hook.interface) for hook in access.hooks] == [
        ("line-up", "PREROUTING", "inside"),
        ("line-down", "POSTROUTING", "inside"),
    ]
    assert [hook.pipe.rate for hook in access.hooks] == [96_000.0, 200_000.0]


def test_without_ipv6_no_node_has_an_address_or_a_route_of_it() -> None:
    plan = Plan(directory="/nowhere", resolvers=load_topology("default").internet.resolvers)
    for node in design_nodes(load_topology("default"), plan, None, ipv6=False):
        assert not [address for address in node.addresses if ":" in address]
        assert not [route for route in node.routes if ":" in route.via]


def test_everybody_has_a_way_to_everybody() -> None:
    """A small routing simulation over the blueprint, so that a wrong route is found without a kernel."""
    from ipaddress import ip_address, ip_interface, ip_network

    nodes = design_nodes(load_topology("default"), None, None, ipv6=True)
    owner = {address: index for index, node in enumerate(nodes) for address in node.addresses}
    for start in range(len(nodes)):
        for target, home in owner.items():
            at, seen = start, 0
            while at != home:
                seen += 1
                assert seen <= len(nodes), f"no way from {nodes[start].name} to {target}"
                address = ip_address(target)
                attached = [
                    end
                    for end in (nodes[at].left, nodes[at].right)
                    if end and any(address in ip_interface(text).network for text in end.addresses)
                ]
                if attached:
                    at = home
                    continue
                routes = [
                    route
                    for route in nodes[at].routes
                    if ip_address(route.via).version == address.version
                    and (route.destination == "default" or address in ip_network(route.destination))
                ]
                assert routes, f"{nodes[at].name} has no route to {target}"
                at = owner[max(routes, key=lambda route: route.destination != "default").via]
