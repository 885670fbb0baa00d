"""VPN, ssh and echo servers, with their real clients."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.needs("nsenter", "openvpn", "sshd", "ssh")]
READY = "Initialization Sequence Completed"
VARIANTS = ["openvpn-udp", "openvpn-tls-auth", "openvpn-tls-crypt", "openvpn-tcp"]


@contextmanager
def client(space: Any, text: str, *argv: str) -> Iterator[Path]:
    """Run a client until it says `text` (the log is the answer), and end it."""
    log = space.directory / "client.log"
    with log.open("wb") as output:
        process = space.popen(*argv, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 20
        while text not in log.read_text(errors="replace"):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.02)
        yield log
    finally:
        process.terminate()
        process.wait(10)


def without_tun(space: Any) -> bool:
    return bool(space.status()["tun"] != "ok")


def test_the_status_says_how_each_service_stands(servers: Any) -> None:
    services = servers.status()["services"]
    states = {name: status["state"] for name, status in services.items()}
    limited = without_tun(servers)
    assert states == {
        **dict.fromkeys(VARIANTS, "limited" if limited else "up"),
        "wireguard": "failed" if limited else "up",
        "ssh": "up",
        "echo": "up",
        "echo-udp": "up",
        "sink": "up",
    }
    said = (servers.directory / "stderr").read_text().splitlines()
    if limited:
        assert f"gfwemu: wireguard: {services['wireguard']['detail']}" in said
        assert services["wireguard"]["detail"].startswith("WireGuard needs TUN: ")
        assert services["openvpn-udp"]["detail"].startswith("handshake only, one client at a time: ")
    assert len(said) == (5 if limited else 0)
    assert all(Path(file).exists() for status in services.values() for file in status["files"])


@pytest.mark.parametrize("name", VARIANTS)
def test_openvpn_completes_its_handshake(servers: Any, name: str) -> None:
    for _ in range(2):
        with client(servers, READY, "openvpn", "--config", str(servers.lab / f"{name}.ovpn")) as log:
            assert "VERIFY OK" in log.read_text()


def address_that_a_site_sees(node: Any, device: str) -> str:
    """Send a request for a site through a tunnel device."""
    assert node.run("ip", "route", "replace", "192.0.2.1/32", "dev", device).returncode == 0
    done = node.curl("--resolve", "www.allowed.example:80:192.0.2.1", "http://www.allowed.example/info")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["client"]["address"])


@pytest.mark.parametrize("name", VARIANTS)
def test_openvpn_carries_traffic_through_its_tunnel(servers: Any, node: Any, name: str) -> None:
    configuration = servers.lab / f"{name}.ovpn"
    if without_tun(servers):
        assert "dev null\n" in configuration.read_text()
        return
    tunnel = ip_network(servers.status()["services"][name]["detail"].split()[1].rstrip(","))
    with client(node, READY, "openvpn", "--config", str(configuration)):
        device = json.loads(node.run("ip", "-j", "route", "show", str(tunnel)).stdout)[0]["dev"]
        assert node.run("ping", "-c", "1", "-W", "5", str(tunnel[1])).returncode == 0
        assert ip_address(address_that_a_site_sees(node, device)) in tunnel


@pytest.mark.needs("wireguard-go", "wg")
def test_wireguard_carries_traffic_through_its_tunnel(servers: Any, node: Any) -> None:
    script = servers.lab / "wireguard-up"
    if without_tun(servers):
        assert not script.exists()
        return
    tunnel = ip_network(servers.status()["services"]["wireguard"]["detail"].split()[1].rstrip(","))
    with client(node, "WireGuard is up", "sh", str(script)):
        assert node.run("ping", "-c", "1", "-W", "5", str(tunnel[1])).returncode == 0


def ssh(space: Any, *command: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    done: subprocess.CompletedProcess[str] = space.run("ssh", "-F", str(space.lab / "ssh.config"), *command, **options)
    return done


def test_ssh_runs_commands_for_a_key(servers: Any) -> None:
    done = ssh(servers, "ssh", "id -un; cat; exit 7", input="through ssh\n")
    assert (done.returncode, done.stdout) == (7, "lab\nthrough ssh\n"), done.stderr


def test_ssh_gives_a_terminal(servers: Any) -> None:
    done = ssh(servers, "-tt", "ssh", "tty")
    assert done.stdout.startswith("/dev/pts/"), done.stderr


def test_ssh_refuses_without_the_key(servers: Any) -> None:
    known = f"UserKnownHostsFile={servers.lab / 'ssh.known_hosts'}"
    done = servers.run("ssh", "-F", "none", "-o", known, "-o", "BatchMode=yes", "lab@192.0.2.100", "true")
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr


def test_ssh_forwards_connections(servers: Any) -> None:
    done = ssh(
        servers,
        "-W",
        "192.0.2.1:80",
        "ssh",
        input="GET / HTTP/1.1\r\nHost: www.allowed.example\r\nConnection: close\r\n\r\n",
    )
    assert done.stdout.endswith("hello from www.allowed.example over http/1.1\n"), done.stderr


TALK = """
import socket, sys
kind, port = sys.argv[1:]
link = socket.socket(socket.AF_INET, getattr(socket, kind))
link.settimeout(1)
link.connect(("192.0.2.100", int(port)))
link.send(b"hello")
try:
    print(link.recv(100).decode())
except TimeoutError:
    print("silence")
"""


@pytest.mark.parametrize(
    ("kind", "port", "said"),
    [("SOCK_STREAM", "7", "hello"), ("SOCK_DGRAM", "7", "hello"), ("SOCK_STREAM", "9", "silence")],
)
def test_echo_echoes_and_the_sink_is_silent(servers: Any, kind: str, port: str, said: str) -> None:
    assert servers.python("-c", TALK, kind, port).stdout == said + "\n"
