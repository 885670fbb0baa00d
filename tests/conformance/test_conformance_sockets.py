"""Sockets of a node, and what becomes of them when one of the two ends is gone."""

from __future__ import annotations

import socket
import subprocess
from typing import Any, cast

import pytest

from gfwemu.conformance.sockets import NodeSockets
from gfwemu.netlab.errors import LabError
from gfwemu.netlab.lab import Lab


class Here:
    """Runs a node's programs in this very place."""

    def __init__(self) -> None:
        self.agents: list[subprocess.Popen[bytes]] = []

    def popen(self, _: str, argv: list[str], *, as_root: bool, stdin: socket.socket) -> Any:
        assert as_root
        self.agents.append(subprocess.Popen(argv, stdin=stdin, stderr=subprocess.PIPE))
        return self.agents[-1]


def test_a_node_that_is_gone_gives_no_sockets() -> None:
    lab = Here()
    node = NodeSockets(cast(Lab, lab), "client")
    node.make(socket.AF_INET, socket.SOCK_DGRAM).close()
    (agent,) = lab.agents
    agent.kill()
    agent.communicate()
    with pytest.raises(LabError, match="The lab's client gives no sockets"):
        node.make(socket.AF_INET, socket.SOCK_DGRAM)
    node.close()


def test_the_node_s_end_says_nothing_when_ours_is_gone() -> None:
    lab = Here()
    node = NodeSockets(cast(Lab, lab), "client")
    # Closing with an answer unread resets the connection.
    node._control.send(f"{int(socket.AF_INET)} {int(socket.SOCK_DGRAM)}".encode())
    node._control.recv(1, socket.MSG_PEEK)
    node._control.close()
    _, said = lab.agents[0].communicate(timeout=20)
    assert (lab.agents[0].returncode, said) == (0, b"")
