"""The prober's process: what it refuses, and how it ends."""

from __future__ import annotations

import select
import time

from gfwemu.engine.commands import SendProbes
from gfwemu.engine.events import ProbeFinished
from gfwemu.model import address_bytes
from gfwemu.prober.client import ProberProcess
from gfwemu.rules.actions import Probe
from gfwemu.rules.quantities import Varied

PATIENCE = 20.0


def answers(prober: ProberProcess) -> tuple[list[ProbeFinished], list[str]]:
    assert select.select([prober.fileno()], [], [], PATIENCE)[0]
    return prober.read(1.0)


def order(server: str, **action: object) -> SendProbes:
    return SendProbes(1, "suspect", Probe.model_validate(action), address_bytes(server), 443, b"hello")


def test_it_refuses_addresses_that_are_no_lab_s() -> None:
    prober = ProberProcess("lo", 1, 1.0, 0)
    try:
        prober.order(order("192.88.99.1"))
        finished, said = answers(prober)
        assert finished == []
        assert said == ["no probe goes to 192.88.99.1, which is no documentation address (RFC 5737, RFC 3849)"]
    finally:
        prober.close()


def test_it_says_what_keeps_it_from_probing() -> None:
    """Without the device or the address nothing is sent."""
    prober = ProberProcess("no-such-device", 1, 1000.0, 0)
    try:
        prober.order(order("203.0.113.1", count=1, delay=0))
        finished, said = answers(prober)
        assert finished == []
        assert said[0].startswith("a probe of 203.0.113.1 was not sent: ")
    finally:
        prober.close()


def test_it_ends_with_the_daemon_s_end_of_the_socket() -> None:
    prober = ProberProcess("lo", 1, 1.0, 0)
    prober.order(order("203.0.113.1", delay=3600))
    began = time.monotonic()
    prober.close()
    assert prober._process.returncode == 0
    assert time.monotonic() - began < PATIENCE


def test_numbers_travel_as_they_are() -> None:
    assert Probe.model_validate({"delay": "0.5s-1s"}).delay == Varied(((0.0, 0.5), (1.0, 1.0)))
