"""The censor's daemon on a lab's censor node, started as a lab would, and watched from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gfwemu.netlab.lab import Lab

_TICKS = os.sysconf("SC_CLK_TCK")
_READY = "gfwemu: ready:"
_RELOADED = b"gfwemu: reloaded:"
_FAULT = "the engine failed"
_LONGEST_START = 120.0
_LONGEST_STOP = 60.0
_POLL = 0.01
_TAIL = 500


class MeasureError(Exception):
    """A measure that measured something else than it says, or nothing."""


@dataclass(frozen=True, slots=True)
class Censor:
    """A running daemon. start_seconds: from its start until it was ready. log: what it says."""

    pid: int
    start_seconds: float = 0.0
    log: Path | None = None

    def reload(self, patience: float) -> float:
        """Has it load its rules anew; returns how many seconds that took. Raises MeasureError where it did not."""
        assert self.log is not None
        before = self.log.read_bytes().count(_RELOADED)
        began = time.perf_counter()
        os.kill(self.pid, signal.SIGHUP)
        while self.log.read_bytes().count(_RELOADED) == before:
            if time.perf_counter() - began > patience:
                raise MeasureError(f"the rules were not reloaded: {_end_of(self.log)}")
            time.sleep(_POLL)
        return time.perf_counter() - began

    def cpu(self) -> float:
        """CPU seconds so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        # proc(5): utime and stime are fields 14 and 15; the state, first here, is 3.
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def descriptors(self) -> int:
        """Open files."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def memory(self, field: str) -> float:
        """In MB (10^6 bytes), by a field of proc(5)'s status."""
        text = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
        if found is None:
            raise MeasureError(f"/proc/{self.pid}/status has no {field}")
        return int(found[1]) * 1024 / 1e6


@contextlib.contextmanager
def censoring(lab: Lab, rules: Path, folder: Path, profile: Path | None = None) -> Iterator[Censor]:
    """The daemon with an event log, as labs have one. Its files go to `folder`.

    profile: where cProfile keeps its statistics; it slows the daemon down. Raises MeasureError where the daemon does
    not start, and at the end where its engine failed meanwhile: then what was measured is not what users get.
    """
    log = folder / "daemon.log"
    argv = [sys.executable, "-P", *(["-m", "cProfile", "-o", str(profile)] if profile is not None else [])]
    argv += ["-m", "gfwemu", "daemon", "-c", str(rules), "--inside", "inside", "--outside", "outside"]
    argv += ["--eve", str(folder / "eve.json")]
    began = time.perf_counter()
    with log.open("wb") as stream:
        process = lab.popen(
            "censor", argv, as_root=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stream
        )
    try:
        while _READY not in log.read_text(encoding="utf-8", errors="replace"):
            if process.poll() is not None or time.perf_counter() - began > _LONGEST_START:
                raise MeasureError(f"the daemon did not start: {_end_of(log)}")
            time.sleep(_POLL)
        seconds = time.perf_counter() - began
        yield Censor(_child(process.pid), seconds, log)
        if process.poll() is not None:
            raise MeasureError(f"the daemon ended while it was measured: {_end_of(log)}")
    finally:
        process.terminate()
        process.wait(_LONGEST_STOP)
    if _FAULT in log.read_text(encoding="utf-8", errors="replace"):
        raise MeasureError(f"the engine failed while it was measured: {_end_of(log)}")


def _child(pid: int) -> int:
    """The program behind a process that entered the lab for it."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return int(child)


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace").strip()[-_TAIL:]
