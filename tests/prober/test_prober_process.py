"""The prober's process: what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import json
import select
import time
from typing import Any, cast

import pytest

from gfwemu.engine.commands import SendProbes
from gfwemu.engine.events import ProbeFinished
from gfwemu.model import address_bytes
from gfwemu.prober.client import ProberProcess
from gfwemu.prober.plan import Request
from gfwemu.prober.process import Prober
from gfwemu.prober.send import NotSentError, Outcome
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


def test_the_last_reaction_says_so_though_a_probe_before_it_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    outcomes: list[Outcome | None] = [None, None, None, Outcome("fin", 0.1, 5), Outcome("data", 0.1, 5)]

    class Writer:
        def write(self, line: bytes) -> None:
            told.append(json.loads(line))

    async def send(*_: object) -> Outcome:
        outcome = outcomes.pop(0)
        if outcome is None:
            raise NotSentError("in use")
        return outcome

    async def campaign() -> None:
        prober = Prober(cast(asyncio.StreamWriter, Writer()), "lo", 1, 1.0, 0)
        prober.take(Request.of(order("203.0.113.1", count=3, delay=0)).to_line())
        await asyncio.gather(*prober._tasks)

    monkeypatch.setattr("gfwemu.prober.process.send", send)
    asyncio.run(campaign())
    assert told[0] == {"say": "a probe of 203.0.113.1 was not sent: in use"}
    assert [(one["reaction"], one["last"]) for one in told[1:]] == [("fin", False), ("data", True)]


def test_it_ends_with_the_daemon_s_end_of_the_socket() -> None:
    prober = ProberProcess("lo", 1, 1.0, 0)
    prober.order(order("203.0.113.1", delay=3600))
    began = time.monotonic()
    prober.close()
    assert prober._process.returncode == 0
    assert time.monotonic() - began < PATIENCE


def test_numbers_travel_as_they_are() -> None:
    assert Probe.model_validate({"delay": "0.5s-1s"}).delay == Varied(((0.0, 0.5), (1.0, 1.0)))
