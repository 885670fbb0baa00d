"""Signals as something to wait for: handlers only write their number to a pipe."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable, Sequence


class Wakeup:
    """Catches signals from now on. One per process: it owns Python's wakeup descriptor."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self._reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, _note)

    def wait(self, timeout: float | None, fds: Sequence[int] = ()) -> set[int]:
        """The signals that came. Empty after `timeout` seconds, or when one of `fds` became readable."""
        ready, _, _ = select.select([self._reader, *fds], [], [], timeout)
        return set(os.read(self._reader, 4096)) if self._reader in ready else set()


def _note(number: int, frame: object) -> None:
    """The wakeup descriptor has it already."""
