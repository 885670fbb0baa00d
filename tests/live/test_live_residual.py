"""Residual blocks: whom they meet, whom not, how long, and what they do."""

from __future__ import annotations

import socket
import time

import pytest
from live_kit import Client
from live_nodes import Node
from live_tcp import SYN
from live_tls import Hello, outcome, read_until

from gfwemu.netlab.internet.plan import Site

pytestmark = pytest.mark.kernel

# The censor's clock runs ten times faster: 20 s of it are 2 s.
SCALE = 10
SECONDS = 2.0
KINDS = {
    "two": "{key: 2tuple, seconds: 20, action: drop}",
    "three": "{key: 3tuple, seconds: 20, action: reset}",
    "four": "{key: 4tuple, seconds: 20, action: drop}",
    "renewed": "{key: 3tuple, seconds: 10, action: drop, refresh: true}",
    "plain": "{key: 3tuple, seconds: 10, action: drop, refresh: false}",
    "same": "{key: 3tuple, seconds: 300}",
    "chance": "{key: 3tuple, seconds: 600, action: reset, probability: 0.5}",
    "later": "{key: 3tuple, seconds: 20, after: 10s, action: reset}",
    "to-server": "{key: 3tuple, seconds: 100, action: drop, direction: to_server}",
    "to-client": "{key: 3tuple, seconds: 100, action: drop, direction: to_client}",
    "whole": "{key: 2tuple, seconds: 20, action: reset}",
    "server": "{key: server, seconds: 20, action: drop}",
    "server-port": "{key: server_port, seconds: 20, action: drop}",
}
RULES = "version: 1\ndefaults: {seed: 11}\nrules:\n" + "".join(
    f"  - {{name: {name}, match: {{tls.sni: {name}.example}}, action: reset, residual: {residual}}}\n"
    for name, residual in KINDS.items()
)
SITES = [
    Site(names=(f"{name}.example",), v4=(f"203.0.113.{number}",), v6=(f"2001:db8:f::{number}",))
    for number, name in enumerate(KINDS, 100)
]
LAB = {"extra_sites": SITES, "time_scale": SCALE}
FAMILIES = pytest.mark.parametrize("version", [4, 6])
# Shorter than the kernel's first repetition of a SYN, so that what comes is the answer to the first.
PATIENCE = 0.9
SILENCE = 0.3


def address_of(name: str, version: int) -> str:
    site = SITES[list(KINDS).index(name)]
    return site.v4[0] if version == 4 else site.v6[0]


def second(version: int) -> str:
    """The client's other address."""
    return "192.0.2.11" if version == 4 else "2001:db8:1::11"


def trigger(client: Client, node: Node, name: str, version: int, *, local_port: int = 0) -> float:
    """Sets the rule off; returns when."""
    with node.connect(address_of(name, version), 443, local_port=local_port) as tcp:
        tcp.sendall(Hello(client.lab, f"{name}.example").record)
        now = time.monotonic()
        assert outcome(lambda: tcp.recv(1)) == "reset"
    return now


def visit(
    node: Node, address: str, port: int = 443, *, source: str = "", local_port: int = 0, patience: float = PATIENCE
) -> str:
    def connect() -> None:
        node.connect(address, port, source=source, local_port=local_port, timeout=patience).close()

    return outcome(connect)


def met(node: Node, address: str, port: int = 443, *, local_port: int = 0) -> str:
    return visit(node, address, port, local_port=local_port, patience=SILENCE)


def until(node: Node, wanted: str, address: str, *, local_port: int = 0) -> float:
    """Visits until that is met; returns when something else was met last."""
    deadline = time.monotonic() + 10
    last = 0.0
    while visit(node, address, local_port=local_port, patience=SILENCE) != wanted:
        last = time.monotonic()
        assert last < deadline, f"never met {wanted}"
    return last


@FAMILIES
def test_a_2tuple_meets_every_port_and_no_other_server_or_client(
    client: Client, client_node: Node, version: int
) -> None:
    address = address_of("two", version)
    assert visit(client_node, address) == "ok"
    trigger(client, client_node, "two", version)
    assert met(client_node, address) == "timeout"
    assert met(client_node, address, 80) == "timeout"
    assert visit(client_node, address_of("same", version)) == "ok"
    assert visit(client_node, address, source=second(version)) == "ok"


@FAMILIES
def test_a_3tuple_meets_every_client_port_and_no_other_server_port(
    client: Client, client_node: Node, version: int
) -> None:
    address = address_of("three", version)
    trigger(client, client_node, "three", version)
    assert visit(client_node, address) == "refused"
    assert visit(client_node, address) == "refused"
    assert visit(client_node, address, 80) == "ok"
    assert visit(client_node, address, source=second(version)) == "ok"
    assert client.events("residual", "three")[0]["censor"]["key"] == "3tuple"


@FAMILIES
def test_a_4tuple_meets_its_client_port_only(client: Client, client_node: Node, version: int) -> None:
    address = address_of("four", version)
    trigger(client, client_node, "four", version, local_port=41_000)
    assert met(client_node, address, local_port=41_000) == "timeout"
    assert visit(client_node, address, local_port=41_001) == "ok"
    assert visit(client_node, address, 80, local_port=41_000) == "ok"


