"""Active probing of real servers: the hit, the probes on the wire, the judgement, the block that the next one meets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hello_kit import ORDINARY, client_hello, records
from live_kit import Client, wait_for

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.needs("ss-server", "ss-local", "tor", "obfs4proxy", "tcpdump", "curl"),
]

SERVER = "203.0.113.62"
ALLOWED, ASKED = "203.0.113.20", "203.0.113.30"
AEAD, STREAM, OTHER, BRIDGE, OBFS4 = 8388, 8389, 8390, 9001, 9002
PAGE = "http://203.0.113.20/"
COUNT = 40
"""Of three types of probes: so many that none is missing by chance."""

# The numbers of rules/china/probing.yaml, but for those that a test cannot wait for or must be sure of.
RULES = f"""
version: 1
lists:
  china-tor-ciphers: {{file: {Path(__file__).resolve().parents[2]}/rules/lists/china-tor-ciphers.txt, format: text}}
rules:
  - name: shadowsocks
    match: {{transport: tcp, direction: to_server, payload.number: 1, payload.length: ">=20",
             ip.server: [{SERVER}, {ALLOWED}], port.server: [{AEAD}, {STREAM}, 443], initiator: inside}}
    action: probe
    with:
      types:
        - {{name: R1, send: replay}}
        - {{name: R2, send: replay, changed: [0]}}
        - {{name: NR2, send: random, length: 221}}
      count: {COUNT}
      delay: 6s-60s
      timeout: 1s
      blocks_when: [{{R1: [timeout, reset, fin], R2: [timeout, reset, fin], NR2: [timeout, reset, fin]}}]
    residual: {{key: server_port, seconds: 360, action: drop, direction: to_client}}
  - name: tor
    match: {{tls.ciphers: "@china-tor-ciphers"}}
    action: probe
    with:
      types: [{{name: tor, send: tor}}]
      count: 2
      delay: 6s-12s
      timeout: 2s
      blocks_when: [{{tor: [confirmed]}}]
    residual: {{key: server, seconds: 360, refresh: true, action: drop, direction: to_client}}
