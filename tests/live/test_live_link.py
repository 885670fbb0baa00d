"""The subscriber's line (`--link`) beside the censor: the narrower of the two tells."""

from __future__ import annotations

import time

import pytest
from live_kit import Client
from live_nodes import Node

pytestmark = pytest.mark.kernel

RULES = """version: 1
rules:
  - {name: narrow, match: {tls.sni: narrow.example}, action: throttle, with: {rate: 400kbit, mode: shape, limit: 200KB}}
  - {name: wide, match: {tls.sni: wide.example}, action: throttle, with: {rate: 20mbit, mode: shape, limit: 200KB}}
  - {name: reset, match: {tls.sni: reset.example}, action: reset}
  - {name: slow, match: {ip.server: [203.0.113.24, "2001:db8:f::24"]}, action: delay, with: {time: 50ms}}
"""
LAB = {"link": "2000/1000/60"}
LINE = 250_000  # bytes a second
BOTH = pytest.mark.parametrize("family", ["-4", "-6"])


@BOTH
def test_the_narrower_of_line_and_censor_tells(client: Client, family: str) -> None:
    for name, size, rate in (("narrow.example", 60_000, 50_000), ("wide.example", 400_000, LINE)):
        seen = client.curl(f"https://{name}/bytes/{size}", family, "-o", "/dev/null", seconds=20)
        assert (seen.exit, seen.size) == (0, size)
        assert 0.6 * rate < seen.size / seen.seconds < 1.25 * rate


@BOTH
def test_a_reset_comes_over_the_line(client: Client, family: str) -> None:
    seen = client.curl("https://reset.example/", family, seconds=5)
    assert seen.exit == 35
    # Two round trips: one to connect, one for the hello and its reset.
    assert seen.seconds >= 0.12


@pytest.mark.parametrize(("slow", "fast"), [("203.0.113.24", "203.0.113.10"), ("2001:db8:f::24", "2001:db8:f::10")])
def test_delays_add_up(client_node: Node, slow: str, fast: str) -> None:
    for address, least in ((fast, 0.06), (slow, 0.16)):
        spent = []
        for _ in range(3):
            started = time.monotonic()
            client_node.connect(address, 80).close()
            spent.append(time.monotonic() - started)
        assert least <= min(spent) < least + 0.06