@FAMILIES
@pytest.mark.parametrize("name", ["two", "three", "four"])
def test_a_block_ends_after_its_time(client: Client, client_node: Node, version: int, name: str) -> None:
    address, port = address_of(name, version), 42_000 if name == "four" else 0
    if name != "four":
        # Earlier tests may have left a block; a new trigger is possible once that is over.
        until(client_node, "ok", address)
    began = trigger(client, client_node, name, version, local_port=port)
    last_met = until(client_node, "ok", address, local_port=port) - began
    ended = time.monotonic() - began
    assert last_met > SECONDS - 2 * SILENCE
    assert SECONDS - SILENCE < ended < SECONDS + 1.0


@FAMILIES
def test_only_refreshed_blocks_are_renewed_by_those_they_meet(client: Client, client_node: Node, version: int) -> None:
    renewed, plain = address_of("renewed", version), address_of("plain", version)
    trigger(client, client_node, "renewed", version)
    began = trigger(client, client_node, "plain", version)
    ends = {}
    while time.monotonic() - began < 2.5:
        if met(client_node, renewed) == "ok":
            ends["renewed"] = time.monotonic() - began
        if "plain" not in ends and met(client_node, plain) == "ok":
            ends["plain"] = time.monotonic() - began
    assert set(ends) == {"plain"}
    assert ends["plain"] < 2.0
    # Left alone for its time, it ends, too: nothing may be sent meanwhile.
    time.sleep(1.3)
    assert visit(client_node, renewed) == "ok"


@FAMILIES
def test_an_open_connection_falls_under_the_block_and_comes_out_again(
    client: Client, client_node: Node, version: int
) -> None:
    """Both of its ends were decided, and left to the kernel, before."""
    request = b"GET / HTTP/1.1\r\nHost: two.example\r\n\r\n"
    address = address_of("two", version)
    until(client_node, "ok", address)
    with client_node.connect(address, 80) as tcp:
        for _ in range(3):
            tcp.sendall(request)
            read_until(tcp, b"hello from two.example over http/1.1\n")
        trigger(client, client_node, "two", version)
        tcp.settimeout(SILENCE)
        tcp.sendall(request)
        assert outcome(lambda: tcp.recv(4096)) == "timeout"
        tcp.settimeout(10)
        read_until(tcp, b"hello from two.example over http/1.1\n")


@FAMILIES
@pytest.mark.parametrize("name", ["server", "server-port"])
def test_a_server_is_lost_for_every_client_open_connections_included(
    client: Client, client_node: Node, version: int, name: str
) -> None:
    """That of another client had been decided, and left to the kernel, before."""
    port = 80 if name == "server" else 443
    address, other = address_of(name, version), second(version)
    with client_node.connect(address, port, source=other) as bystander:
        # No TLS, whatever the port: nothing is left to look for in this connection.
        bystander.sendall(b"GET / HTTP/1.1\r\nHost: two.example\r\n\r\n")
        client.dig("www.allowed.example")
        trigger(client, client_node, name, version)
        began = time.monotonic()
        with client_node.sniffer() as sniffer:
            bystander.sendall(b"GET / HTTP/1.1\r\nHost: two.example\r\n\r\n")
            assert visit(client_node, address, port, source=other, patience=SILENCE) == "timeout"
            assert visit(client_node, address, 22, source=other) == ("refused" if name == "server-port" else "timeout")
            local = bystander.getsockname()[1]
            assert [s for s in sniffer.segments(dport=local, sent=False) if not s.packet.flags & 2] == []
            assert sniffer.wait(lambda: sniffer.segments(dport=local, sent=False), 10)
        assert time.monotonic() - began > SECONDS - SILENCE


@FAMILIES
def test_a_residual_reset_ends_an_open_connection(client: Client, client_node: Node, version: int) -> None:
    with client_node.connect(address_of("whole", version), 80) as tcp:
        trigger(client, client_node, "whole", version)
        tcp.sendall(b"GET / HTTP/1.1\r\nHost: x.example\r\n\r\n")
        assert outcome(lambda: tcp.recv(4096)) == "reset"
    assert visit(client_node, address_of("whole", version), 80) == "refused"


@FAMILIES
def test_the_same_action_again(client: Client, client_node: Node, version: int) -> None:
    trigger(client, client_node, "same", version)
    assert visit(client_node, address_of("same", version)) == "refused"


@FAMILIES
def test_a_block_with_a_probability_meets_some(client: Client, client_node: Node, version: int) -> None:
    trigger(client, client_node, "chance", version)
    seen = [visit(client_node, address_of("chance", version)) for _ in range(24)]
    assert set(seen) == {"ok", "refused"}
    assert 4 <= seen.count("ok") <= 20


@FAMILIES
def test_a_block_that_begins_later(client: Client, client_node: Node, version: int) -> None:
    address = address_of("later", version)
    began = trigger(client, client_node, "later", version)
    until(client_node, "refused", address)
    assert 0.9 < time.monotonic() - began < 2.0
    until(client_node, "ok", address)
    assert 2.9 < time.monotonic() - began < 4.0


@FAMILIES
@pytest.mark.parametrize(("name", "arrives"), [("to-server", False), ("to-client", True)])
def test_a_block_of_one_direction(
    client: Client, client_node: Node, internet_node: Node, version: int, name: str, arrives: bool
) -> None:
    trigger(client, client_node, name, version)
    with internet_node.sniffer() as server:
        tcp = client_node.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_STREAM)
        tcp.settimeout(SILENCE)
        assert outcome(lambda: tcp.connect((address_of(name, version), 443))) == "timeout"
        port = tcp.getsockname()[1]
        syns = [seen for seen in server.segments(sport=port) if seen.packet.flags & SYN]
    assert bool(syns) == arrives
