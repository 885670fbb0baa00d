"""What a daemon writes: the event log, the capture, the metrics."""

from __future__ import annotations

import contextlib
import pickle
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gfwemu.daemon import Health, Post
from gfwemu.engine.commands import Command, Inject, Report, SetVerdict
from gfwemu.errors import UsageError
from gfwemu.kernel.table import RuleCounter
from gfwemu.model import Side
from gfwemu.replay.run import comment_of
from gfwemu.report.counters import Counters
from gfwemu.report.eve import EveWriter
from gfwemu.report.pcapng import PcapngWriter
from gfwemu.rules.compiled import RuleSet

EVE, CAPTURE, COUNTERS = "eve", "capture", "counters"

_STATS_INTERVAL = 60.0
"""Seconds between two `stats` events. When packets were lost, the next heartbeat says so."""


class FileOutputs:
    """Of the daemon: to files. A single worker tells it everything; several post what they would write."""

    def __init__(self, eve: Path | None, pcap: Path | None, metrics: Path | None) -> None:
        self._files = files = contextlib.ExitStack()
        self._metrics = metrics
        self._counters = Counters(start_time=time.time())
        self._counters.reload_time = self._counters.start_time
        self._of_workers: dict[int, Counters] = {}
        self._told = Health()
        self._told_at: float | None = None
        at = eve
        try:
            self._lines = sys.stdout if eve == Path("-") else files.enter_context(eve.open("a")) if eve else None
            self._eve = EveWriter(self._lines, each=False) if self._lines else None
            at = pcap
            self._capture = files.enter_context(pcap.open("wb", buffering=0)) if pcap else None
            self._pcap = PcapngWriter(self._capture, each=False) if self._capture else None
            # What workers post comes behind the capture's header.
            self.flush()
            at = metrics
            self._write_metrics()
        except OSError as error:
            self.release()
            raise UsageError(f"{at}: {error.strerror}") from None
        self.takes_all = self._pcap is not None or metrics is not None

    def commanded(self, command: Command, now: float, data: bytes, came_from: Side | None) -> None:
        _tell(command, now, data, came_from, self._eve, self._pcap)
        if self._metrics is not None:
            self._counters.observe(command, len(data))

    def kernel_rules(self, now: float, counters: Sequence[RuleCounter], rules: RuleSet) -> None:
        by_name = {rule.name: rule for rule in rules.rules}
        for counter in counters:
            rule = by_name[counter.name]
            if self._eve is not None:
                self._eve.kernel_rule(
                    now,
                    counter.name,
                    rule.action_name,
                    counter.packets,
                    counter.bytes,
                    cite=rule.cite,
                    observed=rule.observed,
                )
        self._count_kernel(counters, rules)

    def heartbeat(self, now: float, health: Health, counters: Sequence[RuleCounter], rules: RuleSet) -> None:
        self._count_kernel(counters, rules)
        own = self._counters
        own.packets, own.flows = health.packets, health.flows
        own.queue_dropped, own.socket_dropped, own.overruns = health.lost
        if self._eve is not None and self._is_news(now, health):
            self._eve.stats(now, self._total())
            self._told, self._told_at = health, now
        self._write_metrics()

    def reloaded(self, now: float) -> None:
        self._counters.reload_time = now

    def flush(self) -> None:
        _flush(self._eve, self._pcap)

    def close(self) -> None:
        self.flush()
        self._write_metrics()

    def in_worker(self, post: Post) -> PostedOutputs:
        return PostedOutputs(
            post, eve=self._eve is not None, pcap=self._pcap is not None, metrics=self._metrics is not None
        )

    def absorb(self, worker: int, channel: str, data: bytes) -> None:
        if channel == EVE and self._lines is not None:
            self._lines.write(data.decode())
            self._lines.flush()
        elif channel == CAPTURE and self._capture is not None:
            self._capture.write(data)
        elif channel == COUNTERS:
            self._of_workers[worker] = pickle.loads(data)

    def release(self) -> None:
        """Closes the files. On a full disk their last bytes are lost, as the daemon has said by then."""
        with contextlib.suppress(OSError):
            self._files.close()

    def _is_news(self, now: float, health: Health) -> bool:
        if self._told_at is None:
            self._told_at = now
        return health.lost != self._told.lost or now - self._told_at >= _STATS_INTERVAL

    def _total(self) -> Counters:
        return self._counters.plus(self._of_workers.values())

    def _write_metrics(self) -> None:
        if self._metrics is not None:
            # A library that takes longer to load than all else, and is rarely wanted.
            from gfwemu.report.metrics import write_metrics

            write_metrics(self._total(), self._metrics)

    def _count_kernel(self, counters: Sequence[RuleCounter], rules: RuleSet) -> None:
        actions = {rule.name: rule.action_name for rule in rules.rules}
        for counter in counters:
            key = counter.name, actions[counter.name]
            self._counters.kernel_packets[key] = counter.packets
            self._counters.kernel_bytes[key] = counter.bytes


class PostedOutputs:
    """Of one of several workers: whole lines and whole blocks, posted to the daemon."""

    def __init__(self, post: Post, *, eve: bool, pcap: bool, metrics: bool) -> None:
        self._post = post
        self._eve = EveWriter(_PostedLines(post), each=False) if eve else None
        self._pcap = PcapngWriter(_PostedBlocks(post), each=False, header=False) if pcap else None
        self._counters = Counters() if metrics else None
        self.takes_all = pcap or metrics

    def commanded(self, command: Command, now: float, data: bytes, came_from: Side | None) -> None:
        _tell(command, now, data, came_from, self._eve, self._pcap)
        if self._counters is not None:
            self._counters.observe(command, len(data))

    def kernel_rules(self, now: float, counters: Sequence[RuleCounter], rules: RuleSet) -> None:
        """The daemon sees to it."""

    def heartbeat(self, now: float, health: Health, counters: Sequence[RuleCounter], rules: RuleSet) -> None:
        if self._counters is not None:
            self._post(COUNTERS, pickle.dumps(self._counters))

    def reloaded(self, now: float) -> None:
        """The daemon sees to it."""

    def flush(self) -> None:
        _flush(self._eve, self._pcap)

    def close(self) -> None:
        self.flush()

    def in_worker(self, post: Post) -> PostedOutputs:
        return self

    def absorb(self, worker: int, channel: str, data: bytes) -> None:
        """A worker has none below it."""


class _PostedLines:
    def __init__(self, post: Post) -> None:
        self._post = post

    def write(self, text: str, /) -> None:
        self._post(EVE, text.encode())

    def flush(self) -> None:
        """Nothing waits here."""


class _PostedBlocks:
    def __init__(self, post: Post) -> None:
        self._post = post

    def write(self, data: bytes, /) -> None:
        self._post(CAPTURE, data)

    def flush(self) -> None:
        """Nothing waits here."""


def _tell(
    command: Command,
    now: float,
    data: bytes,
    came_from: Side | None,
    eve: EveWriter | None,
    pcap: PcapngWriter | None,
) -> None:
    if eve is not None and isinstance(command, Report):
        eve.write(command.record)
    if pcap is not None:
        if isinstance(command, SetVerdict):
            left = data if command.data is None else command.data
            pcap.write(left, now, came_from=came_from, comment=comment_of(command))
        elif isinstance(command, Inject):
            pcap.write(command.data, now, came_from=None, comment=command.reason, injected=True)


def _flush(eve: EveWriter | None, pcap: PcapngWriter | None) -> None:
    if eve is not None:
        eve.flush()
    if pcap is not None:
        pcap.flush()
