"""One lab for a module's tests, and the real programs that they run in it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfwemu.netlab.lab import Lab

HERE = Path(__file__).resolve().parent
TOPOLOGY = HERE / "topology.yaml"
PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Curl:
    """What curl met: its exit code, the status, the page, bytes and seconds."""

    exit: int
    status: int
    page: str
    said: str
    size: int
    seconds: float


class Client:
    """Programs on the client node."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory
        self._loaded = ""

    def load(self, rules: str) -> None:
        """Puts these rules in force, unless they are already."""
        if rules != self._loaded:
            path = self.directory / "loaded.yaml"
            path.write_text(rules)
            self.lab.reload([path])
            self._loaded = rules

    def run(
        self, *argv: str, timeout: float = PATIENCE, input: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return self.lab.exec("client", argv, timeout=timeout, input=input)

    def curl(self, url: str, *options: str, seconds: float = 2.0) -> Curl:
        form = "\n%{http_code} %{size_download} %{time_total}"
        command = ["curl", "-sS", "--max-time", str(seconds), "-w", form, *options, url]
        done = self.run(*command, timeout=seconds + 10)
        page, _, numbers = done.stdout.decode(errors="replace").rpartition("\n")
        status, size, spent = numbers.split()
        return Curl(done.returncode, int(status), page, done.stderr.decode(), int(size), float(spent))

    def dig(self, name: str, *options: str) -> tuple[int, str, list[str]]:
        """Exit code, status (NOERROR, NXDOMAIN, ""), and the answers."""
        done = self.run("dig", "+tries=1", "+time=2", *options, name)
        text = done.stdout.decode()
        found = re.search(r"status: (\w+)", text)
        answers = re.findall(r"^\S+\s+\d+\s+IN\s+(?:A|AAAA)\s+(\S+)$", text, re.MULTILINE)
        return done.returncode, found.group(1) if found else "", answers

    def probe(self, kind: str, target: str, *options: str, seconds: float = 3.0) -> str:
        """The outcome in one word."""
        command = [sys.executable, "-m", "gfwemu.netlab.probe", kind, "--timeout", str(seconds), *options, target]
        done = self.run(*command, timeout=seconds + 10)
        found = re.search(rb'"outcome": "(\w+)"', done.stdout)
        assert found is not None, done
        return found.group(1).decode()

    def hits(self, rule: str) -> list[dict[str, Any]]:
        """The times that the rule fired so far."""
        return self.events("rule", rule)

    def events(self, kind: str, rule: str) -> list[dict[str, Any]]:
        """The events of that kind (rule, residual, drop) that name the rule so far."""
        wanted = {"kind": kind, "rule": rule}
        return [event for event in self.lab.events() if wanted.items() <= event.get("censor", {}).items()]

    def wait_for_hit(self, rule: str) -> list[dict[str, Any]]:
        return wait_for(lambda: self.hits(rule))


def wait_for(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    """The first true value of the condition. Fails where there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.05)
