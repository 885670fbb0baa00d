"""The resolvers and the ISP's forwarder, as dig, kdig and curl see them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.needs("dig", "nsenter")]
RESOLVER, RESOLVER_V6, FORWARDER = "192.0.2.53", "2001:db8::53", "192.0.2.54"


def dig(space: Any, *arguments: str) -> list[str]:
    done = space.run("dig", "+tries=1", "+time=3", "+short", *arguments)
    assert done.returncode == 0, done.stdout
    return list(done.stdout.split("\n")[:-1])


def status(space: Any, *arguments: str) -> str:
    output: str = space.run("dig", "+tries=1", "+time=3", *arguments).stdout
    return output.partition("status: ")[2].partition(",")[0]


@pytest.mark.parametrize("server", [RESOLVER, RESOLVER_V6])
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (["www.allowed.example"], ["192.0.2.1"]),
        (["WWW.allowed.EXAMPLE", "AAAA"], ["2001:db8::1"]),
        (["anything.at.all.test"], ["192.0.2.9"]),
        (["www.blocked.example", "AAAA"], ["2001:db8::9"]),
        (["dns.example"], [RESOLVER]),
        (["below.wild.example"], ["192.0.2.1"]),
        (["wild.example"], ["192.0.2.9"]),
        (["www.allowed.example", "HTTPS"], ['1 . alpn="h3,h2"']),
        (["captcha.example", "HTTPS"], []),
        (["captcha.example", "AAAA"], []),
        (["captcha.example", "TXT"], []),
        (["no-address.example"], []),
        (["-x", "192.0.2.1"], ["www.allowed.example."]),
        (["-x", "2001:db8::1"], ["www.allowed.example."]),
    ],
)
def test_answers(sites: Any, server: str, transport: str, question: list[str], answer: list[str]) -> None:
    assert dig(sites, f"@{server}", transport, *question) == answer


@pytest.mark.parametrize(
    ("question", "code"),
    [
        (["www.allowed.example"], "NOERROR"),
        (["no-address.example"], "NOERROR"),
        (["absent.example"], "NXDOMAIN"),
        (["deep.below.absent.example"], "NXDOMAIN"),
        (["www.invalid"], "NXDOMAIN"),
        (["-x", "203.0.113.77"], "NXDOMAIN"),
        (["+opcode=status", "a.test"], "NOTIMP"),
    ],
)
def test_response_codes(sites: Any, question: list[str], code: str) -> None:
    assert status(sites, f"@{RESOLVER}", *question) == code


def test_edns_is_answered_with_edns_only(sites: Any) -> None:
    assert "udp: 1232" in sites.run("dig", f"@{RESOLVER}", "a.test").stdout
    assert "EDNS" not in sites.run("dig", "+noedns", f"@{RESOLVER}", "a.test").stdout


@pytest.mark.needs("kdig")
def test_dot_and_doh_are_trusted_by_name_and_by_address(sites: Any) -> None:
    authority = f"+tls-ca={sites.authority}"
    for way in ("+tls", "+https", "+https-get"):
        done = sites.run(
            "kdig", "+short", way, authority, "+tls-host=dns.example", f"@{RESOLVER}", "www.allowed.example"
        )
        assert done.stdout == "192.0.2.1\n", done.stderr
        refused = sites.run("kdig", "+short", way, authority, "+tls-host=other.example", f"@{RESOLVER}", "a.test")
        assert "not match" in refused.stderr + refused.stdout or "certificate" in refused.stderr + refused.stdout
    assert sites.probe("dot", "a.test", "--resolver", RESOLVER)["answers"] == ["192.0.2.9"]
    assert sites.probe("doh", "a.test", "--resolver", RESOLVER_V6, "--resolver-name", "dns.example")["outcome"] == "ok"


def test_curl_resolves_over_https(sites: Any) -> None:
    done = sites.curl("--doh-url", "https://192.0.2.53/dns-query", "https://www.allowed.example/")
    assert done.stdout == "hello from www.allowed.example over h2\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["https://dns.example/dns-query"], 400),
        (["https://dns.example/dns-query?dns=!!!"], 400),
        (["https://dns.example/dns-query?dns=AAAA"], 400),
        (["--data-binary", "x", "https://dns.example/dns-query"], 415),
        (["-X", "DELETE", "https://dns.example/dns-query"], 405),
        (["https://www.allowed.example/dns-query"], 404),
    ],
)
def test_doh_refuses_what_is_no_query(sites: Any, arguments: list[str], code: int) -> None:
    assert sites.curl("-o", "/dev/null", "-w", "%{http_code}", *arguments).stdout == str(code)


def test_a_resolver_listens_only_where_it_should(sites: Any) -> None:
    assert dig(sites, "@192.0.2.10", "a.test") == ["192.0.2.9"]
    assert sites.probe("dns-tcp", "a.test", "--resolver", "192.0.2.10")["outcome"] == "refused"


@contextmanager
def forwarder(space: Any, *upstream: str) -> Iterator[None]:
    reading, writing = os.pipe()
    process = space.popen(
        *(sys.executable, "-m", "gfwemu.netlab.internet.forwarder", "--listen", FORWARDER),
        *("--upstream", *upstream, "--ready-fd", str(writing)),
        pass_fds=(writing,),
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    with os.fdopen(reading, "rb") as ready:
        assert ready.read(1) == b"1"
    try:
        yield
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, b"")


def test_the_forwarder_relays_udp_and_tcp(sites: Any) -> None:
    with forwarder(sites, RESOLVER):
        for transport in ("+notcp", "+tcp"):
            assert dig(sites, f"@{FORWARDER}", transport, "www.allowed.example") == ["192.0.2.1"]
            assert status(sites, f"@{FORWARDER}", transport, "www.invalid") == "NXDOMAIN"
        assert dig(sites, f"@{FORWARDER}", "+tcp", "+keepopen", "a.test", "b.test") == ["192.0.2.9"] * 2


def test_the_forwarder_is_silent_when_upstream_is(sites: Any) -> None:
    # An address of the namespace on which nobody answers.
    with forwarder(sites, "127.0.0.9"):
        assert sites.run("dig", "+tries=1", "+time=1", f"@{FORWARDER}", "a.test").returncode == 9
        assert sites.probe("dns-tcp", "a.test", "--resolver", FORWARDER)["outcome"] in ("reset", "failed")


# A resolver that answers each query three times, the first time for another ID, and says who asked.
LIAR = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.8", 53))
print("ready", flush=True)
while True:
    query, client = server.recvfrom(4096)
    head = query[2:]
    answer = lambda text: bytes([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]) + query[12:query.index(bytes(1), 12) + 5] \
        + bytes([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4]) + socket.inet_aton(text)
    wrong = bytes([query[0] ^ 1]) + query[1:2]
    server.sendto(wrong + answer("203.0.113.1"), client)
    server.sendto(query[:2] + answer("203.0.113.%d" % (2 + client[1] % 200)), client)
    server.sendto(query[:2] + answer("203.0.113.254"), client)
"""


def test_the_forwarder_believes_the_first_answer_and_asks_from_fresh_ports(sites: Any) -> None:
    liar = sites.popen(sys.executable, "-c", LIAR, stdout=subprocess.PIPE)
    try:
        assert liar.stdout.readline() == b"ready\n"
        with forwarder(sites, "127.0.0.8"):
            answers = {dig(sites, "+noedns", f"@{FORWARDER}", "a.test")[0] for _ in range(8)}
    finally:
        liar.kill()
        liar.communicate()
    assert not answers & {"203.0.113.1", "203.0.113.254"}
    assert len(answers) > 3


def test_the_probe_tells_a_poisoned_answer(sites: Any) -> None:
    found = sites.probe("dns", "www.allowed.example", "--resolver", RESOLVER, "--expect", "192.0.2.77")
    assert (found["outcome"], found["exit"]) == ("poisoned", 13)
    assert sites.probe("dns", "www.allowed.example", "--expect", "192.0.2.1")["exit"] == 0