"""
SCALE = 60
BLOCK = 360 / SCALE
LAB: dict[str, Any] = {"topology": "default", "time_scale": SCALE}


@contextmanager
def running(client: Client, node: str, *argv: str, ready: Callable[[], bool]) -> Iterator[None]:
    with (client.directory / f"{Path(argv[0]).name}-{node}.log").open("ab") as log:
        process = client.lab.popen(node, argv, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(ready, 20)
            yield
        finally:
            process.terminate()
            process.wait(10)


def listens(client: Client, node: str, address: str, port: int) -> bool:
    done = client.lab.exec(node, ["ss", "-Hltn", f"src {address}:{port}"], timeout=10)
    return bool(done.stdout.strip())


@contextmanager
def shadowsocks(client: Client, port: int, cipher: str) -> Iterator[None]:
    """A server, and a client of it that is a SOCKS proxy on 127.0.0.1 with the same port."""
    common = ("-s", SERVER, "-p", str(port), "-k", "lab", "-m", cipher)
    server, local = ("ss-server", *common), ("ss-local", *common, "-b", "127.0.0.1", "-l", str(port))
    with (
        running(client, "internet", *server, ready=lambda: listens(client, "internet", SERVER, port)),
        running(client, "client", *local, ready=lambda: listens(client, "client", "127.0.0.1", port)),
    ):
        yield


def through(client: Client, port: int, seconds: float = 2.0) -> bool:
    """Whether a page comes through the proxy on that port."""
    return client.curl(PAGE, "--socks5", f"127.0.0.1:{port}", seconds=seconds).status == 200


def probes(client: Client, port: int, server: str = SERVER) -> list[dict[str, Any]]:
    found = client.events("probe", "shadowsocks") + client.events("probe", "tor")
    return [event for event in found if (event["dest_ip"], event["dest_port"]) == (server, port)]


def blocks(client: Client, port: int, server: str = SERVER) -> list[dict[str, Any]]:
    found = client.events("block", "shadowsocks") + client.events("block", "tor")
    return [event for event in found if (event["dest_ip"], event["dest_port"]) == (server, port)]


def reactions(client: Client, port: int, server: str = SERVER) -> set[tuple[str, str]]:
    return {(event["censor"]["type"], event["censor"]["reaction"]) for event in probes(client, port, server)}


@pytest.mark.parametrize(("port", "cipher"), [(AEAD, "aes-256-gcm"), (STREAM, "aes-256-cfb")])
def test_a_shadowsocks_server_is_found_and_its_port_blocked_for_a_while(client: Client, port: int, cipher: str) -> None:
    """shadowsocks-libev 3.3.5 says nothing to replays and to whoever is no client of it, with either kind of cipher."""
    with shadowsocks(client, port, cipher):
        assert through(client, port)
        block = wait_for(lambda: blocks(client, port), 10)[0]
        began = time.monotonic()
        assert block["censor"]["key"] == "server_port"
        assert not through(client, port, seconds=1.5)
        assert client.events("residual", "shadowsocks")
        with shadowsocks(client, OTHER, cipher):
            assert through(client, OTHER), "only the port is blocked"
        wait_for(lambda: len(probes(client, port)) == COUNT)
        assert reactions(client, port) == {("R1", "timeout"), ("R2", "timeout"), ("NR2", "timeout")}
        wait_for(lambda: through(client, port, seconds=1.0), BLOCK + 10)
        assert time.monotonic() - began > BLOCK - 2


def test_an_ordinary_web_server_is_probed_and_left_alone(client: Client) -> None:
    page = f"https://{ALLOWED}/"
    assert client.curl(page, "-k").status == 200
    wait_for(lambda: len(probes(client, 443, ALLOWED)) == COUNT, 20)
    assert blocks(client, 443, ALLOWED) == []
    assert client.curl(page, "-k").status == 200
    assert ("R1", "data") in reactions(client, 443, ALLOWED)


@pytest.mark.skipif(os.getuid() != 0, reason="tcpdump changes its user, which an ordinary user's namespace refuses")
def test_probes_look_as_those_that_were_observed(client: Client) -> None:
    """TTLs at the server, source ports and addresses (Alice et al., IMC 2020, section 3.4)."""
    seen = client.directory / "syns.txt"
    command = ("tcpdump", "-i", "eth0", "-n", "-v", "-l", "-c", "12", "--immediate-mode")
    filters = "tcp[tcpflags] == tcp-syn and src net 192.0.2.192/26"
    said = client.directory / "tcpdump.log"
    with seen.open("wb") as output, said.open("wb") as log:
        capture = client.lab.popen("internet", [*command, filters], stdout=output, stderr=log)
        try:
            wait_for(lambda: b"listening" in said.read_bytes())
            client.curl(f"https://{ALLOWED}/", "-k")
            assert capture.wait(15) == 0
        finally:
            capture.kill()
            capture.wait()
    text = seen.read_text()
    ttls = [int(ttl) for ttl in re.findall(r"ttl (\d+)", text)]
    ends = re.findall(r"(192\.0\.2\.\d+)\.(\d+) > 203\.0\.113\.20\.443", text)
    assert len(ttls) == len(ends) == 12
    assert set(ttls) <= set(range(46, 51))
    assert len(set(ttls)) > 1
    assert all(ip_address(address) in ip_network("192.0.2.192/26") for address, _ in ends)
    assert len({address for address, _ in ends}) > 3
    assert min(int(port) for _, port in ends) >= 1024


@pytest.fixture(scope="module")
def bridge(client: Client) -> Iterator[None]:
    """A real bridge without a network: vanilla on one port, obfs4 on another."""
    data = client.directory / "tor"
    data.mkdir(mode=0o700)
    settings = f"""
        DataDirectory {data}
        BridgeRelay 1
        PublishServerDescriptor 0
        AssumeReachable 1
        ORPort {SERVER}:{BRIDGE}
        Address {SERVER}
        SocksPort 0
        ExitRelay 0
        DirAuthority lab orport=9100 no-v2 v3ident={"B" * 40} 203.0.113.250:9101 {"A" * 40}
        ServerTransportPlugin obfs4 exec /usr/bin/obfs4proxy
        ServerTransportListenAddr obfs4 {SERVER}:{OBFS4}
        ExtORPort auto
    """
    file = client.directory / "torrc"
    file.write_text(settings)
    with running(client, "internet", "tor", "-f", str(file), ready=lambda: listens(client, "internet", SERVER, OBFS4)):
        wait_for(lambda: listens(client, "internet", SERVER, BRIDGE))
        yield


REFUSAL = "15030300020228"
"""A TLS alert, handshake_failure (RFC 8446, section 6)."""

SAY = """
import socket, sys
server, port, said, seconds = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3]), float(sys.argv[4])
try:
    with socket.create_connection((server, port), seconds) as sock:
        sock.sendall(said)
        sock.settimeout(seconds)
        print(sock.recv(65536).hex() or "fin")
