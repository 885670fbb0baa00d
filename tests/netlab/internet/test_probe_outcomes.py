"""The probe's one word, its exit code and its JSON."""

import json
import subprocess
import sys
from typing import Any

import pytest

from gfwemu.netlab.probe.outcome import OUTCOMES, Options, Result, judge_page, split_target
from gfwemu.netlab.probe.run import KINDS

QUICK = ["--timeout", "1"]


@pytest.mark.kernel
@pytest.mark.needs("nsenter")
@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [
        (["tcp", "192.0.2.1:80"], "ok"),
        (["tcp", "[2001:db8::1]:443"], "ok"),
        (["tcp", "192.0.2.1:81"], "refused"),
        (["tcp", "unknown.invalid:80"], "failed"),
        (["tls", "www.allowed.example", "--alpn", "h2"], "ok"),
        (["tls", "expired.example"], "failed"),
        (["tls", "expired.example", "--insecure"], "ok"),
        (["tls", "tls-reset.example"], "reset"),
        (["tls", "www.allowed.example", "--sni", "other.example"], "failed"),
        (["http", "http://www.allowed.example/"], "ok"),
        (["http", "http://www.allowed.example:81/"], "refused"),
        (["http", "http://closes.example/"], "failed"),
        (["http", "http://resets.example/"], "reset"),
        (["http", "http://stalls.example/", *QUICK], "timeout"),
        (["http", "http://slow.example/", *QUICK], "slow"),
        (["http", "http://www.allowed.example/freeze/3000", *QUICK], "frozen"),
        (["http", "http://blockpage.example/"], "blockpage"),
        (["http", "http://captcha.example/", "--blockpage-text", "you are human"], "blockpage"),
        (["https", "https://www.allowed.example/bytes/100000", "--address", "2001:db8::1"], "ok"),
        (["https", "https://untrusted.example/"], "failed"),
        (["h3", "https://www.allowed.example/bytes/100000", "--local-port", "5432"], "ok"),
        (["h3", "https://www.allowed.example/reset"], "reset"),
        (["h3", "https://www.allowed.example/stall", *QUICK], "timeout"),
        (["h3", "https://www.allowed.example/slow/40", *QUICK], "slow"),
        (["h3", "https://www.allowed.example/freeze/3000", *QUICK], "frozen"),
        (["h3", "https://blockpage.example/", "--address", "192.0.2.3"], "blockpage"),
        (["h3", "https://expired.example/"], "failed"),
        (["quic", "www.allowed.example"], "ok"),
        (["quic", "www.allowed.example", "--quic-version", "2"], "ok"),
        (["quic", "www.allowed.example:444"], "refused"),
        (["quic", "dns.example:53", *QUICK], "timeout"),
        (["quic", "www.allowed.example", "--alpn", "nonsense"], "failed"),
        (["dns", "www.allowed.example"], "ok"),
        (["dns", "www.allowed.example", "--expect", "192.0.2.1", "--query-type", "a", "--listen", "0.2"], "ok"),
        (["dns", "www.allowed.example", "--expect", "203.0.113.1"], "poisoned"),
        (["dns", "www.allowed.example", "--expect", "2001:DB8:0:0::1", "--query-type", "AAAA"], "ok"),
        (["dns", "www.invalid"], "failed"),
        (["dns", "a.test", "--resolver", "192.0.2.1"], "refused"),
        (["dns", "a.test", "--resolver", "192.0.2.53:443", *QUICK], "refused"),
        (["dns", "a.test", "--query-type", "NONSENSE"], "failed"),
        (["dns-tcp", "a.test"], "ok"),
        (["dot", "a.test", "--resolver-name", "dns.example"], "ok"),
        (["dot", "a.test", "--resolver-name", "other.example"], "failed"),
        (["doh", "a.test", "--expect", "203.0.113.1"], "poisoned"),
        (["doh", "a.test", "--resolver", "192.0.2.1"], "failed"),
    ],
)
def test_outcomes(sites: Any, arguments: list[str], outcome: str) -> None:
    found = sites.probe(*arguments)
    assert (found["outcome"], found["exit"]) == (outcome, OUTCOMES[outcome]), found
    assert found["seconds"] < 8


