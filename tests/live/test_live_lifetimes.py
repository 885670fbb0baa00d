"""How long the censor remembers a flow that is silent: what it decided ends with its memory, whoever carries it out."""

from __future__ import annotations

import time
from typing import Any

import pytest
from live_drive import ECHO, ECHO_PORT, ECHO_V6, ECHOES
from live_kit import Client
from live_nodes import Node
from live_tcp import HandTcp, Wire
from live_tls import outcome, read_until

pytestmark = pytest.mark.kernel

RULES = """version: 1
engine: {flows: {tcp_established: 1s, udp: 1s, tcp_opening: 60s}}
rules:
  - {name: host, match: {http.host: met.example}, action: drop}
  - {name: first, match: {payload.number: 1, payload.contains: first}, action: alert}
"""
LABS: dict[str, dict[str, Any]] = {
    "offload": {"services": ECHOES},
    "no-offload": {"services": ECHOES, "daemon_options": ["--no-offload"]},
}
ADDRESSES = pytest.mark.parametrize("address", ["203.0.113.10", "2001:db8:f::10"])
REQUEST = b"GET / HTTP/1.1\r\nHost: met.example\r\n\r\n"
SILENCE = 0.4


def ask(tcp: HandTcp) -> str:
    """The request once more, as if it had never arrived."""
    tcp.put(tcp.build(REQUEST))
    return outcome(lambda: read_until(tcp, b"200"))


@ADDRESSES
def test_a_dropped_flow_is_forgotten_after_its_time(wire: Wire, address: str) -> None:
    """What comes then is a flow whose beginning the censor did not see."""
    tcp = HandTcp(wire, address, 80, timeout=SILENCE).connect()
    assert ask(tcp) == "timeout"
    time.sleep(0.3)
    assert ask(tcp) == "timeout"
    time.sleep(1.3)
    assert ask(tcp) == "ok"
    tcp.close()


@pytest.mark.parametrize("address", [ECHO, ECHO_V6])
def test_a_silent_exchange_of_datagrams_begins_anew(client: Client, client_node: Node, address: str) -> None:
    """No payload after the first could meet the rule, and the kernel answers for the flow; until it is forgotten."""
    before = len(client.hits("first"))
    with client_node.datagrams(address, ECHO_PORT) as udp:
        for pause, hits in ((0.0, 1), (0.3, 1), (0.3, 1), (1.4, 2)):
            time.sleep(pause)
            for payload in (b"first", b"second"):
                udp.send(payload)
                assert udp.recv(100) == payload
            assert len(client.hits("first")) == before + hits
