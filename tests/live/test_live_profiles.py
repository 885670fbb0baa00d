"""Every shipped profile behind the default topology: what it is about happens, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hello_kit import client_hello, records, server_name
from live_kit import Client
from live_nodes import Node
from live_tls import outcome

from gfwemu.rules.catalogue import profiles

pytestmark = pytest.mark.kernel

RULES = "version: 1\nrules: [{name: none, match: {ip.server: 198.51.100.1}, action: alert}]\n"
LAB = {"topology": "default"}
SHIPPED = Path(__file__).resolve().parents[2] / "rules"
BOTH = ("-4", "-6")
AT_ONCE = 4

Check = Callable[[Client], Any]


def load(client: Client, profile: str) -> None:
    client.load(f"version: 1\ninclude: [{SHIPPED / f'{profile}.yaml'}]\n")


def curl(*command: str, seconds: float = 5.0) -> Check:
    """Exit code and status."""

    def check(client: Client) -> tuple[int, int]:
        seen = client.curl(command[-1], *command[:-1], "-o", "/dev/null", seconds=seconds)
        return seen.exit, seen.status

    return check


def exit_of(check: Check) -> Check:
    """curl's exit code alone: where packets are counted, how far it gets depends on how many ACKs there are."""
    return lambda client: check(client)[0]


def h3(name: str, family: str, seconds: float = 3.0) -> Check:
    address = {
        ("allowed", "-4"): "203.0.113.20",
        ("blocked", "-4"): "203.0.113.30",
        ("allowed", "-6"): "2001:db8:f::20",
        ("blocked", "-6"): "2001:db8:f::30",
    }[name, family]
    # A long page: the drop of QUIC begins a while after the hello.
    page = "bytes/3000000" if name == "blocked" else ""

    def check(client: Client) -> str:
        seen = client.probe("h3", f"https://www.{name}.example/{page}", "--address", address, seconds=seconds)
        return "silence" if seen in ("timeout", "frozen", "slow") else seen

    return check


def dig(name: str, kind: str = "A") -> Check:
    return lambda client: client.dig(name, kind)