except TimeoutError:
    print("timeout")
"""


def say(client: Client, server: str, port: int, said: bytes, seconds: float = 1.5) -> str:
    """What the server answers first: hex, `fin` or `timeout`."""
    done = client.run(sys.executable, "-c", SAY, server, str(port), said.hex(), str(seconds))
    return done.stdout.decode().strip()


def tor_hello() -> bytes:
    """A ClientHello with the cipher suites of a Tor client of 2012."""
    listed = (Path(__file__).resolve().parents[2] / "rules" / "lists" / "china-tor-ciphers.txt").read_text()
    suites = next(line for line in listed.splitlines() if line and not line.startswith("#"))
    return records(client_hello(ORDINARY, ciphers=[int(suite, 16) for suite in suites.split("-")]))


@pytest.mark.usefixtures("bridge")
def test_a_tor_bridge_is_confirmed_and_its_address_blocked_until_nobody_asks_for_it(client: Client) -> None:
    # The server's own repetitions would renew the block, and at this pace of the clock for many minutes.
    command = ("sysctl", "-w", "net.ipv4.tcp_synack_retries=1")
    assert client.lab.exec("internet", command, timeout=10, as_root=True).returncode == 0
    # A bridge of today refuses the TLS of 2012; its prober speaks that of today.
    assert say(client, SERVER, BRIDGE, tor_hello()) == REFUSAL
    block = wait_for(lambda: blocks(client, BRIDGE), 10)[0]
    assert block["censor"]["key"] == "server"
    assert {("tor", "confirmed")} == reactions(client, BRIDGE)
    assert say(client, SERVER, BRIDGE, tor_hello()) == "timeout"
    # The whole address.
    assert say(client, SERVER, OBFS4, b"x" * 10) == "timeout"
    # Whoever tries renews it.
    end = time.monotonic() + BLOCK + 1
    while time.monotonic() < end:
        assert say(client, SERVER, BRIDGE, tor_hello()) == "timeout"
    # Nothing tells that it is over but to ask, which renews it.
    time.sleep(BLOCK + 3)
    assert say(client, SERVER, BRIDGE, tor_hello()) == REFUSAL


def test_a_web_server_that_a_tor_client_asks_is_no_bridge(client: Client) -> None:
    assert say(client, ASKED, 443, tor_hello()) != "timeout"
    wait_for(lambda: len(probes(client, 443, ASKED)) == 2, 10)
    assert "confirmed" not in {reaction for _, reaction in reactions(client, 443, ASKED)}
    assert client.curl(f"https://{ASKED}/", "-k").status == 200
