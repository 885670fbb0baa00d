"""What the engine has to do later: a heap of deadlines."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from gfwemu.engine.commands import Command

Task = Callable[[float], list[Command]]


class Timers:
    """Tasks by due time (seconds since the epoch), first due first, equal times in the order they were set."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Task]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, at: float, task: Task) -> None:
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, task))

    def next(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    def run(self, now: float, commands: list[Command]) -> None:
        """Runs what is due; what it orders is appended to `commands`."""
        while self._heap and self._heap[0][0] <= now:
            _, _, task = heapq.heappop(self._heap)
            commands.extend(task(now))
