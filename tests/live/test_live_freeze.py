"""Flows that go silent: after so many packets or bytes, after a while, in one direction or both."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from live_kit import wait_for
from live_nodes import Node, Seen, Sniffer
from live_tls import outcome, read_until

pytestmark = pytest.mark.kernel

RULES = """version: 1
rules:
  - {name: packets, match: {http.host: packets.example}, action: freeze, with: {packets: 25}}
  - {name: up, match: {http.host: up.example}, action: freeze, with: {packets: 12, counting: to_server}}
  - {name: down, match: {http.host: down.example}, action: freeze, with: {packets: 12, counting: to_client}}
  - {name: either, match: {http.host: either.example}, action: freeze, with: {packets: 12, counting: either}}
  - {name: payload, match: {http.host: payload.example}, action: freeze, with: {packets: 12, payload_only: true}}
  - {name: bytes, match: {http.host: bytes.example}, action: freeze, with: {bytes: 20KB}}
  - {name: page, match: {http.host: page.example}, action: freeze, with: {bytes: 20KB, counting: to_client}}
  - name: content
    match: {http.host: content.example}
    action: freeze
    with: {bytes: 20KB, counting: to_client, payload_only: true}
  - {name: half, match: {http.host: half.example}, action: freeze, with: {packets: 25, direction: to_client}}
  - {name: varied, match: {http.host: varied.example}, action: freeze, with: {packets: 20-40}}
  - {name: trigger, match: {http.host: trigger.example}, action: drop}
  - {name: next, match: {http.host: next.example}, action: drop, with: {trigger: false}}
  - {name: client, match: {http.host: client.example}, action: drop, with: {trigger: false, direction: to_server}}
  - {name: server, match: {http.host: server.example}, action: drop, with: {direction: to_client}}
  - {name: later, match: {http.host: later.example}, action: drop, with: {trigger: false, after: 600ms}}
  - {name: crawl, match: {http.host: crawl.example}, action: throttle, with: {rate: 200kbit, mode: shape}}
