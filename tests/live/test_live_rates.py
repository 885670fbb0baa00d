"""Throttle, delay and loss as a client measures them, and that nobody else feels them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from live_kit import Client, Curl
from live_nodes import Node
from live_tls import Hello, read_until

pytestmark = pytest.mark.kernel

# kbit/s of IP packets; a page of so many bytes takes a second or so.
RULES = """version: 1
defaults: {seed: 5}
subscribers:
  house: {addresses: [192.0.2.10, "2001:db8:1::10"]}
rules:
  - {name: police, match: {tls.sni: police.example}, action: throttle, with: {rate: 1000kbit}}
  - {name: shape, match: {tls.sni: shape.example}, action: throttle, with: {rate: 1000kbit, mode: shape, limit: 200KB}}
  - name: rule
    match: {tls.sni: rule.example}
    action: throttle
    with: {rate: 1000kbit, mode: shape, per: rule, limit: 200KB}
  - name: subscriber
    match: {tls.sni: subscriber.example}
    action: throttle
    with: {rate: 1000kbit, mode: shape, per: subscriber, limit: 200KB}
  - name: down
    match: {tls.sni: down.example}
    action: throttle
    with: {rate: 1000kbit, mode: shape, limit: 200KB, direction: to_client}
  - name: up
    match: {tls.sni: up.example}
    action: throttle
    with: {rate: 1000kbit, mode: shape, limit: 200KB, direction: to_server}
  - {name: policed, match: {transport: udp, port.server: 9}, action: throttle, with: {rate: 1000kbit}}
  - {name: slow, match: {ip.server: [203.0.113.24, "2001:db8:f::24"]}, action: delay, with: {time: 100ms}}
  - {name: later, match: {http.host: later.example}, action: delay, with: {time: 150ms, direction: to_client}}
  - {name: lossy, match: {transport: udp, port.server: 7}, action: lose, with: {probability: 0.3}}
