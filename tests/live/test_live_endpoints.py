"""Rules on nothing but addresses and ports: the kernel decides them alone, and as the engine would."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from live_kit import Client, wait_for
from live_nodes import Node, Seen, packed
from live_tls import outcome

from gfwemu.netlab.internet.plan import Site

pytestmark = pytest.mark.kernel

SITES = [
    Site(names=(f"{name}.example",), v4=(f"203.0.113.{number}",), v6=(f"2001:db8:f::{number}",))
    for number, name in enumerate(("drop", "reset", "icmp", "pass", "half", "ports", "client"), 101)
]
ADDRESS = {(site.names[0].partition(".")[0], version): (site.v4 if version == 4 else site.v6)[0]
           for site in SITES for version in (4, 6)}  # fmt: skip


def both(name: str) -> str:
    return f"[{ADDRESS[name, 4]}, '{ADDRESS[name, 6]}']"


CODES = (("network", 8001, "network"), ("host", "[8002, 443]", "host"), ("port", 8003, "port"))
RULES = f"""version: 1
rules:
  - {{name: drop, match: {{ip.server: {both("drop")}}}, action: drop}}
  - {{name: reset, match: {{ip.server: {both("reset")}}}, action: reset}}
  - {{name: pass, match: {{ip.server: {both("pass")}, port.server: 443}}, action: pass}}
{
    "".join(
        f'''
  - name: {name}
    match: {{ip.server: {both("icmp")}, port.server: {port}}}
    action: icmp_unreachable
    with: {{code: {code}}}
'''
        for name, port, code in CODES
    )
}
  - {{name: admin, match: {{ip.server: {both("icmp")}, port.server: 8004}}, action: icmp_unreachable}}
  - {{name: half, match: {{ip.server: {both("half")}}}, action: drop, with: {{direction: to_client}}}}
  - {{name: ports, match: {{ip.server: {both("ports")}, port.server: [81-442, 80]}}, action: reset}}
  - {{name: after-pass, match: {{ip.server: {both("pass")}}}, action: drop}}
  - {{name: client, match: {{ip.client: [192.0.2.11, "2001:db8:1::11"], ip.server: {both("client")}}}, action: reset}}
"""
LABS: dict[str, dict[str, Any]] = {
    "kernel": {"extra_sites": SITES},
    "engine": {"extra_sites": SITES, "daemon_options": ["--no-offload"]},
}
VERSIONS = pytest.mark.parametrize("version", [4, 6])
SILENCE = 0.4


def visit(node: Node, name: str, version: int, port: int = 443, *, source: str = "", patience: float = 0.9) -> str:

    def connect() -> None:
        node.connect(ADDRESS[name, version], port, source=source, timeout=patience).close()

    try:
        return outcome(connect)
    except OSError as error:
        return type(error).__name__ if error.errno is None else f"errno {error.errno}"


@VERSIONS
@pytest.mark.parametrize(
    ("name", "port", "expected"),
    [
        ("drop", 443, "timeout"),
        ("drop", 80, "timeout"),
        ("reset", 443, "refused"),
        ("reset", 80, "refused"),
        ("pass", 443, "ok"),
        ("pass", 80, "timeout"),
        ("half", 443, "timeout"),
        ("ports", 80, "refused"),
        ("ports", 443, "ok"),
        ("icmp", 443, "errno 113"),
        ("icmp", 80, "ok"),
        ("client", 443, "ok"),
    ],
)
def test_endpoints(client_node: Node, version: int, name: str, port: int, expected: str) -> None:
    patience = SILENCE if expected == "timeout" else 0.9
    if name == "icmp":
        # An error that comes while the kernel is still busy with the SYN counts at the next SYN only, after a second.
        patience = 4
    assert visit(client_node, name, version, port, patience=patience) == expected


@VERSIONS
def test_a_rule_for_one_client(client_node: Node, version: int) -> None:
    second = "192.0.2.11" if version == 4 else "2001:db8:1::11"
    assert visit(client_node, "client", version, source=second) == "refused"
    assert visit(client_node, "ports", version, source=second) == "ok"


@VERSIONS
def test_a_drop_of_one_direction_lets_the_other_pass(client_node: Node, internet_node: Node, version: int) -> None:
    with internet_node.sniffer() as sniffer:
        for name, arrives in (("half", True), ("drop", False)):
            assert visit(client_node, name, version, patience=SILENCE) == "timeout"
            target = ADDRESS[name, version]
            arrived = [seen for seen in sniffer.look() if seen.packet.dst == packed(target)]
            assert bool(arrived) == arrives


# IP version, port, and the code of the answer (RFC 792, RFC 1122 section 3.2.2.1, RFC 1812; RFC 4443 section 3.1).
@pytest.mark.parametrize(
    ("version", "port", "code"),
    [(4, 8001, 0), (4, 8002, 1), (4, 8003, 3), (4, 8004, 13), (6, 8001, 0), (6, 8002, 3), (6, 8003, 4), (6, 8004, 1)],
)
def test_icmp_codes(client_node: Node, version: int, port: int, code: int) -> None:
    with client_node.sniffer() as sniffer, client_node.datagrams(ADDRESS["icmp", version], port) as udp:
        own = udp.getsockname()[1]
        udp.send(b"anybody there?")

        def errors() -> list[Seen]:
            return [seen for seen in sniffer.look() if not seen.sent and seen.packet.proto in (1, 58)]

        (error,) = sniffer.wait(errors)
    header = 40 if version == 6 else 20
    kind, said, quoted = error.data[header], error.data[header + 1], error.data[header + 8 :]
    assert (kind, said) == (1 if version == 6 else 3, code)
    assert quoted[header : header + 4] == own.to_bytes(2, "big") + port.to_bytes(2, "big")


def test_who_decided(client: Client, client_node: Node, request: pytest.FixtureRequest) -> None:
    """The kernel's own decisions are counted, and told at the end of its rules; the engine tells of each flow."""
    visit(client_node, "drop", 4, patience=SILENCE)
    by_kernel = "kernel" in request.node.name
    assert bool(client.hits("drop")) != by_kernel
    if by_kernel:
        client.lab.attached.signal_service("daemon", signal.SIGHUP)
        told: Callable[[], list[dict[str, Any]]] = lambda: client.events("kernel-rule", "drop")  # noqa: E731
        assert wait_for(told)[0]["censor"]["packets"] > 0
