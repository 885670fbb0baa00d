"""Where the measuring happened."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from gfwemu import interpreted


def describe() -> dict[str, str | int | float]:
    """The machine, its kernel and its load before anything is measured."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]) / (1 << 20), 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}"
        + (", interpreted" if interpreted else ", compiled"),
        "load": round(os.getloadavg()[0], 1),
    }


def disturbed(machine: dict[str, str | int | float]) -> bool:
    """Whether other programs used so much of the machine that absolute figures mean little."""
    return float(machine["load"]) > 0.25 * int(machine["cpus"])


def _field(path: str, name: str) -> str:
    try:
        found = re.search(rf"^{name}\s*:\s*(.*)$", Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""
