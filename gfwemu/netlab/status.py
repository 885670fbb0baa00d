"""What a running lab says about itself."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfwemu.kernel.queue import QUEUE_NUMBERS
from gfwemu.netlab.attach import Attached

_QUEUES = "/proc/net/netfilter/nfnetlink_queue"


@dataclass(frozen=True, slots=True)
class Queue:
    """One netfilter queue.

    waiting: packets that wait now. queue_dropped: packets that the full queue did not take. socket_dropped: packets
    that its reader's full socket did not take. A daemon's bulk queue counts with the queue that it belongs to.
    """

    node: str
    number: int
    waiting: int = 0
    queue_dropped: int = 0
    socket_dropped: int = 0

    @property
    def lost(self) -> int:
        return self.queue_dropped + self.socket_dropped


def read_queues(lab: Attached) -> list[Queue]:
    """Every queue of every node; the censor's are the daemon's, the others carry the path's delays."""
    queues: dict[tuple[str, int], Queue] = {}
    for node in lab.state["nodes"]:
        try:
            done = lab.exec(node, ["cat", _QUEUES], timeout=10, as_root=True)
        except subprocess.TimeoutExpired:
            continue
        for line in done.stdout.decode("ascii", errors="replace").splitlines():
            # nfnetlink_queue.c, seq_show: number, port, waiting, copy mode, copy range, dropped, dropped in user
            # space's socket, last id, 1.
            fields = [int(field) for field in line.split()]
            number = fields[0] % QUEUE_NUMBERS
            other = queues.get((node, number), Queue(node, number))
            queues[node, number] = Queue(
                node,
                number,
                other.waiting + fields[2],
                other.queue_dropped + fields[5],
                other.socket_dropped + fields[6],
            )
    return [queues[key] for key in sorted(queues)]


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
            {
                "node": queue.node,
                "number": queue.number,
                "waiting": queue.waiting,
                "lost": queue.lost,
                "queue_dropped": queue.queue_dropped,
                "socket_dropped": queue.socket_dropped,
            }
            for queue in read_queues(lab)
        ],
    }
