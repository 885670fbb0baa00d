"""The same outcomes where the kernel decides nothing: offload must never change an answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from live_kit import Client
from live_tables import BLOCKED, INNOCENT

pytestmark = pytest.mark.kernel

LAB = {"daemon_options": ["--no-offload"]}
AT_ONCE = 4


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_interference_shows_as_with_offload(client: Client, family: str) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        seen = list(pool.map(lambda one: client.curl(one[0], family), BLOCKED))
    assert [one.exit for one in seen] == [exit_code for _, (exit_code,) in BLOCKED]


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_the_innocent_pass_as_with_offload(client: Client, family: str) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        seen = list(pool.map(lambda one: client.curl(one[0], family, "--http1.1", seconds=8), INNOCENT))
    assert [one.exit for one in seen] == [exit_code for _, exit_code, _ in INNOCENT]
    assert all(text in one.page for one, (_, _, text) in zip(seen, INNOCENT, strict=True))


def test_endpoint_rules_are_told_since_the_engine_decides_them(client: Client) -> None:
    client.curl("http://endpoint-drop.example/", seconds=1)
    assert client.wait_for_hit("endpoint-drop")
