"""Real OpenVPN and WireGuard, recognised and cut; and everything else that passes the same rules untouched."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from live_kit import Client, wait_for

from gfwemu.report.eve import timestamp

pytestmark = [pytest.mark.kernel, pytest.mark.needs("openvpn", "ssh", "git", "/dev/net/tun")]

RULES = "version: 1\nrules: [{name: none, match: {ip.server: 198.51.100.1}, action: alert}]\n"
PROFILES = Path(__file__).resolve().parents[2] / "rules"
VARIANTS = ("plain", "tls-auth", "tls-crypt", "tls-crypt-v2")
SERVERS: dict[str, dict[str, Any]] = {
    f"{transport}-{variant}": {
        "kind": "openvpn",
        "address": "203.0.113.70",
        "port": 1194 + number,
        "transport": transport,
        "variant": variant,
    }
    for transport in ("udp", "tcp")
    for number, variant in enumerate(VARIANTS)
}
SERVERS["udp-v6"] = {"kind": "openvpn", "address": "2001:db8:f::70", "variant": "tls-auth"}
SERVERS["tcp-v6"] = {"kind": "openvpn", "address": "2001:db8:f::70", "transport": "tcp"}
WIREGUARDS: dict[str, dict[str, Any]] = {
    "wg-v4": {"kind": "wireguard", "address": "203.0.113.71", "tunnel": "198.51.100.240/29"},
    # A port of its own: a WireGuard server binds to no address.
    "wg-v6": {"kind": "wireguard", "address": "2001:db8:f::71", "port": 51821, "tunnel": "198.51.100.232/29"},
}
SSH = {"kind": "ssh", "name": "ssh", "address": "203.0.113.72"}
LAB = {
    "services": [
        *({"name": name, **server} for name, server in (SERVERS | WIREGUARDS).items()),
        SSH,
    ]
}
READY = "Initialization Sequence Completed"
PATIENCE = 20.0


def load(client: Client, *profiles: str) -> None:
    included = "".join(f"  - {PROFILES / f'{profile}.yaml'}\n" for profile in profiles)
    client.load(f"version: 1\ninclude:\n{included}")


@contextlib.contextmanager
def running(client: Client, name: str, *command: str) -> Iterator[Path]:
    """A program of the lab's root; what it prints goes to the file."""
    log = client.directory / f"{name}.log"
    with log.open("wb") as output:
        process = client.lab.popen(
            "client", command, as_root=True, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield log
        finally:
            process.terminate()
            process.wait(10)


def configuration(client: Client, name: str) -> str:
    return str(client.lab.directory / "internet" / name)


@contextlib.contextmanager
def vpns(client: Client) -> Iterator[dict[str, Path]]:
    """A client of every OpenVPN server, all at once."""
    with contextlib.ExitStack() as stack:
        logs = {}
        for name in SERVERS:
            command = ["openvpn", "--config", configuration(client, f"{name}.ovpn")]
            logs[name] = stack.enter_context(running(client, name, *command))
        yield logs


def up(logs: dict[str, Path]) -> set[str]:
    return {name for name, log in logs.items() if READY in log.read_text(errors="replace")}


def test_without_a_block_every_vpn_connects(client: Client) -> None:
    load(client, "open")
    with vpns(client) as logs:
        wait_for(lambda: up(logs) == set(SERVERS), PATIENCE)


@pytest.mark.parametrize("profiles", [("openvpn-block",), ("china", "openvpn-block", "wireguard-block")])
def test_every_openvpn_is_recognised_and_cut(client: Client, profiles: tuple[str, ...]) -> None:
    load(client, *profiles)
    before = len(client.hits("openvpn-block"))
    expected = {(server["address"], server.get("port", 1194)) for server in SERVERS.values()}

    def met() -> set[tuple[str, int]]:
        ends = [(hit["src_ip"], hit["src_port"]) for hit in client.hits("openvpn-block")[before:]]
        return expected & {*ends, *((h["dest_ip"], h["dest_port"]) for h in client.hits("openvpn-block")[before:])}

    with vpns(client) as logs:
        wait_for(lambda: met() == expected, PATIENCE)
        ended = time.monotonic() + 1.0
        while time.monotonic() < ended:
            assert up(logs) == set()
            time.sleep(0.1)
    variants = {hit["censor"]["facts"]["openvpn.variant"] for hit in client.hits("openvpn-block")[before:]}
    # What is encrypted under tls-crypt looks the same in both of its versions but for the client's first packet.
    assert variants == set(VARIANTS)


@pytest.mark.needs("wireguard-go", "wg")
@pytest.mark.parametrize("name", list(WIREGUARDS))
@pytest.mark.parametrize(
    ("profiles", "works"), [(("open",), True), (("china", "openvpn-block", "wireguard-block"), False)]
)
def test_wireguard(client: Client, name: str, profiles: tuple[str, ...], works: bool) -> None:
    load(client, *profiles)
    network = WIREGUARDS[name]["tunnel"]
    server = network.replace("40/29", "41").replace("32/29", "33")
    before = len(client.hits("wireguard-block"))
    interface = f"{name}-{'open' if works else 'cut'}"
    with running(client, interface, "sh", configuration(client, f"{name}-up"), interface) as log:
        wait_for(lambda: "WireGuard is up" in log.read_text(), PATIENCE)

        def ping() -> bool:
            return client.lab.exec("client", ["ping", "-c1", "-W1", server], timeout=10).returncode == 0

        if works:
            wait_for(ping, PATIENCE)
        else:
            assert not ping()
            hit = wait_for(lambda: client.hits("wireguard-block")[before:])[0]
            assert hit["censor"]["facts"]["wireguard.stage"] == "data"
            assert not ping()
    assert (len(client.hits("wireguard-block")) > before) == (not works)


def test_ordinary_programs_pass_all_of_it_untouched(client: Client, tmp_path: Path) -> None:
    load(client, "china", "openvpn-block", "wireguard-block")
    before, begun = len(client.lab.events()), timestamp(time.time())
    ssh = ["ssh", "-F", configuration(client, "ssh.config")]
    for command in (["init", "-q", "--bare", "repository.git"], ["init", "-q", "work"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "work" / "blob").write_bytes(bytes(range(256)) * 2000)
    remote = f"ssh://ssh{tmp_path / 'repository.git'}"
    git = ["git", "-C", str(tmp_path / "work"), "-c", "user.name=a", "-c", "user.email=a@b.example"]
    git += ["-c", f"core.sshCommand={' '.join(ssh)}", "-c", "safe.directory=*"]
    web = "https://www.allowed.example"
    programs = {
        "http": ["curl", "-sS", "http://www.allowed.example/"],
        "http6": ["curl", "-6", "-sS", "http://www.allowed.example/"],
        "h1": ["curl", "-sS", "--http1.1", f"{web}/", f"{web}/info", f"{web}/bytes/300000", "-o", "/dev/null"],
        "h2": ["curl", "-sS", "--http2", "--parallel", f"{web}/", f"{web}/bytes/300000", "-o", "/dev/null"],
        "h2-6": ["curl", "-6", "-sS", "--http2", f"{web}/bytes/2000000", "-o", "/dev/null"],
        "upload": ["curl", "-sS", "--data-binary", "@/usr/bin/env", f"{web}/upload"],
        "dig": ["dig", "+tries=1", "www.allowed.example", "AAAA"],
        "dig-tcp": ["dig", "+tcp", "@198.51.100.53", "www.allowed.example", "other.allowed.example", "TXT"],
        "dig-chaos": ["dig", "@2001:db8:53::53", "version.bind", "CH", "TXT"],
        "ssh": [*ssh, "ssh", "echo hello over ssh; head -c 300000 /dev/urandom"],
        "commit": ["sh", "-c", " ".join([*map(repr, git), "add blob &&", *map(repr, git), "commit -qm one"])],
    }
    probes = {
        "h3": ["h3", "https://www.allowed.example/bytes/300000"],
        "h3-6": ["h3", "https://www.allowed.example/", "--address", "2001:db8:f::10"],
        "dot": ["dot", "www.allowed.example", "--resolver", "198.51.100.53", "--resolver-name", "dns.example"],
        "doh": ["doh", "www.allowed.example", "--resolver", "198.51.100.53", "--resolver-name", "dns.example"],
    }

    def run(name: str) -> str:
        if name in probes:
            return client.probe(*probes[name], seconds=10)
        done = client.run(*programs[name], timeout=30)
        return "ok" if done.returncode == 0 else f"{done.returncode}: {done.stderr.decode()}"

    with ThreadPoolExecutor(3) as pool:
        assert dict(zip((*programs, *probes), pool.map(run, (*programs, *probes)), strict=True)) == dict.fromkeys(
            (*programs, *probes), "ok"
        )
    for command in (["push", "-q", remote, "HEAD:main"], ["clone", "-q", "-b", "main", remote, str(tmp_path / "copy")]):
        done = client.run(*git, *command, timeout=30)
        assert done.returncode == 0, done
    assert (tmp_path / "copy" / "blob").read_bytes() == bytes(range(256)) * 2000
    # The last test here: at its end, the censor tells of every flow. No rule fired, no packet was dropped or forged.
    client.lab.stop()
    told = client.lab.events()[before:]
    assert {event["censor"]["kind"] for event in told} == {"message", "flow"}
    # The flows that other tests had cut are still remembered.
    flows = [event for event in told if event["event_type"] == "flow" and event["flow"]["start"] >= begun]
    flows = [event["censor"] for event in flows]
    assert len(flows) > len(programs) + len(probes)
    assert not [flow for flow in flows if flow.get("rules") or flow.get("dropped") or flow.get("injected")]
