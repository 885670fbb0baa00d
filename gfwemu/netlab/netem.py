"""Pipes in the kernel, where it has netem: each is the queueing discipline of the interface that its packets leave by.

Lossy pipes stay in user space on every machine: netem draws its losses from a generator that a lab's seed cannot set.
"""

from __future__ import annotations

import shutil
import subprocess

from gfwemu.netlab.blueprint import Blueprint, Hook, Node
from gfwemu.netlab.build import run_tool
from gfwemu.netlab.links import Pipe

_UNLIMITED = 20_000
_PACKET_BYTES = 1500
_LEAST_QUEUED = 10


def netem_works() -> bool:
    """Whether this network namespace can have netem. Tries it on the loopback interface."""
    if shutil.which("tc") is None:
        return False
    attempt = subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"], capture_output=True)
    if attempt.returncode == 0:
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], capture_output=True, check=False)
    return attempt.returncode == 0


def suits(hook: Hook) -> bool:
    return hook.pipe.loss == 0


def lay(node: Node, blueprint: Blueprint) -> None:
    """Give the interfaces of `node`, in whose namespace we are, the pipes that begin there."""
    lines = plan_of(node, blueprint)
    if lines:
        run_tool(["tc", "-batch", "-"], "\n".join(lines) + "\n", f"the pipes of {node.name}")


def plan_of(node: Node, blueprint: Blueprint) -> list[str]:
    """What tc is told on that node."""
    return [
        f"qdisc add dev {interface} root netem {describe(hook.pipe)}"
        for owner in blueprint.nodes
        for hook in owner.hooks
        if suits(hook)
        for place, interface in [_leaves_by(owner, hook, blueprint)]
        if place == node.name
    ]


def describe(pipe: Pipe) -> str:
    """netem's words for a pipe: it queues what waits for the rate, and what is on its way."""
    limit = _UNLIMITED
    words = [f"delay {round(pipe.delay * 1e6)}us"]
    if pipe.rate is not None:
        words.append(f"rate {round(pipe.rate * 8)}bit")
        limit = _LEAST_QUEUED + round(pipe.rate * (pipe.buffer + pipe.delay) / _PACKET_BYTES)
    return " ".join([*words, f"limit {limit}"])


def _leaves_by(owner: Node, hook: Hook, blueprint: Blueprint) -> tuple[str, str]:
    """Node and interface at the beginning of a pipe: what a node catches coming in leaves its neighbour."""
    if hook.chain == "POSTROUTING":
        return owner.name, hook.interface
    position = blueprint.nodes.index(owner)
    if owner.left is not None and hook.interface == owner.left.name:
        neighbour = blueprint.nodes[position - 1]
        end = neighbour.right
    else:
        neighbour = blueprint.nodes[position + 1]
        end = neighbour.left
    assert end is not None
    return neighbour.name, end.name
