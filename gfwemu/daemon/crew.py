"""The daemon's side of its workers."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from gfwemu.daemon import worker
from gfwemu.daemon.parts import DaemonOptions, Health, Outputs, Parts
from gfwemu.errors import CapabilityError, GfwemuError
from gfwemu.rules.compiled import RuleSet

_CHUNK = 1 << 18
_PATIENCE = 30.0
"""Seconds in which a worker answers an order. It holds no more than one batch of packets meanwhile."""

_SILENCE = 10.0
"""Seconds without a beat after which a worker counts as stuck."""


class WorkerError(GfwemuError):
    """A worker died or does not answer."""


@dataclass(slots=True)
class _Hand:
    """One worker as the daemon sees it. `answer`: to the last order, None while it is awaited."""

    number: int
    pid: int
    socket: socket.socket
    frames: worker.FrameReader = field(default_factory=worker.FrameReader)
    answer: tuple[str, str] | None = None
    health: Health = Health()
    heard: float = field(default_factory=time.monotonic)


class Crew:
    """Workers, forked when this is made. Methods raise WorkerError."""

    def __init__(
        self,
        options: DaemonOptions,
        parts: Parts,
        rules: RuleSet,
        outputs: Outputs,
        fail_open: bool,
        output: Callable[..., None],
    ) -> None:
        self._outputs = outputs
        self._output = output
        self._hands: list[_Hand] = []
        for number in range(options.workers):
            ours, theirs = socket.socketpair()
            pid = os.fork()
            if pid == 0:
                ours.close()
                for hand in self._hands:
                    hand.socket.close()
                worker.work(number, options, parts, rules, outputs, theirs, fail_open)
            theirs.close()
            ours.setblocking(False)
            self._hands.append(_Hand(number, pid, ours))
        try:
            for hand in self._await():
                if hand.answer is not None and hand.answer[0] == worker.REFUSED:
                    raise CapabilityError(hand.answer[1])
        except GfwemuError:
            self.kill()
            raise

    def filenos(self) -> list[int]:
        return [hand.socket.fileno() for hand in self._hands]

    def attend(self, ready: list[int]) -> None:
        """Takes what workers sent."""
        for hand in self._hands:
            if hand.socket.fileno() in ready:
                self._receive(hand)

    def health(self) -> Health:
        all_of = [hand.health for hand in self._hands]
        return Health(
            sum(one.packets for one in all_of),
            sum(one.flows for one in all_of),
            sum(one.queue_dropped for one in all_of),
            sum(one.socket_dropped for one in all_of),
            sum(one.overruns for one in all_of),
        )

    def alive(self) -> bool:
        """Whether every worker was heard of lately."""
        return all(time.monotonic() - hand.heard < _SILENCE for hand in self._hands)

    # -- rules --------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Has all read their rule files."""
        self._order(worker.LOAD)

    def have_loaded(self) -> bool:
        return all(hand.answer is not None for hand in self._hands)

    def check_loaded(self, rules: RuleSet) -> None:
        """Raises GfwemuError where a worker could not read the rules, or read others."""
        for hand in self._hands:
            what, text = hand.answer or ("", "")
            if what == worker.NOT_LOADED:
                raise GfwemuError(text)
            if text != worker.likeness(rules):
                raise GfwemuError("The rule files changed while they were read; load them again.")

    def keep(self) -> None:
        """Has all forget what they loaded."""
        self._order(worker.KEEP)

    def replace(self, table: Callable[[], None], fail_open: bool) -> None:
        """Puts what was loaded in force: no worker decides anything while the table is replaced."""
        self._order(worker.PAUSE)
        self._await()
        order = worker.KEEP
        try:
            table()
            order = worker.APPLY_OPEN if fail_open else worker.APPLY_CLOSED
        finally:
            self._order(order)

    # -- the end ------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Lets all decide what waits, and waits for their end; a worker that is dead already is no error here."""
        for hand in self._hands:
            with suppress(OSError):
                hand.socket.send(worker.END)
        deadline = time.monotonic() + _PATIENCE
        for hand in self._hands:
            with suppress(WorkerError):
                while time.monotonic() < deadline:
                    if select.select([hand.socket], [], [], 1.0)[0]:
                        self._receive(hand)
        self.kill()

    def kill(self) -> None:
        for hand in self._hands:
            if hand.pid:
                with suppress(ProcessLookupError):
                    os.kill(hand.pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(hand.pid, 0)
                hand.pid = 0
            hand.socket.close()

    def _order(self, order: bytes) -> None:
        for hand in self._hands:
            hand.answer = None
            try:
                hand.socket.send(order)
            except OSError:
                raise self._dead(hand) from None

    def _await(self) -> list[_Hand]:
        """Until all have answered the last order."""
        deadline = time.monotonic() + _PATIENCE
        for hand in self._hands:
            while hand.answer is None:
                if time.monotonic() > deadline:
                    raise WorkerError(f"Worker {hand.number + 1} does not answer; the censor ends.")
                if select.select([hand.socket], [], [], 1.0)[0]:
                    self._receive(hand)
        return self._hands

    def _receive(self, hand: _Hand) -> None:
        try:
            data = hand.socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            raise self._dead(hand)
        hand.heard = time.monotonic()
        for channel, content in hand.frames.feed(data):
            if channel:
                self._output(self._outputs.absorb, hand.number, channel, content)
                continue
            what, text = json.loads(content)
            if what == worker.BEAT:
                hand.health = Health(**json.loads(text))
            else:
                hand.answer = what, text

    def _dead(self, hand: _Hand) -> WorkerError:
        how = "ended"
        if hand.pid:
            _, status = os.waitpid(hand.pid, 0)
            hand.pid = 0
            code = os.waitstatus_to_exitcode(status)
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        lost = "the censor ends, because what the worker remembered is lost; start it again"
        return WorkerError(f"Worker {hand.number + 1} {how}: {lost}.")
