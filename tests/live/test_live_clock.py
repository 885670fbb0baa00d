"""A faster clock of the censor, which starts at a given time: blocks, hours and lifetimes lived through."""

from __future__ import annotations

import datetime
import subprocess
import sys
import time

import pytest
from live_kit import Client

from gfwemu.netlab.internet.plan import Site

pytestmark = pytest.mark.kernel

# On 2025-08-20 from 00:34 to 01:48 (CST) all of TCP/443 was reset; six minutes of it are enough here.
RULES = """version: 1
defaults: {seed: 5}
rules:
  - name: outage
    match: {ip.server: [203.0.113.101, "2001:db8:f::101"], port.server: 443}
    action: reset
    placement: on-path
    schedule: {hours: "00:34-00:40", dates: 2025-08-20, timezone: Asia/Shanghai}
  - name: night
    match: {tls.sni: night.example}
    action: reset
    probability: {hours: {0: 1, 1: 0}, timezone: "+08:05"}
  - name: three-minutes
    match: {tls.sni: three-minutes.example}
    action: reset
    placement: on-path
    residual: {key: 3tuple, seconds: 180, action: reset}
"""
SITES = [
    Site(names=(f"{name}.example",), v4=(f"203.0.113.{number}",), v6=(f"2001:db8:f::{number}",))
    for number, name in enumerate(("outage", "three-minutes", "night"), 101)
]
START = datetime.datetime(2025, 8, 20, 0, 27, tzinfo=datetime.timezone(datetime.timedelta(hours=8))).timestamp()
LAB = {"extra_sites": SITES, "time_scale": 60, "start_time": START}
RESET = 35  # curl: SSL connect error, here for a connection reset
REFUSED = 7


def fetch(client: Client, name: str, *, version: int = 4) -> int:
    return client.curl(f"https://{name}.example/", f"-{version}").exit


def test_a_rate_holds_for_its_hour(client: Client) -> None:
    """It is 00:32 by that time zone when the daemon starts: 28 seconds of ours before the next hour."""
    assert fetch(client, "night") == RESET


def test_an_outage_is_lived_through(client: Client) -> None:
    """Six minutes by the censor's clock are six seconds."""
    seen: list[tuple[float, bool]] = []
    deadline = time.monotonic() + 40
    while not (seen and any(blocked for _, blocked in seen) and not seen[-1][1]):
        assert time.monotonic() < deadline, seen
        seen.append((time.monotonic(), fetch(client, "outage") != 0))
    blocked = [at for at, was in seen if was]
    first, last = seen.index((blocked[0], True)), seen.index((blocked[-1], True))
    assert all(was for _, was in seen[first : last + 1]), "it comes once and goes once"
    assert blocked[-1] - blocked[0] < 6.5
    assert client.hits("outage")


@pytest.mark.parametrize("version", [4, 6])
def test_three_minutes_are_over_in_three_seconds(client: Client, version: int) -> None:
    began = time.monotonic()
    assert fetch(client, "three-minutes", version=version) == RESET
    plain = ("http://three-minutes.example:443/", f"-{version}")
    while (met := client.curl(*plain).exit) in (REFUSED, 56):
        assert time.monotonic() - began < 10
    ended = time.monotonic() - began
    assert met not in (REFUSED, RESET, 56)
    assert 2.5 < ended < 5.0
    assert client.events("residual", "three-minutes")


def test_a_rate_changes_with_the_hour(client: Client) -> None:
    """The daemon's first half minute was before one o'clock, when the first test of this module ran."""
    assert client.hits("night")
    deadline = time.monotonic() + 60
    while (met := fetch(client, "night")) == RESET:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert met == 0
    hits = len(client.hits("night"))
    assert [fetch(client, "night") for _ in range(3)] == [0, 0, 0]
    assert len(client.hits("night")) == hits


def test_the_header_of_a_run_tells_the_clock() -> None:
    command = [
        sys.executable,
        "-m",
        "gfwemu",
        "run",
        "--time-scale",
        "60",
        "--start-time",
        "2025-08-20T00:30+08:00",
        "--",
        "true",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "the censor's clock runs 60 times faster, it starts at 2025-08-19T16:30:00Z" in done.stderr


def test_a_moment_that_is_none_is_refused_in_a_sentence() -> None:
    command = [sys.executable, "-m", "gfwemu", "run", "--start-time", "tomorrow", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "'tomorrow' is no moment; write it as in 2025-08-20T00:30+08:00" in done.stderr