"""
LAB = {
    "services": [
        {"kind": "echo", "name": "echo", "address": "203.0.113.90", "transport": "udp"},
        {"kind": "echo", "name": "echo6", "address": "2001:db8:f::90", "transport": "udp"},
    ]
}
RATE = 125_000  # bytes a second
SIZE = 130_000
BOTH = pytest.mark.parametrize("family", ["-4", "-6"])
BURST = 16_000
# What a download really gets: headers of IP, TCP and TLS count for the bucket, and its burst is free.
LEAST, MOST = 0.7, 1.2


def fetch(client: Client, name: str, *options: str, size: int = SIZE) -> Curl:
    seen = client.curl(f"https://{name}/bytes/{size}", *options, "-o", "/dev/null", seconds=20)
    assert (seen.exit, seen.size) == (0, size)
    return seen


def rate_of(seen: Curl) -> float:
    return seen.size / seen.seconds


def together(client: Client, *visits: tuple[str, ...]) -> float:
    """Seconds that downloads side by side take."""
    with ThreadPoolExecutor(len(visits)) as pool:
        return max(seen.seconds for seen in pool.map(lambda visit: fetch(client, *visit), visits))


ALONE = SIZE / RATE
SHARED = (2 * SIZE - BURST) / RATE


@BOTH
@pytest.mark.parametrize("name", ["shape.example", "down.example"])
def test_a_download_runs_at_the_rate(client: Client, family: str, name: str) -> None:
    assert LEAST * RATE < rate_of(fetch(client, name, family)) < MOST * RATE


@BOTH
def test_a_policed_download_runs_at_most_at_the_rate(client: Client, family: str) -> None:
    """TCP itself does not get all of what a policer with a small bucket leaves."""
    assert 0.3 * RATE < rate_of(fetch(client, "police.example", family)) < MOST * RATE


@pytest.mark.parametrize("server", ["203.0.113.62", "2001:db8:f::62"])
def test_a_policer_passes_the_rate_and_its_burst(client_node: Node, internet_node: Node, server: str) -> None:
    length, packets = 1000, 300
    headers = 48 if ":" in server else 28
    with internet_node.sniffer() as arrived, client_node.datagrams(source="::" if ":" in server else "") as udp:
        started = time.monotonic()
        for number in range(packets):
            udp.sendto(bytes(length), (server, 9))
            # 4 Mbit/s: four times what passes.
            time.sleep(max(0.0, started + number * 0.002 - time.monotonic()))
        spent = time.monotonic() - started
        passed = sum(len(seen.data) for seen in arrived.look(0.2) if seen.packet.five_tuple.dport == 9)
    expected = (BURST + spent * RATE) // (length + headers) * (length + headers)
    assert expected * 0.9 < passed < expected * 1.1


@BOTH
@pytest.mark.parametrize("name", ["www.allowed.example", "notshape.example", "up.example"])
def test_others_run_at_full_speed(client: Client, family: str, name: str) -> None:
    assert rate_of(fetch(client, name, family, size=1_000_000)) > 5 * RATE


def test_each_flow_has_a_bucket_of_its_own(client: Client) -> None:
    assert together(client, ("shape.example", "-4"), ("shape.example", "-4")) < 0.8 * SHARED


def test_flows_of_a_rule_share_one(client: Client) -> None:
    assert together(client, ("rule.example", "-4"), ("rule.example", "-6")) > 0.95 * SHARED


def test_a_subscriber_has_one_and_another_another(client: Client) -> None:
    one, two = ("--interface", "192.0.2.10"), ("--interface", "192.0.2.11")
    name = "subscriber.example"
    assert together(client, (name, *one), (name, "-6", "--interface", "2001:db8:1::10")) > 0.95 * SHARED
    assert together(client, (name, *one), (name, *two)) < 0.8 * SHARED


@BOTH
@pytest.mark.parametrize(("name", "slow"), [("up.example", True), ("shape.example", True), ("down.example", False)])
def test_an_upload_has_its_own_direction(client: Client, family: str, name: str, slow: bool) -> None:
    form = ["--data-binary", "@-", "-H", "Expect:", "-o", "/dev/null", "-w", "%{speed_upload} %{http_code}"]
    command = ["curl", "-sS", family, "--max-time", "20", *form, f"https://{name}/upload"]
    done = client.run(*command, input=bytes(SIZE))
    speed, status = map(float, done.stdout.split())
    assert status == 200, done
    assert (LEAST * RATE < speed < MOST * RATE) if slow else speed > 3 * RATE


@pytest.mark.parametrize(("slow", "fast"), [("203.0.113.24", "203.0.113.10"), ("2001:db8:f::24", "2001:db8:f::10")])
def test_a_delay_adds_twice_to_the_round_trip(client_node: Node, slow: str, fast: str) -> None:
    times = {}
    for address in (slow, fast):
        started = time.monotonic()
        with client_node.connect(address, 80) as tcp:
            connected = time.monotonic()
            tcp.sendall(b"GET / HTTP/1.1\r\nHost: www.allowed.example\r\n\r\n")
            read_until(tcp, b"200")
            times[address] = connected - started, time.monotonic() - connected
    for spent in times[slow]:
        assert 0.2 <= spent < 0.3
    for spent in times[fast]:
        assert spent < 0.1


@pytest.mark.parametrize("address", ["203.0.113.10", "2001:db8:f::10"])
def test_a_delay_of_one_direction_from_a_message_on(client_node: Node, address: str) -> None:
    with client_node.connect(address, 80) as tcp:
        for name, least, most in (
            ("www.allowed.example", 0.0, 0.1),
            ("later.example", 0.15, 0.25),
            ("www.allowed.example", 0.15, 0.25),
        ):
            started = time.monotonic()
            tcp.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            begun = read_until(tcp, b"200")
            assert least <= time.monotonic() - started < most
            end = f"hello from {name} over http/1.1\n".encode()
            if end not in begun:
                read_until(tcp, end)


@pytest.mark.parametrize("address", ["203.0.113.90", "2001:db8:f::90"])
def test_a_lossy_flow_loses_its_share_in_each_direction(client: Client, client_node: Node, address: str) -> None:
    count, end = 400, b"the end"
    with client_node.sniffer() as sniffer, client_node.datagrams(address, 7) as udp:
        port = udp.getsockname()[1]

        def echoes() -> list[bytes]:
            return [s.packet.payload for s in sniffer.look() if s.packet.five_tuple.dport == port]

        for number in range(count):
            udp.send(number.to_bytes(2, "big"))
        for _ in range(30):
            udp.send(end)
        assert sniffer.wait(lambda: end in echoes())
        numbers = [int.from_bytes(echo, "big") for echo in echoes() if echo != end]
    # Loss in both directions leaves 49 %; five standard deviations to each side.
    assert 0.365 * count < len(numbers) < 0.615 * count
    assert numbers == sorted(numbers)
    assert client.wait_for_hit("lossy")


def test_shaped_packets_keep_their_order_and_the_excess_of_a_policed_flow_is_lost(
    client: Client, client_node: Node
) -> None:
    for name, lost in (("shape.example", False), ("police.example", True)):
        with client_node.sniffer() as sniffer, client_node.connect("203.0.113.10", 443) as tcp:
            hello = Hello(client.lab, name)
            tcp.sendall(hello.record)
            hello.finish(tcp, "/bytes/60000")
            seqs = [s.packet.seq for s in sniffer.segments(sport=443, dport=tcp.getsockname()[1]) if s.packet.payload]
        first = seqs[0]
        offsets = [(seq - first) % (1 << 32) for seq in seqs]
        assert (offsets != sorted(offsets)) == lost, offsets
