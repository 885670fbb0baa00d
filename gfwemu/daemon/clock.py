"""The daemon's clock."""

from __future__ import annotations

import time

_OFFSET = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
_boottime, _CLOCK = time.clock_gettime, time.CLOCK_BOOTTIME


def now() -> float:
    """Seconds since the epoch that never step back, and that count a suspended machine's sleep."""
    return _OFFSET + _boottime(_CLOCK)