"""
ADDRESSES = pytest.mark.parametrize("address", ["203.0.113.10", "2001:db8:f::10"])
SILENCE = 0.5


@dataclass
class Exchange:
    """A connection, and what of it passed the censor."""

    tcp: Any
    at_client: Sniffer
    at_server: Sniffer

    def ask(self, name: str, path: str = "/") -> None:
        self.tcp.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())

    def passed(self, *, up: bool) -> list[Seen]:
        """The packets that came out on the other side of the censor."""
        if up:
            return self.at_server.segments(sport=self.tcp.getsockname()[1], sent=False)
        return self.at_client.segments(dport=self.tcp.getsockname()[1], sent=False)

    def sent_by_server(self) -> list[Seen]:
        return self.at_server.segments(dport=self.tcp.getsockname()[1], sent=True)


@contextmanager
def exchange(client_node: Node, internet_node: Node, address: str) -> Iterator[Exchange]:
    with (
        client_node.sniffer() as at_client,
        internet_node.sniffer() as at_server,
        client_node.connect(address, 80) as tcp,
    ):
        yield Exchange(tcp, at_client, at_server)


def download(one: Exchange, name: str) -> str:
    """A page that is long enough for every limit."""
    one.ask(name, "/bytes/100000")
    one.tcp.settimeout(SILENCE)
    got = bytearray()

    def read() -> None:
        while len(got) < 100_000:
            got.extend(one.tcp.recv(65_536))

    return outcome(read)


def payloads(packets: list[Seen]) -> list[Seen]:
    return [seen for seen in packets if seen.packet.payload]


def octets(packets: list[Seen]) -> int:
    return sum(len(seen.data) for seen in packets)


# The packets that pass until the flow freezes, by what counts.
@ADDRESSES
@pytest.mark.parametrize("name", ["packets", "up", "down", "either", "payload", "varied"])
def test_the_flow_freezes_after_so_many_packets(
    client_node: Node, internet_node: Node, address: str, name: str
) -> None:
    with exchange(client_node, internet_node, address) as one:
        assert download(one, f"{name}.example") == "timeout"
        up, down = one.passed(up=True), one.passed(up=False)
        passed = {
            "packets": (len(up) + len(down), 25, 25),
            "up": (len(up), 12, 12),
            "down": (len(down), 12, 12),
            "either": (max(len(up), len(down)), 12, 12),
            "payload": (len(payloads(up)) + len(payloads(down)), 12, 12),
            "varied": (len(up) + len(down), 20, 40),
        }[name]
        assert passed[1] <= passed[0] <= passed[2]
        # The server goes on, in vain.
        assert len(one.sent_by_server()) > len(down)


@ADDRESSES
@pytest.mark.parametrize("name", ["bytes", "page", "content"])
def test_the_flow_freezes_after_so_many_bytes(client_node: Node, internet_node: Node, address: str, name: str) -> None:
    with exchange(client_node, internet_node, address) as one:
        assert download(one, f"{name}.example") == "timeout"
        up, down = one.passed(up=True), one.passed(up=False)
        passed = {
            "bytes": octets(up) + octets(down),
            "page": octets(down),
            "content": sum(len(seen.packet.payload) for seen in down),
        }[name]
        assert 20_000 - 1_500 < passed <= 20_000


@ADDRESSES
@pytest.mark.parametrize("name", ["www.allowed.example", "notpackets.example"])
def test_others_do_not_freeze(client_node: Node, internet_node: Node, address: str, name: str) -> None:
    with exchange(client_node, internet_node, address) as one:
        assert download(one, name) == "ok"


@ADDRESSES
def test_a_freeze_of_one_direction_lets_the_other_pass(client_node: Node, internet_node: Node, address: str) -> None:
    with exchange(client_node, internet_node, address) as one:
        assert download(one, "half.example") == "timeout"
        before = len(payloads(one.passed(up=True)))
        one.ask("half.example")
        assert one.at_server.wait(lambda: len(payloads(one.passed(up=True))) > before)
        assert outcome(lambda: one.tcp.recv(65_536)) == "timeout"


@ADDRESSES
@pytest.mark.parametrize(
    ("name", "trigger_passes", "answer_passes"),
    [("trigger", False, False), ("next", True, False), ("client", True, True), ("server", True, False)],
)
def test_what_a_drop_leaves_of_the_trigger_and_its_answer(
    client_node: Node, internet_node: Node, address: str, name: str, trigger_passes: bool, answer_passes: bool
) -> None:
    with exchange(client_node, internet_node, address) as one:
        one.ask(f"{name}.example")
        one.tcp.settimeout(SILENCE)
        assert outcome(lambda: read_until(one.tcp, b"200")) == ("ok" if answer_passes else "timeout")
        assert bool(payloads(one.passed(up=True))) == trigger_passes
        # Of every variant, but that of the server's direction alone, nothing more of the client comes through.
        passed = len(payloads(one.passed(up=True)))
        one.ask("www.allowed.example")
        wait_for(lambda: one.at_client.segments(sport=one.tcp.getsockname()[1], sent=True))
        one.at_server.wait(lambda: len(payloads(one.passed(up=True))) > passed, SILENCE)
        assert (len(payloads(one.passed(up=True))) > passed) == (name == "server")


@ADDRESSES
def test_a_drop_that_begins_later(client_node: Node, internet_node: Node, address: str) -> None:
    with exchange(client_node, internet_node, address) as one:
        started = time.monotonic()
        one.tcp.settimeout(SILENCE)
        last = 0.0
        one.ask("later.example")
        while last < 5 and outcome(lambda: read_until(one.tcp, b"over http/1.1\n")) == "ok":
            last = time.monotonic() - started
            one.ask("later.example")
        assert 0.4 < last < 0.9


@ADDRESSES
def test_a_throttle_ends_with_its_flow(client_node: Node, address: str) -> None:
    """The next connection from the same port is another flow."""
    for name, least, most in (("crawl", 1.0, 4.0), ("www.allowed", 0.0, 0.7)):
        with client_node.connect(address, 80, local_port=43_000) as tcp:
            # With a reset, so that the port is free at once.
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            started = time.monotonic()
            tcp.sendall(f"GET /bytes/50000 HTTP/1.1\r\nHost: {name}.example\r\n\r\n".encode())
            got = 0
            while got < 50_000:
                got += len(tcp.recv(65_536))
            assert least < time.monotonic() - started < most
