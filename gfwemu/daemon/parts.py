"""What a daemon is made of, and what it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gfwemu.engine.commands import Command, SendProbes
from gfwemu.engine.events import Event, ProbeFinished
from gfwemu.kernel.table import DEFAULT_QUEUE, RuleCounter
from gfwemu.model import Side
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.plan import KernelPlan

Post = Callable[[str, bytes], None]
"""Sends something from a worker to the daemon: a channel's name and what `Outputs.absorb` shall get there."""


class Decider(Protocol):
    """The engine, or what stands in for it."""

    @property
    def flow_count(self) -> int: ...

    def handle(self, event: Event) -> list[Command]: ...


class Prober(Protocol):
    """Sends probes in a process of its own. `broken`: that came to an end, or does not keep up."""

    broken: bool

    def fileno(self) -> int: ...

    def order(self, command: SendProbes) -> None:
        """Raises OSError."""
        ...

    def read(self, now: float) -> tuple[list[ProbeFinished], list[str]]:
        """What came in: reactions, and words for the user."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Health:
    """How a daemon is doing.

    packets: that came to user space. flows: that its engines remember now. queue_dropped: packets that a full queue did
    not take. socket_dropped: packets that the kernel could not hand over because the socket was full. overruns: how
    often the socket said so (ENOBUFS); with fail-open, those packets have passed.
    """

    packets: int = 0
    flows: int = 0
    queue_dropped: int = 0
    socket_dropped: int = 0
    overruns: int = 0

    @property
    def lost(self) -> tuple[int, int, int]:
        return self.queue_dropped, self.socket_dropped, self.overruns


class Outputs(Protocol):
    """Where the daemon tells what it does. OSError comes out of every method."""

    takes_all: bool
    """Whether `commanded` is called for every command, or for `Report` only."""

    def commanded(self, command: Command, now: float, data: bytes, came_from: Side | None) -> None:
        """Every command in order. `data` and `came_from` are of the packet that a SetVerdict decides."""
        ...

    def kernel_rules(self, now: float, counters: Sequence[RuleCounter], rules: RuleSet) -> None:
        """The last counters of a kernel plan, before it is replaced or removed."""
        ...

    def heartbeat(self, now: float, health: Health, counters: Sequence[RuleCounter], rules: RuleSet) -> None:
        """About once a second."""
        ...

    def reloaded(self, now: float) -> None: ...

    def flush(self) -> None:
        """Nothing waits any more for being written. Called when no packet waits, too."""
        ...

    def close(self) -> None: ...

    def in_worker(self, post: Post) -> Outputs:
        """The same for a worker, which writes to no file: its outputs post what is to be written."""
        ...

    def absorb(self, worker: int, channel: str, data: bytes) -> None:
        """Takes what a worker posted."""
        ...


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """kernel_decides False: user space sees every packet, and no flow is left to the kernel.

    queue_length: packets that may wait in the kernel beside those that the engine holds. queue_buffer: bytes of the
    socket on which they are handed over. fail_open None: as the rules say.
    """

    inside: str
    outside: str
    queue: int = DEFAULT_QUEUE
    workers: int = 1
    queue_length: int = 4096
    queue_buffer: int = 16 << 20
    fail_open: bool | None = None
    kernel_decides: bool = True
    time_scale: float = 1.0
    pid_file: Path | None = None
    ready_fd: int | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """How to load rules, to plan for the kernel, and to make an engine (of the worker with that number)."""

    load: Callable[[], RuleSet]
    plan: Callable[[RuleSet], KernelPlan]
    engine: Callable[[RuleSet, int], Decider]
    widened: Callable[[Any, RuleSet], Decider] = lambda engine, _: engine
    """The engine, able to take these rules in the place of its own."""
    prober: Callable[[RuleSet, int], Prober | None] = lambda _, __: None
    """Of the worker with that number, started where the rules need one."""
