"""Leaving decided flows to the kernel never changes what arrives: the same traffic, with and without it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from kernel_net import CLIENT4, CLIENT6, INSIDE, OUTSIDE, SERVER4, SERVER6, SmallNet, in_namespaces, run

RULES = """
version: 1
rules:
  - name: open-port
    match: {port.server: 7001}
    action: pass
  - name: closed-port
    match: {port.server: 7002}
    action: drop
  - name: forbidden
    match: {payload.contains: forbidden}
    action: drop
    residual: {key: 3tuple, seconds: 1000}
  - name: one-way
    match: {payload.contains: oneway}
    action: drop
    with: {direction: to_client}
  - name: freeze
    match: {port.server: 7003}
    action: freeze
    with: {packets: 9}
"""
SYNC_PORT = 7009
PORTS = (7001, 7002, 7003, 7004, 7005)
WORDS = (b"harmless", b"harmless", b"harmless", b"harmless", b"forbidden", b"oneway")


@dataclass(frozen=True)
class Step:
    """One packet of a flow: from which end, and what is in it."""

    family: int
    client_port: int
    server_port: int
    from_client: bool
    word: bytes


def _steps(rng: random.Random) -> list[Step]:
    return [
        Step(
            family=rng.choice((socket.AF_INET, socket.AF_INET6)),
            client_port=rng.randrange(41000, 41004),
            server_port=rng.choice(PORTS),
            from_client=rng.random() < 0.6,
            word=rng.choice(WORDS),
        )
        for _ in range(250)
    ]


class _Ends:
    """Every port of both ends, open."""

    def __init__(self, net: SmallNet) -> None:
        self.client = {
            (family, port): net.udp("client", family, port)
            for family in (socket.AF_INET, socket.AF_INET6)
            for port in (*range(41000, 41004), 41009)
        }
        self.server = {
            (family, port): net.udp("server", family, port)
            for family in (socket.AF_INET, socket.AF_INET6)
            for port in (*PORTS, SYNC_PORT)
        }

    def close(self) -> None:
        for sock in (*self.client.values(), *self.server.values()):
            sock.close()

    def send(self, step: Step, number: int) -> None:
        client, server = (CLIENT4, SERVER4) if step.family == socket.AF_INET else (CLIENT6, SERVER6)
        text = b"%d %s" % (number, step.word)
        if step.from_client:
            self.client[step.family, step.client_port].sendto(text, (server, step.server_port))
        else:
            self.server[step.family, step.server_port].sendto(text, (client, step.client_port))

    def arrived(self, step: Step, number: int) -> bool:
        """Whether the packet of that step came. The sync packet follows it through the queue, and is never dropped."""
        sync = Step(socket.AF_INET, 41009, SYNC_PORT, True, b"harmless")
        self.send(sync, -number)
        assert self.server[socket.AF_INET, SYNC_PORT].recv(100) == b"%d harmless" % -number
        end = (
            self.server[step.family, step.server_port]
            if step.from_client
            else self.client[step.family, step.client_port]
        )
        end.setblocking(False)
        try:
            return end.recv(100) == b"%d %s" % (number, step.word)
        except BlockingIOError:
            return False


def _outcome(net: SmallNet, steps: list[Step], *options: str) -> list[bool | None]:
    ready, writer = os.pipe()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gfwemu", "daemon", "-c", "/tmp/rules.yaml", "--inside", INSIDE),
            *("--outside", OUTSIDE, "--ready-fd", str(writer), *options),
        ],
        pass_fds=[writer],
    )
    os.close(writer)
    assert os.read(ready, 1) == b"\n"
    ends = _Ends(net)
    found: list[bool | None] = []
    heard: set[tuple[int, int, int]] = set()
    opener: dict[tuple[int, int, int], bool] = {}
    for number, step in enumerate(steps, 1):
        flow = step.family, step.client_port, step.server_port
        # Nobody answers what never came: the kernel forgets a flow whose first packet it drops, the engine does not.
        if opener.get(flow, step.from_client) is not step.from_client and flow not in heard:
            found.append(None)
            continue
        opener.setdefault(flow, step.from_client)
        ends.send(step, number)
        found.append(ends.arrived(step, number))
        if found[-1]:
            heard.add(flow)
    ends.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    run("conntrack -F 2>/dev/null")
    return found


def _compare(net: SmallNet, seed: int) -> None:
    run("mount -t tmpfs tmpfs /tmp")
    Path("/tmp/rules.yaml").write_text(RULES)
    steps = _steps(random.Random(seed))
    with_kernel = _outcome(net, steps)
    without = _outcome(net, steps, "--no-offload")
    differing = [
        (number, step) for number, step in enumerate(steps, 1) if with_kernel[number - 1] != without[number - 1]
    ]
    assert not differing, f"seed {seed}: {differing[:5]}"
    assert True in without
    assert False in without


@pytest.mark.kernel
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_kernels_answers_are_the_engines(seed: int) -> None:
    def compare(net: SmallNet) -> None:
        _compare(net, seed)

    in_namespaces(compare)()
