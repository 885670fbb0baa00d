"""The daemon's end of the prober's process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import suppress

from gfwemu.engine.commands import SendProbes
from gfwemu.engine.events import ProbeFinished
from gfwemu.model import address_bytes
from gfwemu.prober.plan import Request

_CHUNK = 1 << 16
_END_DEADLINE = 2.0


class ProberProcess:
    """Started when this is made. device: the only interface by which probes leave; hops: routers to the servers."""

    def __init__(self, device: str, hops: int, time_scale: float, seed: int) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._buffer = b""
        self.broken = False
        options = {"fd": theirs.fileno(), "device": device, "hops": hops, "time-scale": time_scale, "seed": seed}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gfwemu.prober", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def order(self, command: SendProbes) -> None:
        """Raises OSError where the process is gone or does not keep up: it must not keep packets waiting."""
        line = Request.of(command).to_line()
        if self._socket.send(line) != len(line):
            self.broken = True
            raise BlockingIOError("the prober does not keep up")

    def read(self, now: float) -> tuple[list[ProbeFinished], list[str]]:
        """What came in: reactions, and words for the user. The process's end makes it `broken`."""
        data = b""
        with suppress(BlockingIOError):
            data = self._socket.recv(_CHUNK)
            self.broken = self.broken or not data
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        finished, said = [], []
        for line in lines:
            told = json.loads(line)
            if "say" in told:
                said.append(str(told["say"]))
            else:
                told["prober"] = address_bytes(told["prober"])
                finished.append(ProbeFinished(**told, now=now))
        return finished, said

    def close(self) -> None:
        self._socket.close()
        try:
            self._process.wait(_END_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
