"""What a running lab says about itself."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfwemu.netlab.attach import Attached

_QUEUES = "/proc/net/netfilter/nfnetlink_queue"


@dataclass(frozen=True, slots=True)
class Queue:
    """One netfilter queue: packets that wait now, and packets lost because the queue or its reader was full."""

    node: str
    number: int
    waiting: int
    lost: int


def read_queues(lab: Attached) -> list[Queue]:
    """Every queue of every node; the censor's is the daemon's, the others carry the path's delays."""
    queues = []
    for node in lab.state["nodes"]:
        try:
            done = lab.exec(node, ["cat", _QUEUES], timeout=10, as_root=True)
        except subprocess.TimeoutExpired:
            continue
        for line in done.stdout.decode("ascii", errors="replace").splitlines():
            # nfnetlink_queue.c, seq_show: number, port, waiting, copy mode, copy range, dropped, dropped in user
            # space's socket, last id, 1.
            fields = line.split()
            queues.append(Queue(node, int(fields[0]), int(fields[2]), int(fields[5]) + int(fields[6])))
    return queues


def read_servers(directory: Path) -> dict[str, dict[str, Any]]:
    """How the mini-internet's VPN, ssh and echo servers stand: name to `state` (up, limited, failed) and `detail`."""
    try:
        found = json.loads((directory / "status.json").read_text(encoding="utf-8"))["services"]
    except (OSError, ValueError, KeyError):
        return {}
    return dict(found)


def as_json(lab: Attached) -> dict[str, Any]:
    """The whole status as plain JSON values."""
    state = lab.state
    return {
        "name": state["name"],
        "directory": str(lab.directory),
        "pid": state["pid"],
        "labels": state["labels"],
        "nodes": state["nodes"],
        "services": state["services"],
        "servers": read_servers(lab.directory),
        "queues": [
            {"node": queue.node, "number": queue.number, "waiting": queue.waiting, "lost": queue.lost}
            for queue in read_queues(lab)
        ],
    }