@pytest.mark.kernel
@pytest.mark.needs("nsenter")
def test_what_is_reported(sites: Any) -> None:
    found = sites.probe("https", "https://www.allowed.example/", "--address", "192.0.2.1")
    assert 0 < found.pop("last_byte") <= found.pop("seconds")
    assert found == {
        "probe": "https",
        "target": "https://www.allowed.example/",
        "outcome": "ok",
        "detail": "",
        "received": 45,
        "status": 200,
        "protocol": "TLSv1.3",
        "server": "192.0.2.1",
        "answers": [],
        "text": "hello from www.allowed.example over http/1.1\n",
        "exit": 0,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["carrier-pigeon", "x"], "invalid choice: 'carrier-pigeon'"),
        (["quic", "x", "--quic-version", "3"], "invalid choice: 3"),
        (["dns", "x", "--timeout", "soon"], "invalid float value: 'soon'"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gfwemu.netlab.probe", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr


ALL_KINDS = """
import asyncio, json, sys
from gfwemu.netlab.probe.outcome import Options
from gfwemu.netlab.probe.run import KINDS, probe
for target in sys.argv[1:]:
    for kind in KINDS:
        result = asyncio.run(probe(kind, Options(target=target, timeout=0.5, resolver="127.0.0.1:1")))
        print(json.dumps([target, kind, result.outcome, result.detail]))
"""


@pytest.mark.kernel
@pytest.mark.needs("nsenter")
def test_odd_targets_are_an_outcome_not_a_traceback(sites: Any) -> None:
    targets = [
        "",
        "[",
        "//[.invalid",
        "a b.invalid:c",
        "x.invalid:99999",
        ":",
        "http://a.invalid:b/",
        "\u00e9..\u00e9.invalid",
    ]
    done = sites.python("-c", ALL_KINDS, *targets)
    assert done.stderr == ""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(targets) * len(KINDS)
    assert [line for line in found if line[2] not in ("failed", "refused")] == []
    assert all(detail for _, _, outcome, detail in found if outcome == "failed")


# Each connection gets these bytes, and is closed.
SPEAKER = """
import socket, sys
server = socket.create_server(("127.0.0.7", 80))
print("ready", flush=True)
while True:
    link, _ = server.accept()
    link.recv(1000)
    link.sendall(eval(sys.argv[1]))
    link.close()
"""


@pytest.mark.kernel
@pytest.mark.needs("nsenter")
@pytest.mark.parametrize(
    ("said", "detail"),
    [
        ("b'SSH-2.0-x\\r\\n\\r\\n'", "the answer is not HTTP/1"),
        (
            "b'HTTP/1.1 200 OK\\r\\nContent-Length: many\\r\\n\\r\\n'",
            "invalid literal for int() with base 10: b' many'",
        ),
        ("b'HTTP/1.1 200 OK\\r\\nContent-Length: 9\\r\\n\\r\\nabc'", "the answer ended after 3 of 9 bytes"),
        ("b'HTTP/1.1 200 OK' + b'x' * 100000", "the head of the answer is too long"),
        ("b'HTTP'", "the server closed the connection without an answer"),
    ],
)
def test_an_answer_that_is_no_http_is_failed(sites: Any, said: str, detail: str) -> None:
    speaker = sites.popen(sys.executable, "-c", SPEAKER, said, stdout=subprocess.PIPE)
    try:
        assert speaker.stdout.readline() == b"ready\n"
        found = sites.probe("http", "http://127.0.0.7/")
    finally:
        speaker.kill()
        speaker.communicate()
    assert (found["outcome"], found["detail"]) == ("failed", detail)


@pytest.mark.parametrize(
    ("received", "seconds", "status", "below", "outcome"),
    [
        (100_000, 1.0, 200, 801, "slow"),
        (100_000, 1.0, 200, 799, "ok"),
        (100_000, 1.0, 200, 0, "ok"),
        (10_000, 1.0, 200, 801, "ok"),
        (100_000, 0.1, 200, 99_999, "ok"),
        (100_000, 1.0, 451, 801, "blockpage"),
    ],
)
def test_a_page_is_judged_by_status_then_speed(
    received: int, seconds: float, status: int, below: float, outcome: str
) -> None:
    result = Result(received=received, status=status)
    judge_page(Options(target="x", slow_below=below), result, seconds)
    assert result.outcome == outcome


@pytest.mark.parametrize(
    ("target", "split"),
    [
        ("www.example", ("www.example", 443)),
        ("www.example:8443", ("www.example", 8443)),
        ("192.0.2.1", ("192.0.2.1", 443)),
        ("2001:db8::1", ("2001:db8::1", 443)),
        ("[2001:db8::1]:99", ("2001:db8::1", 99)),
    ],
)
def test_split_target(target: str, split: tuple[str, int]) -> None:
    assert split_target(target, 443) == split
