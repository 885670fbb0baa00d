"""Pipes in user space: the kernel queues a node's packets, and each leaves when its pipe says so.

One process a node, one queue a pipe, first in, first out. For machines without netem, and for pipes that lose packets:
it needs only NFQUEUE, which the censor needs anyway, and its losses follow the seed.
"""

from __future__ import annotations

import random
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from netfilterqueue import COPY_PACKET, NetfilterQueue

from gfwemu.netlab.links import Pipe

_LEAST_QUEUED = 10
_KERNEL_QUEUE = 20000
_SOCKET_BUFFER = 8 << 20


class PipeClock:
    """When packets leave one pipe. No I/O: the caller says what time it is."""

    def __init__(self, pipe: Pipe, rng: random.Random) -> None:
        self._pipe = pipe
        self._rng = rng
        self._free_at = 0.0
        self._starts: deque[float] = deque()

    def leaves_at(self, length: int, now: float) -> float | None:
        """The time at which a packet of `length` bytes leaves, never before an earlier one; None: it is lost."""
        pipe = self._pipe
        if pipe.loss and self._rng.random() < pipe.loss:
            return None
        if pipe.rate is None:
            return now + pipe.delay
        while self._starts and self._starts[0] <= now:
            self._starts.popleft()
        start = max(now, self._free_at)
        if len(self._starts) >= _LEAST_QUEUED and start - now > pipe.buffer:
            return None
        self._free_at = start + length / pipe.rate
        self._starts.append(start)
        return self._free_at + pipe.delay


def shape(pipes: Sequence[tuple[int, Pipe]], seed: int, ready: Callable[[], None]) -> None:
    """Serve (queue number, pipe) pairs for ever. `ready` is called once all queues are bound."""
    waiting: list[deque[tuple[float, Any]]] = []
    queues: list[NetfilterQueue] = []
    for number, pipe in pipes:
        line: deque[tuple[float, Any]] = deque()
        queue = NetfilterQueue()
        take = _taker(PipeClock(pipe, random.Random(f"{seed}/{pipe.name}")), line)
        queue.bind(number, take, _KERNEL_QUEUE, COPY_PACKET, 0xFFFF, _SOCKET_BUFFER)
        waiting.append(line)
        queues.append(queue)
    by_fd = {queue.get_fd(): queue for queue in queues}
    ready()
    while True:
        now = time.monotonic()
        for line in waiting:
            while line and line[0][0] <= now:
                line.popleft()[1].accept()
        due = min((line[0][0] for line in waiting if line), default=None)
        timeout = None if due is None else max(0.0, due - time.monotonic())
        for fd in select.select(list(by_fd), [], [], timeout)[0]:
            by_fd[fd].run(block=False)


def _taker(clock: PipeClock, line: deque[tuple[float, Any]]) -> Callable[[Any], None]:
    def take(packet: Any) -> None:
        when = clock.leaves_at(packet.get_payload_len(), time.monotonic())
        if when is None:
            packet.drop()
        else:
            line.append((when, packet))

    return take
