#!/usr/bin/env python3
"""Makes the OpenVPN and WireGuard captures in the folder above, with the real programs. Needs root.

Client 192.0.2.2 and server 198.51.100.2 are two network namespaces joined by a veth pair; nothing leaves them.
Packages: openvpn, wireguard-go, wireguard-tools, openssl, tcpdump. Captures are cut to the first packets of each flow.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CAPTURES = Path(__file__).resolve().parent.parent
CLIENT, SERVER = "192.0.2.2", "198.51.100.2"
PREFIX = f"gfwcap{os.getpid()}"
INSIDE, OUTSIDE = f"{PREFIX}c", f"{PREFIX}s"


def run(*argv: str, **options: object) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, **options).stdout  # type: ignore[call-overload,no-any-return]


def within(namespace: str, *argv: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, *argv]


@contextlib.contextmanager
def namespaces() -> Iterator[None]:
    try:
        for name in (INSIDE, OUTSIDE):
            run("ip", "netns", "add", name)
            run(
                *within(
                    name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"
                )
            )
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", INSIDE, "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", OUTSIDE)
        for name, own, other in ((INSIDE, CLIENT, SERVER), (OUTSIDE, SERVER, CLIENT)):
            run("ip", "-n", name, "address", "add", f"{own}/32", "dev", "veth0")
            run("ip", "-n", name, "link", "set", "veth0", "up")
            run("ip", "-n", name, "route", "add", f"{other}/32", "dev", "veth0", "src", own)
        yield
    finally:
        for name in (INSIDE, OUTSIDE):
            subprocess.run(["ip", "netns", "delete", name], check=False)


@contextlib.contextmanager
def capture(name: str, expression: str, packets: int) -> Iterator[subprocess.Popen[str]]:
    """Records at most `packets` packets, until a few seconds after the programs have ended."""
    argv = within(
        INSIDE, "tcpdump", "-i", "veth0", "-U", "-s", "0", "-c", str(packets), "-w", str(CAPTURES / name), expression
    )
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "listening on" not in process.stderr.readline():
        pass
    try:
        yield process
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=3)
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def running(*commands: list[str], environment: dict[str, str] | None = None) -> Iterator[None]:
    processes = []
    try:
        for command in commands:
            processes.append(
                subprocess.Popen(
                    command,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(environment or {})},
                )
            )
            time.sleep(0.7)
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def certificates(directory: Path) -> None:
    """A self-signed authority, a server and a client certificate (small ones: EC P-256)."""
    for name in ("ca", "server", "client"):
        run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key", cwd=directory)
    run(
        "openssl",
        "req",
        "-x509",
        "-new",
        "-key",
        "ca.key",
        "-subj",
        "/CN=Lab CA",
        "-days",
        "3650",
        "-out",
        "ca.crt",
        cwd=directory,
    )
    for name in ("server", "client"):
        run(
            "openssl",
            "req",
            "-new",
            "-key",
            f"{name}.key",
            "-subj",
            f"/CN={name}.example",
            "-out",
            f"{name}.csr",
            cwd=directory,
        )
        run(
            *("openssl", "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "3650", "-out", f"{name}.crt"),
            cwd=directory,
        )
    run("openvpn", "--genkey", "secret", "ta.key", cwd=directory)
    run("openvpn", "--genkey", "tls-crypt-v2-server", "v2server.key", cwd=directory)
    run("openvpn", "--tls-crypt-v2", "v2server.key", "--genkey", "tls-crypt-v2-client", "v2client.key", cwd=directory)


OPENVPN_VARIANTS: dict[str, tuple[list[str], list[str]]] = {
    "plain": ([], []),
    "tls-auth-sha1": (["--auth", "SHA1", "--tls-auth", "ta.key", "0"], ["--auth", "SHA1", "--tls-auth", "ta.key", "1"]),
    "tls-auth-sha256": (
        ["--auth", "SHA256", "--tls-auth", "ta.key", "0"],
        ["--auth", "SHA256", "--tls-auth", "ta.key", "1"],
    ),
    "tls-auth-sha512": (
        ["--auth", "SHA512", "--tls-auth", "ta.key", "0"],
        ["--auth", "SHA512", "--tls-auth", "ta.key", "1"],
    ),
    "tls-crypt": (["--tls-crypt", "ta.key"], ["--tls-crypt", "ta.key"]),
    "tls-crypt-v2": (["--tls-crypt-v2", "v2server.key"], ["--tls-crypt-v2", "v2client.key"]),
}


def openvpn(directory: Path) -> None:
    for proto in ("udp", "tcp"):
        for variant, (server_options, client_options) in OPENVPN_VARIANTS.items():
            common = ["--verb", "0", "--ca", "ca.crt"]
            server = [
                *("openvpn", "--cd", str(directory), *common, "--dev", "tun", "--dh", "none", "--keepalive", "1", "20"),
                *("--server", "10.8.0.0", "255.255.255.0"),
                *("--cert", "server.crt", "--key", "server.key", "--local", SERVER),
                *("--proto", "tcp-server" if proto == "tcp" else "udp", *server_options),
            ]
            client = [
                *("openvpn", "--cd", str(directory), *common, "--dev", "null", "--ifconfig-noexec", "--client"),
                *(
                    "--route-noexec",
                    "--nobind",
                    "--cert",
                    "client.crt",
                    "--key",
                    "client.key",
                    "--remote",
                    SERVER,
                    "1194",
                    "--ping",
                    "1",
                ),
                *("--proto", "tcp-client" if proto == "tcp" else "udp", *client_options),
            ]
            with (
                capture(f"openvpn-{proto}-{variant}.pcap", f"{proto} port 1194", 30),
                running(within(OUTSIDE, *server), within(INSIDE, *client)),
            ):
                time.sleep(2.5)


def wireguard(directory: Path) -> None:
    keys = {}
    for name in ("client", "server"):
        private = run("wg", "genkey").strip()
        (directory / f"{name}.wg").write_text(private)
        keys[name] = run("wg", "pubkey", input=private).strip()
    sides = (
        (INSIDE, "client", "10.9.0.1", "server", "10.9.0.2", f"{SERVER}:51820"),
        (OUTSIDE, "server", "10.9.0.2", "client", "10.9.0.1", ""),
    )
    with capture("wireguard.pcap", "udp port 51820", 12):
        commands = [within(space, "wireguard-go", "--foreground", f"wg{name}") for space, name, *_ in sides]
        with running(*commands):
            for space, name, address, peer, peer_address, endpoint in sides:
                argv = ["wg", "set", f"wg{name}", "private-key", str(directory / f"{name}.wg"), "peer", keys[peer]]
                argv += ["allowed-ips", f"{peer_address}/32", *(["endpoint", endpoint] if endpoint else [])]
                if name == "server":
                    argv[3:3] = ["listen-port", "51820"]
                run(*within(space, *argv))
                run("ip", "-n", space, "address", "add", f"{address}/32", "peer", peer_address, "dev", f"wg{name}")
                run("ip", "-n", space, "link", "set", f"wg{name}", "up")
            subprocess.run(within(INSIDE, "ping", "-q", "-c", "5", "-i", "0.3", "10.9.0.2"), check=True)


def main() -> None:
    wanted = sys.argv[1:] or ["openvpn", "wireguard"]
    with tempfile.TemporaryDirectory() as name, namespaces():
        directory = Path(name)
        if "openvpn" in wanted:
            certificates(directory)
            openvpn(directory)
        if "wireguard" in wanted:
            wireguard(directory)


if __name__ == "__main__":
    main()
