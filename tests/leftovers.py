"""What tests leave behind on the machine: processes, namespaces, nftables tables."""

import os
import re
import subprocess
import time
from collections.abc import Hashable
from pathlib import Path
from typing import NamedTuple

# Marks what this pytest process starts, however deep, even after its parent has gone.
TAG = f"GFWEMU_TEST_PROCESS={os.getpid()}-{time.time_ns()}"


class Process(NamedTuple):
    pid: int
    started: int  # clock ticks since boot: a reused PID is another process

    def __str__(self) -> str:
        try:
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            command = ""
        return f"process {self.pid}: {command.strip() or '(ended meanwhile)'}"


class Traces(NamedTuple):
    processes: dict[Process, int]  # to the PID of its parent
    others: frozenset[str]

    def beyond(self, accepted: "Traces") -> list[str]:
        """What is here and not accepted. Descendants of accepted processes belong to them."""
        fine = {process.pid for process in accepted.processes if process in self.processes}
        parents = {process.pid: parent for process, parent in self.processes.items()}

        def belongs(pid: int) -> bool:
            return pid in fine or (pid in parents and belongs(parents[pid]))

        return [str(process) for process in self.processes if not belongs(process.pid)] + sorted(
            self.others - accepted.others
        )

    def plus(self, other: "Traces") -> "Traces":
        return Traces(self.processes | other.processes, self.others | other.others)

    def minus(self, other: "Traces") -> "Traces":
        kept = {process: parent for process, parent in self.processes.items() if process not in other.processes}
        return Traces(kept, self.others - other.others)


class Ledger:
    """What may be there at the moment: what each living fixture of a wide scope has set up."""

    def __init__(self) -> None:
        self.known = look()
        self.fixtures: dict[Hashable, Traces] = {}

    def leaks(self, patience: float = 2.0) -> list[str]:
        """What is left that nobody answers for; each leak is told once. Things that are going get time to go."""
        accepted = self.known
        for traces in self.fixtures.values():
            accepted = accepted.plus(traces)
        deadline = time.monotonic() + patience
        while (left := (now := look()).beyond(accepted)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if left:
            self.known = self.known.plus(now.minus(accepted))
        return left


def look() -> Traces:
    """What this pytest process has on the machine now."""
    return Traces(_processes(), _namespaces() | _tables())


def _processes() -> dict[Process, int]:
    found: dict[int, tuple[Process, int, bool]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name is in parentheses and may hold anything, parentheses included.
            state, parent, *rest = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if state in "ZX":
            continue
        try:
            tagged = TAG.encode() in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            tagged = False
        found[int(folder.name)] = (Process(int(folder.name), int(rest[17])), int(parent), tagged)

    def ours(pid: int) -> bool:
        if pid == os.getpid() or pid not in found:
            return pid == os.getpid()
        return found[pid][2] or ours(found[pid][1])

    return {process: parent for pid, (process, parent, _) in found.items() if pid != os.getpid() and ours(pid)}


def _namespaces() -> frozenset[str]:
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    held = {f"mount {line.split()[4]}" for line in mounts if " - nsfs " in line}
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue
        if re.fullmatch(r"(net|mnt|pid|user|uts|ipc|cgroup|time):\[\d+\]", target):
            held.add(f"descriptor of namespace {target}")
    return frozenset(held)


def _tables() -> frozenset[str]:
    if os.geteuid() != 0:
        return frozenset()
    try:
        listed = subprocess.run(["nft", "list", "tables"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        return frozenset()
    return frozenset(f"nftables {line}" for line in listed.stdout.splitlines() if "gfwemu" in line)
