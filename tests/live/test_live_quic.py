"""How the censor reads QUIC: versions, ClientHellos over several datagrams, coalesced packets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from live_kit import Client
from live_nodes import Node
from live_quic import HandQuic, Rewrite, small_initial
from live_tls import outcome

pytestmark = pytest.mark.kernel

# Refused at once where the rule fires, so that no test waits for silence.
RULE = """rules:
  - {name: quic, match: {quic.sni: blocked.example}, action: icmp_unreachable, with: {code: port}}
"""
RULES = f"version: 1\n{RULE}"
V4, V6 = "203.0.113.10", "2001:db8:f::10"
ADDRESSES = pytest.mark.parametrize("address", [V4, V6])
BLOCKED, INNOCENT = "www.blocked.example", "www.allowed.example"


def as_they_are(datagrams: Sequence[bytes]) -> Sequence[bytes]:
    return datagrams


def backwards(datagrams: Sequence[bytes]) -> Sequence[bytes]:
    return datagrams[::-1]


def coalesced(datagrams: Sequence[bytes]) -> Sequence[bytes]:
    return [datagrams[0] + small_initial(datagrams[0]), *datagrams[1:]]


def behind_a_ping(datagrams: Sequence[bytes]) -> Sequence[bytes]:
    return [small_initial(datagrams[0]) + datagrams[0], *datagrams[1:]]


def after_a_ping(datagrams: Sequence[bytes]) -> Sequence[bytes]:
    return [small_initial(datagrams[0]) + bytes(1200), *datagrams]


def visit(
    client: Client,
    node: Node,
    name: str,
    address: str,
    rewrite: Rewrite = as_they_are,
    *,
    version: int = 1,
    padding: int = 0,
) -> str:
    quic = HandQuic(client.lab, node.datagrams(address, 443), name, version=version, padding=padding)
    assert len(quic.first) > 1 or not padding
    return outcome(lambda: quic.handshake(rewrite))


@ADDRESSES
@pytest.mark.parametrize(
    ("knobs", "rewrite", "version", "padding", "expected"),
    [
        ("{}", as_they_are, 1, 0, "refused"),
        ("{}", as_they_are, 2, 0, "refused"),
        ("{}", as_they_are, 1, 2000, "refused"),
        ("{}", backwards, 1, 2000, "refused"),
        ("{}", as_they_are, 2, 2000, "refused"),
        ("{}", coalesced, 1, 0, "refused"),
        ("{reassembly: false}", as_they_are, 1, 0, "refused"),
        ("{reassembly: false}", as_they_are, 1, 2000, "ok"),
        ("{versions: [1]}", as_they_are, 1, 0, "refused"),
        ("{versions: [1]}", as_they_are, 2, 0, "ok"),
        ("{versions: [0x6b3343cf]}", as_they_are, 2, 0, "refused"),
        ("{versions: [0x6b3343cf]}", as_they_are, 1, 0, "ok"),
    ],
)
def test_what_the_engine_reads_of_quic(
    client: Client,
    client_node: Node,
    address: str,
    knobs: str,
    rewrite: Rewrite,
    version: int,
    padding: int,
    expected: str,
) -> None:
    client.load(f"version: 1\nengine: {{quic: {knobs}}}\n{RULE}")
    assert visit(client, client_node, BLOCKED, address, rewrite, version=version, padding=padding) == expected
    assert visit(client, client_node, INNOCENT, address, rewrite, version=version, padding=padding) == "ok"


@ADDRESSES
@pytest.mark.parametrize("rewrite", [behind_a_ping, after_a_ping])
def test_the_client_hello_need_not_come_first(
    client: Client, client_node: Node, address: str, rewrite: Rewrite
) -> None:
    """Only the blocked name: the lab's server itself gives up on such a beginning."""
    client.load(RULES)
    assert visit(client, client_node, BLOCKED, address, rewrite) == "refused"


@ADDRESSES
def test_upper_case_and_the_name_below(client: Client, client_node: Node, address: str) -> None:
    client.load(RULES)
    assert visit(client, client_node, "WWW.Blocked.EXAMPLE", address) == "refused"
    assert visit(client, client_node, "not-blocked.example", address) == "ok"
