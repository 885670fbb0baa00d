"""What real curl and dig see of each kind of interference, over IPv4 and IPv6 (Jafar's and OONI netem's tables)."""

from __future__ import annotations

import pytest
from live_kit import Client
from live_nodes import Node
from live_tables import BLOCKED, INNOCENT
from live_tls import Hello, outcome

pytestmark = pytest.mark.kernel

BOTH = pytest.mark.parametrize("family", ["-4", "-6"])


@BOTH
@pytest.mark.parametrize(("url", "exits"), BLOCKED)
def test_interference_shows_as_published(client: Client, url: str, exits: set[int], family: str) -> None:
    seen = client.curl(url, family)
    assert seen.exit in exits, seen


@BOTH
@pytest.mark.parametrize(("url", "exit_code", "text"), INNOCENT)
def test_the_innocent_pass_and_fail_as_themselves(
    client: Client, url: str, exit_code: int, text: str, family: str
) -> None:
    seen = client.curl(url, family, "--http1.1", seconds=5)
    assert seen.exit == exit_code, seen
    assert text in seen.page


@BOTH
def test_icmp_unreachable_is_told_at_once(client: Client, family: str) -> None:
    seen = client.curl("https://unreachable.example/", family)
    assert seen.exit == 7
    assert seen.seconds < 1.5


@BOTH
def test_block_page(client: Client, family: str) -> None:
    seen = client.curl("http://www.allowed.example/?q=page-word", family)
    assert (seen.exit, seen.status, seen.page) == (0, 451, "Blocked by the lab\n")
    innocent = client.curl("http://www.allowed.example/?q=page+word", family)
    assert (innocent.exit, innocent.status) == (0, 200)


@BOTH
def test_http_redirect(client: Client, family: str) -> None:
    seen = client.curl("http://host-redirect.example/", family, "-L")
    assert (seen.exit, seen.status) == (0, 200)
    assert "hello from www.allowed.example" in seen.page
    assert client.curl("http://host-redirect.example.test/", family, "-L").page.startswith("hello from host-redirect")


@BOTH
def test_redirect_to_another_server(client: Client, family: str) -> None:
    seen = client.curl("http://moved.example/info", family)
    replaced = "2001:db8:f::42" if family == "-6" else "203.0.113.42"
    assert seen.exit == 0
    assert replaced in seen.page
    assert replaced not in client.curl("http://three.example/info", family).page


@BOTH
def test_interception_with_an_untrusted_certificate(client: Client, family: str) -> None:
    assert client.curl("https://dns-interceptor.example/", family).exit == 60
    assert client.curl("https://dns-interceptor.example/", family, "--insecure").exit == 0
    assert client.curl("https://dns-interceptor.example.test/", family).exit == 0


@pytest.mark.parametrize("resolver", ["192.0.2.1", "198.51.100.53", "2001:db8:53::53"])
def test_dns_outcomes(client: Client, resolver: str) -> None:
    at = f"@{resolver}"
    assert client.dig("dns-poison.example", at) == (0, "NOERROR", ["203.0.113.250"])
    assert client.dig("dns-poison.example", at, "AAAA") == (0, "NOERROR", ["2001:db8:bad::1"])
    assert client.dig("dns-nxdomain.example", at) == (0, "NXDOMAIN", [])
    assert client.dig("dns-empty.example", at) == (0, "NOERROR", [])
    assert client.dig("dns-drop.example", at)[0] == 9
    assert client.dig("www.allowed.example", at) == (0, "NOERROR", ["203.0.113.10"])
    assert client.dig("dns-poison.example.test", at) == (0, "NOERROR", ["203.0.113.10"])
    assert client.dig("absent.example", at) == (0, "NXDOMAIN", [])


def test_dns_over_tcp_is_poisoned_in_path(client: Client) -> None:
    assert client.dig("dns-nxdomain.example", "@198.51.100.53", "+tcp")[1] == "NXDOMAIN"
    assert client.dig("www.allowed.example", "@198.51.100.53", "+tcp")[2] == ["203.0.113.10"]


@BOTH
def test_quic(client: Client, family: str) -> None:
    address = "2001:db8:f::10" if family == "-6" else "203.0.113.10"
    assert client.probe("h3", "https://quic-drop.example/", "--address", address, seconds=2) == "timeout"
    assert client.probe("h3", "https://www.allowed.example/", "--address", address) == "ok"


def test_a_rule_with_probability_fires_sometimes(client: Client, client_node: Node) -> None:
    seen = []
    for _ in range(20):
        with client_node.connect("203.0.113.10", 443) as tcp:
            tcp.sendall(Hello(client.lab, "sni-maybe.example").record)
            seen.append(outcome(lambda tcp=tcp: tcp.recv(1)))  # type: ignore[misc]
    assert set(seen) == {"ok", "reset"}
    assert len(client.hits("sni-maybe")) == seen.count("reset")


def test_the_events_name_the_rule_and_the_bytes(client: Client) -> None:
    client.curl("https://sni-notice.example/")
    (hit, *_) = client.wait_for_hit("sni-notice")
    assert hit["event_type"] == "alert"
    assert hit["alert"]["action"] == "allowed"
    assert "sni-notice.example" in str(hit["censor"])
