"""The censor's clock, beside the real one."""

from __future__ import annotations


class Clock:
    """Runs `scale` times faster than the real clock, from the real moment `epoch` on; None: from the first event on.

    `start`: what it shows then (seconds since the epoch); None: the real time.
    """

    __slots__ = ("_epoch", "_origin", "_scale", "_start")

    def __init__(self, scale: float = 1.0, start: float | None = None, epoch: float | None = None) -> None:
        self._scale = scale
        self._start = start
        self._epoch: float | None = None
        self._origin = 0.0
        if epoch is not None:
            self.begin(epoch)

    def begin(self, now: float) -> None:
        """At the first event; later calls do nothing."""
        if self._epoch is None:
            self._epoch = now
            self._origin = now if self._start is None else self._start

    def censor_time(self, now: float) -> float:
        """What the censor's clock shows at that real moment."""
        assert self._epoch is not None
        return self._origin + (now - self._epoch) * self._scale

    def real_time(self, censor_time: float) -> float:
        """The real moment at which the censor's clock shows that."""
        assert self._epoch is not None
        return self._epoch + (censor_time - self._origin) / self._scale

    def real_seconds(self, seconds: float) -> float:
        """How long a duration of the censor's clock really takes."""
        return seconds / self._scale