def all_of(client: Client, cases: Sequence[tuple[Check, Any]]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        seen = list(pool.map(lambda case: case[0](client), cases))
    assert seen == [expected for _, expected in cases]


def innocent_pass(client: Client, *families: str, quic: bool = False) -> set[str]:
    """The rules that fire while innocent names are visited."""
    flows = [event.get("flow_id", 0) for event in client.lab.events()]
    cases = [case for family in families for case in innocent(family)]
    if quic:
        cases += [(h3("allowed", family), "ok") for family in families]
    all_of(client, cases)
    # Flows of the test before may still be sending.
    new = [event for event in client.lab.events() if event.get("flow_id", 0) > max(flows, default=0)]
    return {event["censor"]["rule"] for event in new if event["censor"]["kind"] in ("rule", "residual", "drop")}


OK = (0, 200)
NO_PAGE = 0
BLOCKED, ALLOWED = "www.blocked.example", "www.allowed.example"


def innocent(family: str) -> list[tuple[Check, Any]]:
    return [
        (curl(family, f"https://{ALLOWED}/"), OK),
        (curl(family, f"http://{ALLOWED}/"), OK),
        (dig(ALLOWED), (0, "NOERROR", ["203.0.113.20"])),
        (dig(ALLOWED, "AAAA"), (0, "NOERROR", ["2001:db8:f::20"])),
    ]


# What each of the simple profiles does to the blocked name, and what it leaves of it.
SIMPLE: dict[str, list[tuple[Check, Any]]] = {
    "open": [
        case
        for family in BOTH
        for case in ((curl(family, f"https://{BLOCKED}/"), OK), (h3("blocked", family, 20), "ok"))
    ],
    "dns-nxdomain": [(dig(BLOCKED), (0, "NXDOMAIN", [])), (dig(BLOCKED, "AAAA"), (0, "NXDOMAIN", []))],
    "dns-poison": [
        (dig(BLOCKED, "AAAA"), (0, "NOERROR", ["2001:db8:bad::250"])),
        (dig("blocked.example.test"), (0, "NOERROR", ["203.0.113.10"])),
    ],
    "http-blockpage": [
        case
        for family in BOTH
        for case in ((curl(family, f"http://{BLOCKED}/"), (0, 403)), (curl(family, f"https://{BLOCKED}/"), OK))
    ],
    "ip-blacklist": [
        case
        for family in BOTH
        for case in (
            (curl(family, f"http://{BLOCKED}/", seconds=1.5), (28, NO_PAGE)),
            (curl(family, f"https://{BLOCKED}/", seconds=1.5), (28, NO_PAGE)),
        )
    ],
    "quic-sni-drop": [
        case
        for family in BOTH
        for case in ((h3("blocked", family, 2), "silence"), (curl(family, f"https://{BLOCKED}/"), OK))
    ],
    "sni-drop": [
        case
        for family in BOTH
        for case in (
            (curl(family, f"https://{BLOCKED}/", seconds=1.5), (28, NO_PAGE)),
            (curl(family, f"http://{BLOCKED}/"), OK),
        )
    ],
    "sni-reset": [(curl(family, f"https://{BLOCKED}/"), (35, NO_PAGE)) for family in BOTH],
    "http-keyword-reset": [
        (curl(family, f"http://{BLOCKED}/?q=blocked-keyword"), (56, NO_PAGE)) for family in BOTH
    ],
    "freeze-16kb": [
        case
        for family in BOTH
        for case in (
            (curl(family, f"https://{BLOCKED}/bytes/5000"), OK),
            (curl(family, f"https://{BLOCKED}/bytes/50000", seconds=1.5), (28, 200)),
            (curl(family, "https://other.example/bytes/50000"), OK),
            (curl(family, f"http://{BLOCKED}/bytes/50000"), OK),
        )
    ],
    "throttle-domain": [
        case
        for family in BOTH
        for case in (
            # 100 KB would take six seconds.
            (curl(family, f"https://{BLOCKED}/bytes/100000", seconds=3), (28, 200)),
            (curl(family, f"https://{ALLOWED}/bytes/100000"), OK),
        )
    ],
}  # fmt: skip
ELSEWHERE = {
    *(name for name in profiles() if name.partition("-")[0] == "china"),  # the conformance cases play those eras
    "russia", "openvpn-block", "wireguard-block",
}  # fmt: skip


@pytest.mark.parametrize("profile", SIMPLE)
def test_a_simple_profile(client: Client, profile: str) -> None:
    load(client, profile)
    assert innocent_pass(client, *BOTH, quic="quic" in profile) == set()
    all_of(client, SIMPLE[profile])


def test_every_shipped_profile_has_its_test() -> None:
    assert set(profiles()) == {*SIMPLE, *ELSEWHERE}


@pytest.mark.parametrize("family", BOTH)
def test_china(client: Client, client_node: Node, family: str) -> None:
    load(client, "china")
    assert innocent_pass(client, family, quic=True) == set()
    address = "203.0.113.30" if family == "-4" else "2001:db8:f::30"
    resolve = ["--resolve", f"{BLOCKED}:443:{address}", "--resolve", f"{BLOCKED}:80:{address}"]
    all_of(
        client,
        [
            (curl(*resolve, f"https://{BLOCKED}/"), (35, NO_PAGE)),
            (curl(*resolve, f"http://{BLOCKED}/"), (56, NO_PAGE)),
            (h3("blocked", family, 2), "silence"),
        ],
    )
    # For a while, so does everybody else on that port of that server: 180 s after a name, 90 s after a host.
    assert curl("--resolve", f"x.example:443:{address}", "https://x.example/")(client)[0] in (7, 35)
    _, status, (answer,) = client.dig(BLOCKED, "A" if family == "-4" else "AAAA")
    assert status == "NOERROR"
    assert answer.startswith("203.0.113.25" if family == "-4" else ("2001:db8:f1", "2001::cb00:71f"))
    allowed = "203.0.113.20" if family == "-4" else "2001:db8:f::20"
    # Encrypted SNI: what the client sends after a second vanishes, and the server's answer to the hello still comes.
    with client_node.connect(allowed, 443) as tcp:
        tcp.sendall(records(client_hello([server_name(b"www.example"), (0xFFCE, bytes(8))])))
        assert outcome(lambda: tcp.recv(1)) == "ok"
    assert client.wait_for_hit("china-esni")
    exits = {curl("--resolve", f"x.example:80:{allowed}", "http://x.example/?q=ultrasurf")(client)[0] for _ in range(6)}
    assert exits & {56, 7}
    for rule in ("china-dns", "china-http-host", "china-tls-sni", "china-quic-sni", "china-http-keyword"):
        assert client.hits(rule), rule


@pytest.mark.parametrize("family", BOTH)
def test_russia(client: Client, family: str) -> None:
    load(client, "russia")
    assert innocent_pass(client, family, quic=True) == {"russia-allowed"}
    all_of(
        client,
        [
            (curl(family, "https://www.example.org/", seconds=1.5), (28, NO_PAGE)),
            (curl(family, f"http://{BLOCKED}/"), (0, 302)),
            (curl(family, f"https://{BLOCKED}/"), (35, NO_PAGE)),
            (exit_of(curl(family, "https://delayed.example/bytes/100000", seconds=2)), 28),
            (curl(family, "https://dropped.example/", seconds=1.5), (28, NO_PAGE)),
            (h3("blocked", family, 2), "silence"),
            (curl(family, "https://www.example.com/bytes/200000", seconds=2), (28, 200)),
            (curl(family, "http://www.example.com/bytes/200000"), OK),
            (curl(family, "https://other.example/bytes/200000"), OK),
        ],
    )
    for rule in ("http", "sni-1", "sni-2", "sni-4", "quic", "freeze"):
        assert client.hits(f"russia-{rule}"), rule
