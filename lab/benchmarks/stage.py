"""Labs to measure in: the chain without a censor, and the same chain with one."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.censor import Censor, MeasureError, censoring
from gfwemu.netlab.lab import Lab
from gfwemu.netlab.topology import Topology, load_topology

TRAFFIC = Path(__file__).resolve().parent / "traffic"
_LAST_WORDS = 30.0
_QUEUES = "/proc/net/netfilter/nfnetlink_queue"


@dataclass(frozen=True, slots=True)
class Scale:
    """How long and how often is measured, and how large the lists are."""

    rounds: int = 3
    seconds: int = 2
    names: int = 100_000
    networks: int = 20_000
    huge_names: int = 1_000_000
    huge_networks: int = 200_000
    flows: int = 100_000
    exchanges: int = 1000
    replay_packets: int = 200_000


QUICK = Scale(3, 1, 10_000, 2_000, 50_000, 10_000, 5_000, 150, 20_000)


@dataclass(frozen=True, slots=True)
class Work:
    """The censor's work so far: queued packets that have their verdict, CPU seconds of its daemon."""

    queued: int
    cpu: float

    def since(self, earlier: Work) -> Work:
        return Work(self.queued - earlier.queued, self.cpu - earlier.cpu)

    def words(self, seconds: float) -> str:
        """What it was in so many seconds."""
        text = f"{self.queued:,} packets queued, daemon at {self.cpu / seconds:.0%} of a CPU"
        return f"{text}, {self.cpu / self.queued * 1e6:.0f} us a packet" if self.queued and self.cpu else text


@dataclass(frozen=True, slots=True)
class Queues:
    """Packets that were queued so far, that wait for their verdict now, and that could not be queued."""

    queued: int
    waiting: int
    dropped: int


class Stage:
    """One lab and the programs of the traffic folder in it. `censor` None: plain forwarding."""

    def __init__(self, lab: Lab, censor: Censor | None = None) -> None:
        self.lab = lab
        self.censor = censor

    @contextlib.contextmanager
    def serve(self, script: str, *arguments: object) -> Iterator[None]:
        """A server of the traffic folder on the internet node, which is up inside the block."""
        with self.serving(_command(script, arguments), b"ready"):
            yield

    @contextlib.contextmanager
    def serving(self, argv: Sequence[str], ready: bytes) -> Iterator[None]:
        """The same for any program that prints `ready` when it is, and then nothing much."""
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

    @contextlib.contextmanager
    def talking(self, script: str, *arguments: object) -> Iterator[dict[str, Any]]:
        """A traffic program on the client while the block runs; after that, what it said is in the dict."""
        argv = _command(script, arguments)
        process = self.lab.popen("client", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        found: dict[str, Any] = {}
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield found
            out, err = process.communicate(timeout=_LAST_WORDS)
            if process.returncode:
                raise MeasureError(f"{script} failed: {err.decode(errors='replace').strip()[-500:]}")
            found.update(json.loads(out))
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def traffic(self, script: str, *arguments: object, timeout: float, node: str = "client") -> dict[str, Any]:
        """What a traffic program says at its end."""
        return self.json(_command(script, arguments), timeout=timeout, node=node)

    def json(self, argv: Sequence[str], *, timeout: float, node: str = "client") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(argv, timeout=timeout, node=node))
        return found

    def run(self, argv: Sequence[str], *, timeout: float, node: str = "client", as_root: bool = False) -> str:
        """What a program prints. Raises MeasureError where it fails."""
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
        """Of the censor so far; there must be one."""
        assert self.censor is not None
        queues = self.queues()
        return Work(queues.queued - queues.waiting, self.censor.cpu())

    def queues(self) -> Queues:
        """All of the censor's queues together, so far."""
        rows = [row.split() for row in self.run(["cat", _QUEUES], timeout=10, node="censor", as_root=True).splitlines()]
        # The kernel's nfnetlink_queue.c (seq_show): number, port, waiting, copy mode, copy range, dropped because the
        # queue was full, dropped because the socket was, number of the last packet.
        return Queues(
            sum(int(row[7]) for row in rows),
            sum(int(row[2]) for row in rows),
            sum(int(row[5]) + int(row[6]) for row in rows),
        )


class Bench:
    """What every measure gets: its scale, files to work in, and labs.

    profiles: a folder for cProfile's statistics of the daemon; None: it is measured undisturbed.
    """

    def __init__(self, scale: Scale, directory: Path, profiles: Path | None = None) -> None:
        self.scale = scale
        self.directory = directory
        self.profiles = profiles
        self.measuring = ""

    @contextlib.contextmanager
    def plain(self, *, offloads: bool = False) -> Iterator[Stage]:
        """The chain without a censor. offloads: its links carry packets unsplit, as network cards with offloads do."""
        with Lab(_chain(offloads)) as lab:
            yield Stage(lab)

    @contextlib.contextmanager
    def censored(self, rules: Path | None = None, *, offloads: bool = False) -> Iterator[Stage]:
        """The chain with a censor, by default with the big profile."""
        profile = self.profiles / f"{self.measuring}.prof" if self.profiles is not None else None
        with (
            tempfile.TemporaryDirectory(dir=self.directory) as folder,
            Lab(_chain(offloads)) as lab,
            censoring(lab, rules or self.profile(), Path(folder), profile) as censor,
        ):
            yield Stage(lab, censor)

    @contextlib.contextmanager
    def both(self, *, offloads: bool = False) -> Iterator[tuple[Stage, Stage]]:
        """The chain without a censor, and with one that has the big profile. The idle one costs nothing."""
        with self.plain(offloads=offloads) as plain, self.censored(offloads=offloads) as censored:
            yield plain, censored

    def profile(self) -> Path:
        scale = self.scale
        return self.kept("big", lambda path: workload.write_profile(path, scale.names, scale.networks)) / "rules.yaml"

    def huge_profile(self) -> Path:
        scale, write = self.scale, workload.write_profile
        return self.kept("huge", lambda path: write(path, scale.huge_names, scale.huge_networks)) / "rules.yaml"

    def hellos(self) -> Path:
        """ClientHellos with allowed names, each with its own."""
        return self.kept("allowed.hellos", lambda path: workload.write_hellos(path, 1000))

    def queries(self) -> Path:
        """For dnsperf."""
        return self.kept("queries", lambda path: workload.write_queries(path, self.scale.names))

    def kept(self, name: str, make: Callable[[Path], object]) -> Path:
        """A file or folder that is made when it is wanted for the first time."""
        path = self.directory / name
        if not path.exists():
            make(path)
        return path


def _chain(offloads: bool) -> Topology:
    return load_topology("bare").model_copy(update={"offloads": offloads})


def _command(script: str, arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-I", "-S", str(TRAFFIC / f"{script}.py"), *map(str, arguments)]
