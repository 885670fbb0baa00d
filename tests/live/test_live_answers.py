"""DNS answers pass unseen where no rule that may still fire heeds them; queries are read, all of them."""

from __future__ import annotations

import pytest
from dnslib import RCODE, DNSRecord
from live_kit import Client, wait_for
from live_nodes import Node

pytestmark = pytest.mark.kernel

RULES = """version: 1
rules:
  - {name: query, match: {dns.qname: blocked.example, dns.response: false}, action: poison, with: {rcode: refused}}
"""
HEEDING = """  - {name: answer, match: {dns.qname: told.example, dns.response: true}, action: alert}
"""
RESOLVERS = pytest.mark.parametrize("address", ["198.51.100.53", "2001:db8:53::53"])


def ask(node: Node, address: str, names: list[str]) -> list[int]:
    """The response codes that one socket got."""
    codes = []
    with node.datagrams(address, 53) as udp:
        for name in names:
            udp.send(bytes(DNSRecord.question(name).pack()))
            codes.append(DNSRecord.parse(udp.recv(4096)).header.rcode)
    return codes


def dns_events(client: Client, end: str, address: str) -> list[str]:
    told = [event for event in client.lab.events() if event["event_type"] == "dns" and event[end] == address]
    return [event["censor"]["facts"]["dns.qname"] for event in told]


@RESOLVERS
def test_queries_are_read_and_their_answers_pass(client: Client, client_node: Node, address: str) -> None:
    client.load(RULES)
    names = ["www.allowed.example", "other.allowed.example", "blocked.example"]
    assert ask(client_node, address, names) == [RCODE.NOERROR, RCODE.NOERROR, RCODE.REFUSED]
    assert wait_for(lambda: dns_events(client, "dest_ip", address)[-len(names) :] == names)
    assert dns_events(client, "src_ip", address) == []


@RESOLVERS
def test_a_rule_that_heeds_answers_has_them_queued(client: Client, client_node: Node, address: str) -> None:
    client.load(RULES + HEEDING)
    assert ask(client_node, address, ["www.allowed.example", "told.example"])[0] == RCODE.NOERROR
    assert wait_for(lambda: dns_events(client, "src_ip", address)) == ["www.allowed.example", "told.example"]
    assert client.wait_for_hit("answer")[-1]["src_ip"] == address
