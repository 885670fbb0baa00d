"""Run directories: one a lab, with its state, logs and private files; cleaned when their lab is gone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfwemu.errors import CapabilityError

_STATE = "state.json"
_OWNER = "owner"
_REMOVAL_PATIENCE = 5.0
_ATTEMPTS = 20
_STALE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for a later one with its number: `started` is in clock ticks since boot."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """None where there is no such process any more."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        # proc(5): the 22nd field is the start time; the second, in brackets, may contain blanks.
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        return Process.of(self.pid) == self


def base_directory() -> Path:
    """`$XDG_RUNTIME_DIR/gfwemu` or `/tmp/gfwemu-UID`, made when missing. Raises CapabilityError."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    own = bool(runtime) and os.access(runtime, os.W_OK) and Path(runtime).stat().st_uid == os.geteuid()
    base = Path(runtime, "gfwemu") if own else Path(tempfile.gettempdir(), f"gfwemu-{os.geteuid()}")
    try:
        base.mkdir(mode=0o711, exist_ok=True)
        found = base.lstat()
    except OSError as error:
        raise CapabilityError(f"Cannot make the run directory {base}: {error.strerror}.") from None
    if found.st_uid != os.geteuid() or base.is_symlink() or found.st_mode & 0o022:
        raise CapabilityError(
            f"The run directory {base} belongs to somebody else.", "Remove it, or set XDG_RUNTIME_DIR."
        )
    return base


def new_directory(name: str | None) -> Path:
    """A fresh directory for a lab; `name` for one that stays, else a random one. Removes stale ones first.

    It belongs to the calling process until the supervisor writes its state. Raises FileExistsError where a lab of that
    name lives.
    """
    clean_stale()
    for _ in range(_ATTEMPTS):
        base = base_directory()
        try:
            # Under its final name it must never be seen without an owner: it would look stale.
            fresh = Path(tempfile.mkdtemp(prefix="new-", dir=base))
        except FileNotFoundError:
            continue  # the last lab of somebody else has just taken the base with it
        fresh.chmod(0o711)
        _write_process(fresh / _OWNER, os.getpid())
        final = base / (f"lab-{name}" if name is not None else fresh.name.replace("new-", "run-"))
        try:
            return fresh.rename(final)
        except OSError:
            shutil.rmtree(fresh)
            raise FileExistsError(final) from None
    raise CapabilityError(f"The run directory {base} keeps vanishing.")


def write_state(directory: Path, state: dict[str, Any]) -> None:
    """Replace the state at once, so that a reader never sees half of it."""
    fresh = directory / f"{_STATE}.new"
    fresh.write_text(json.dumps(state, indent=2), encoding="utf-8")
    fresh.replace(directory / _STATE)


def read_state(directory: Path) -> dict[str, Any] | None:
    """None where the lab is not up."""
    try:
        state = json.loads((directory / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def supervisor_of(directory: Path) -> Process | None:
    """The lab's supervisor, dead or alive; None before the lab is up."""
    state = read_state(directory)
    return None if state is None else Process(int(state["pid"]), int(state["started"]))


def lives(directory: Path) -> bool:
    """Whether the lab's supervisor, or the process that is starting it, still runs."""
    supervisor = supervisor_of(directory)
    if supervisor is not None:
        return supervisor.alive
    try:
        record = json.loads((directory / _OWNER).read_text(encoding="utf-8"))
        return Process(int(record["pid"]), int(record["started"])).alive
    except FileNotFoundError:
        return directory.name.startswith("new-") and _age(directory) < _STALE_SECONDS
    except (OSError, ValueError, KeyError, TypeError):
        return False


def directories() -> Iterator[Path]:
    """Every run directory of this user, live or stale."""
    base = base_directory()
    for path in sorted(base.iterdir()):
        if path.is_dir() and not path.is_symlink() and path.name.startswith(("run-", "lab-", "new-")):
            yield path


def clean_stale() -> list[Path]:
    """Remove the directories whose labs are gone, and say which."""
    gone = []
    for path in directories():
        if not lives(path):
            remove(path)
            gone.append(path)
    return gone


def remove(directory: Path) -> None:
    """Remove a run directory and, when it was the last, the base.

    A process of the lab that is being killed may write into it for a moment still.
    """
    deadline = time.monotonic() + _REMOVAL_PATIENCE
    shutil.rmtree(directory, ignore_errors=True)
    while directory.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
        shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):
        directory.parent.rmdir()


def remove_base_if_empty() -> None:
    """Leave nothing after a look that found nothing."""
    with contextlib.suppress(OSError):
        base_directory().rmdir()


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _write_process(path: Path, pid: int) -> None:
    process = Process.of(pid)
    assert process is not None
    path.write_text(json.dumps({"pid": process.pid, "started": process.started}), encoding="ascii")
