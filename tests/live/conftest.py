"""The live tests share a lab for each module: real programs, the real queue, rules of every feature."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

sys.path.extend(str(Path(__file__).resolve().parents[1] / name) for name in ("live", "dissect", "rules"))

from live_kit import HERE, TOPOLOGY, Client
from live_nodes import Node
from live_tcp import Wire

from gfwemu.netlab.internet.plan import Service
from gfwemu.netlab.lab import Lab
from gfwemu.netlab.topology import load_topology


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client behind the module's censor: its `RULES` (YAML), else features.yaml.

    `LAB`: options of the lab; `services` as in a topology file, `capture` for one in the client's directory,
    `topology` by name instead of topology.yaml. A module that is run with several of them has a list, `LABS`.
    """
    rules = HERE / "features.yaml"
    directory = tmp_path_factory.mktemp("rules")
    if text := getattr(request.module, "RULES", None):
        rules = directory / "rules.yaml"
        rules.write_text(text)
    options: dict[str, Any] = dict(getattr(request, "param", None) or getattr(request.module, "LAB", {}))
    services = TypeAdapter(list[Service]).validate_python(options.pop("services", []))
    if options.pop("capture", False):
        options["pcap"] = directory / "capture.pcapng"
    topology = load_topology(options.pop("topology", TOPOLOGY))
    with Lab(topology, rules=[rules], extra_services=services, **options) as lab:
        yield Client(lab, directory)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    labs = getattr(metafunc.module, "LABS", {})
    if labs and "client" in metafunc.fixturenames:
        metafunc.parametrize("client", list(labs.values()), ids=list(labs), indirect=True, scope="module")


@pytest.fixture(scope="module")
def client_node(client: Client) -> Iterator[Node]:
    with Node(client.lab, "client") as node:
        yield node


@pytest.fixture(scope="module")
def internet_node(client: Client) -> Iterator[Node]:
    with Node(client.lab, "internet") as node:
        yield node


@pytest.fixture(scope="module")
def wire(client: Client) -> Iterator[Wire]:
    with Node(client.lab, "client") as node, Node(client.lab, "access") as access:
        yield Wire(node, access)


@pytest.fixture(autouse=True)
def _sockets_end_with_their_test(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in ("client_node", "internet_node"):
        if name in request.fixturenames:
            request.getfixturevalue(name).close_sockets()
