"""Packets that the censor changes instead of forging any: resets made of the other end's own, and other servers."""

from __future__ import annotations

import pytest
from dnslib import DNSRecord
from live_nodes import Node, Seen
from live_tcp import ACK, RST
from live_tls import outcome, read_until

from gfwemu.netlab.internet.plan import Site

pytestmark = pytest.mark.kernel

RULES = """version: 1
rules:
  - {name: down, match: {http.host: down.example}, action: rewrite_to_reset}
  - {name: up, match: {http.host: up.example}, action: rewrite_to_reset, with: {direction: to_server}}
  - name: web
    match: {ip.server: [203.0.113.62, "2001:db8:f::62"], transport: tcp}
    action: redirect
    with: {address: [203.0.113.105, "2001:db8:f::105"], port: 8080}
  - name: resolver
    match: {ip.server: [203.0.113.62, "2001:db8:f::62"], transport: udp}
    action: redirect
    with: {address: [198.51.100.53, "2001:db8:53::53"]}
"""
LAB = {"extra_sites": [Site(names=("other.example",), v4=("203.0.113.105",), v6=("2001:db8:f::105",), http_port=8080)]}
SERVERS = {4: "203.0.113.10", 6: "2001:db8:f::10"}
NOBODY = {4: "203.0.113.62", 6: "2001:db8:f::62"}
VERSIONS = pytest.mark.parametrize("version", [4, 6])


@VERSIONS
def test_the_servers_own_packets_become_resets(client_node: Node, internet_node: Node, version: int) -> None:
    with (
        client_node.sniffer() as at_client,
        internet_node.sniffer() as at_server,
        client_node.connect(SERVERS[version], 80) as tcp,
    ):
        port = tcp.getsockname()[1]
        tcp.sendall(b"GET / HTTP/1.1\r\nHost: down.example\r\n\r\n")
        assert outcome(lambda: read_until(tcp, b"200")) == "reset"
        sent = at_server.segments(dport=port, sent=True)
        arrived = at_client.segments(dport=port, sent=False)
    # The request passed; what answers it arrives as a reset with the numbers and the TTL of the server's own.
    assert [seen for seen in at_server.seen if seen.packet.payload.startswith(b"GET")]
    reset = next(seen.packet for seen in arrived if seen.packet.flags & RST)
    (original,) = [seen.packet for seen in sent if seen.packet.seq == reset.seq and not seen.packet.payload][-1:]
    assert (reset.flags, reset.payload, reset.ack, reset.window) == (RST | ACK, b"", original.ack, original.window)
    # Transit, censor and access router take one each.
    assert reset.ttl == original.ttl - 3
    assert reset.five_tuple == original.five_tuple
    assert not [seen for seen in arrived if seen.packet.payload]


@VERSIONS
def test_the_clients_own_packets_become_resets(client_node: Node, internet_node: Node, version: int) -> None:
    with internet_node.sniffer() as at_server, client_node.connect(SERVERS[version], 80) as tcp:
        port = tcp.getsockname()[1]
        tcp.sendall(b"GET / HTTP/1.1\r\nHost: up.example\r\n\r\n")

        def resets() -> list[Seen]:
            return [seen for seen in at_server.segments(sport=port, sent=False) if seen.packet.flags & RST]

        assert at_server.wait(resets)
        assert not [seen for seen in at_server.segments(sport=port, sent=False) if seen.packet.payload]


@VERSIONS
def test_another_server_and_port_answer_in_its_name(client_node: Node, internet_node: Node, version: int) -> None:
    with internet_node.sniffer() as at_server, client_node.connect(NOBODY[version], 80) as tcp:
        assert tcp.getpeername()[0] == NOBODY[version]
        tcp.sendall(b"GET / HTTP/1.1\r\nHost: www.allowed.example\r\nConnection: close\r\n\r\n")
        read_until(tcp, b"hello from")
        ports = {seen.packet.five_tuple.dport for seen in at_server.segments(sport=tcp.getsockname()[1], sent=False)}
    assert ports == {8080}


@VERSIONS
def test_another_resolver_answers_in_its_name(client_node: Node, version: int) -> None:
    with client_node.datagrams(NOBODY[version], 53) as udp:
        udp.send(bytes(DNSRecord.question("www.allowed.example").pack()))
        assert str(DNSRecord.parse(udp.recv(4096)).rr[0].rdata) == "203.0.113.10"


@VERSIONS
def test_others_are_left_alone(client_node: Node, version: int) -> None:
    with client_node.connect(SERVERS[version], 80) as tcp:
        tcp.sendall(b"GET / HTTP/1.1\r\nHost: www.allowed.example\r\n\r\n")
        read_until(tcp, b"hello from www.allowed.example")
