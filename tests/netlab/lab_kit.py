"""What the tests of the lab share: commands as root and as an ordinary user, and a look at what is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

DEADLINE = 30.0
KINDS = ("net", "mnt", "pid")
PYTHON = [sys.executable, "-I", "-S"]
# Whoever runs the tests, and an ordinary user: for root, that is user 1000 of a user namespace.
USERS = {
    "caller": [],
    "ordinary": ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"] if os.geteuid() == 0 else [],
}


def environment(runtime: Path, **more: str) -> dict[str, str]:
    """Run directories of its own for each test, and nothing that the test runner's colours or width leave."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SUDO_", "COLUMNS", "LINES"))}
    return {**kept, "XDG_RUNTIME_DIR": str(runtime), **more}


def gfwemu(*arguments: str, user: str = "caller") -> list[str]:
    return [*USERS[user], sys.executable, "-m", "gfwemu", *arguments]


def run_gfwemu(
    runtime: Path,
    *arguments: str,
    user: str = "caller",
    data: bytes = b"",
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        gfwemu(*arguments, user=user),
        input=data,
        capture_output=True,
        timeout=DEADLINE,
        env=environment(runtime, **(env or {})),
        check=False,
    )


@contextlib.contextmanager
def started(runtime: Path, *arguments: str, user: str = "caller") -> Iterator[subprocess.Popen[bytes]]:
    """A gfwemu that runs beside the test; killed at the end if it is still there."""
    process = subprocess.Popen(
        gfwemu(*arguments, user=user),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(runtime),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """The condition's first true value."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited {deadline:g} s for {what}"
        time.sleep(0.02)


def lab_state(runtime: Path) -> dict[str, Any] | None:
    """The state of the only lab below `runtime`, once it is up."""
    for path in runtime.glob("gfwemu/*/state.json"):
        with contextlib.suppress(OSError):
            return dict(json.loads(path.read_text()))
    return None


def init_of(state: Mapping[str, Any]) -> int:
    """The lab's init: the supervisor's only child."""
    children = Path(f"/proc/{state['pid']}/task/{state['pid']}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


@contextlib.contextmanager
def namespaces_of(state: Mapping[str, Any]) -> Iterator[set[str]]:
    """The lab's namespaces, held open, so that no later one gets the number of one that has gone."""
    paths = [Path(f"/proc/{node['pid']}/ns/{kind}") for node in state["nodes"].values() for kind in KINDS]
    opened = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
    try:
        yield {str(path.readlink()) for path in paths}
    finally:
        for fd in opened:
            os.close(fd)


def inhabitants(namespaces: set[str]) -> list[int]:
    """The processes that live in one of the namespaces."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        for kind in KINDS:
            with contextlib.suppress(OSError):
                if str((folder / "ns" / kind).readlink()) in namespaces:
                    found.append(int(folder.name))
                    break
    return found


def own(runtime: Path) -> list[str]:
    """Everything below the runtime directory."""
    return sorted(str(path.relative_to(runtime)) for path in runtime.rglob("*"))
