"""Labs to measure in: the chain without a censor, and the same chain with one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import workload
from gfwemu.netlab.lab import Lab
from gfwemu.netlab.topology import load_topology

TRAFFIC = Path(__file__).resolve().parent / "traffic"
_TICKS = os.sysconf("SC_CLK_TCK")
_QUEUES = "/proc/net/netfilter/nfnetlink_queue"


class MeasureError(Exception):
    """A measure that measured something else than it says, or nothing."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How long and how often is measured, and how large the lists are."""

    rounds: int = 3
    seconds: float = 3.0
    names: int = 100_000
    networks: int = 20_000
    huge_names: int = 1_000_000
    huge_networks: int = 200_000
    flows: int = 100_000
    exchanges: int = 1000
    replay_packets: int = 200_000


QUICK = Scale(3, 0.7, 10_000, 2_000, 50_000, 10_000, 5_000, 150, 20_000)


@dataclass(frozen=True, slots=True)
class Work:
    """The censor's work so far: packets that were queued, CPU seconds of its daemon."""

    queued: int = 0
    cpu: float = 0.0


class Stage:
    """One lab and the programs of the traffic folder in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @contextlib.contextmanager
    def serve(self, script: str, *arguments: object, ready: bytes = b"ready") -> Iterator[None]:
        """A server on the internet node, which is up inside the block."""
        with self.serving(_command(script, arguments), ready):
            yield

    @contextlib.contextmanager
    def serving(self, argv: Sequence[str], ready: bytes) -> Iterator[None]:
        process = self.lab.popen(
            "internet", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            said = b""
            while ready not in said:
                line = process.stdout.readline()
                said += line
                if not line:
                    raise MeasureError(f"{argv[0]} did not come up: {said.decode(errors='replace').strip()}")
            yield
        finally:
            process.terminate()
            process.stdin.close()
            process.wait()
            process.stdout.close()

    def traffic(self, script: str, *arguments: object, timeout: float, node: str = "client") -> dict[str, Any]:
        """What a traffic program says at its end."""
        return self.json(_command(script, arguments), timeout=timeout, node=node)

    def json(self, argv: Sequence[str], *, timeout: float, node: str = "client") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(argv, timeout=timeout, node=node))
        return found

    def run(self, argv: Sequence[str], *, timeout: float, node: str = "client", as_root: bool = False) -> str:
        done = self.lab.exec(node, argv, timeout=timeout, as_root=as_root)
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise MeasureError(f"{argv[0]} failed with exit code {done.returncode}: {said[-500:]}")
        return done.stdout.decode(errors="replace")

    def received(self) -> int:
        """Packets that arrived at the internet node so far."""
        table = self.run(["cat", "/proc/net/dev"], timeout=10, node="internet")
        return sum(int(line.split()[2]) for line in table.splitlines()[2:] if line.split()[0] != "lo:")

    def work(self) -> Work:
        """Nothing where there is no censor."""
        service = self.lab.attached.state["services"].get("daemon")
        if service is None:
            return Work()
        text = self.run(
            ["cat", f"/proc/{service['pid']}/stat", _QUEUES], timeout=10, node="censor", as_root=True
        ).splitlines()
        fields = text[0].rpartition(")")[2].split()
        # proc(5): utime and stime are fields 14 and 15, the state is 3. The queue's eighth column numbers its packets.
        return Work(int(text[1].split()[7]), (int(fields[11]) + int(fields[12])) / _TICKS)

    def check(self) -> None:
        """Raises MeasureError where the engine failed: what was measured is not what users get."""
        log = self.lab.directory / "daemon.log"
        if log.exists() and "the engine failed" in (text := log.read_text(encoding="utf-8", errors="replace")):
            raise MeasureError(f"the engine failed while it was measured: {text[-500:]}")


class Bench:
    """What every measure gets: its scale, files to work in, and labs."""

    def __init__(self, scale: Scale, directory: Path) -> None:
        self.scale = scale
        self.directory = directory

    @contextlib.contextmanager
    def plain(self) -> Iterator[Stage]:
        """The chain without a censor."""
        with Lab(load_topology("bare")) as lab:
            yield Stage(lab)

    @contextlib.contextmanager
    def censored(self) -> Iterator[Stage]:
        """The chain with the big profile."""
        with Lab(load_topology("bare"), rules=[self.profile()]) as lab:
            stage = Stage(lab)
            yield stage
            stage.check()

    @contextlib.contextmanager
    def both(self) -> Iterator[tuple[Stage, Stage]]:
        """The chain without a censor and with one. The idle one costs nothing."""
        with self.plain() as plain, self.censored() as censored:
            yield plain, censored

    def profile(self) -> Path:
        scale = self.scale
        return self.kept("big", lambda path: workload.write_profile(path, scale.names, scale.networks)) / "rules.yaml"

    def hellos(self) -> Path:
        """ClientHellos with allowed names, each with its own."""
        return self.kept("allowed.hellos", lambda path: workload.write_hellos(path, 1000))

    def kept(self, name: str, make: Callable[[Path], object]) -> Path:
        """A file or folder that is made when it is wanted for the first time."""
        path = self.directory / name
        if not path.exists():
            make(path)
        return path


def _command(script: str, arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-I", "-S", str(TRAFFIC / f"{script}.py"), *map(str, arguments)]


def load_words(before: Work, after: Work, seconds: float) -> str:
    """How much the censor had to do between two looks."""
    share = (after.cpu - before.cpu) / seconds
    return f"{after.queued - before.queued:,} packets queued, daemon at {share:.0%} of a CPU"
