"""Starts the plan's VPN, ssh and echo servers, and says of each how that went."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import shutil
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal

from gfwemu.netlab.internet.authority import Authority
from gfwemu.netlab.internet.plan import Plan
from gfwemu.netlab.internet.process import PR_SET_PDEATHSIG

# linux/if_tun.h
TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000

# One address for the server, the others for clients.
TUNNEL_PREFIX = 29

# Loaded here, since a child between fork and exec should not import.
_LIBC = ctypes.CDLL(None, use_errno=True)

State = Literal["up", "limited", "failed"]


@dataclass(frozen=True, slots=True)
class Status:
    """How one part stands. `limited`: it works with the restriction that `detail` names; `files`: for the client."""

    state: State
    detail: str = ""
    files: tuple[str, ...] = ()


def tun_problem() -> str:
    """Why no TUN device can be made here, in one sentence; empty when one can."""
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
    except OSError as error:
        return f"/dev/net/tun cannot be opened ({error.strerror})"
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", b"gfwemu%d", IFF_TUN | IFF_NO_PI))
    except OSError as error:
        return f"no TUN device can be made ({error.strerror})"
    finally:
        os.close(descriptor)
    return ""


def missing(*programs: str) -> str:
    """Which of the programs are not installed, in one sentence; empty when all are."""
    gone = [program for program in programs if which(program) is None]
    return f"{', '.join(gone)} not installed" if gone else ""


def which(program: str) -> str | None:
    """Like `shutil.which`, with the system directories that an ordinary user's PATH leaves out."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")


def die_with_parent_hard() -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@dataclass(slots=True)
class Workshop:
    """What a service needs to start: places, keys, tunnels, and somebody who ends its processes."""

    directory: Path
    authority: Authority
    tun_problem: str
    _tunnels: Iterator[IPv4Network | IPv6Network]
    _closers: list[Callable[[], None]] = field(default_factory=list)

    @classmethod
    def of(cls, plan: Plan, authority: Authority) -> Workshop:
        tunnels = ip_network(plan.tunnels).subnets(new_prefix=TUNNEL_PREFIX)
        return cls(Path(plan.directory), authority, tun_problem(), tunnels)

    def tunnel(self, wanted: str | None) -> IPv4Network | None:
        """The tunnel's own network: the wanted one, else the next free /29; `None` when the pool is empty."""
        network = ip_network(wanted) if wanted is not None else next(self._tunnels, None)
        return network if isinstance(network, IPv4Network) else None

    def at_end(self, close: Callable[[], None]) -> None:
        self._closers.append(close)

    def close(self) -> None:
        for close in reversed(self._closers):
            close()

    async def run(self, argv: Sequence[str]) -> str:
        """Run a short command to its end. Returns what it said when it failed, else nothing."""
        process = await asyncio.create_subprocess_exec(
            which(argv[0]) or argv[0],
            *argv[1:],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return "" if process.returncode == 0 else output.decode(errors="replace").strip() or f"{argv[0]} failed"

    async def start(self, argv: Sequence[str], log: Path) -> asyncio.subprocess.Process:
        """Start a server that dies with this process; its output goes to `log`."""
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                which(argv[0]) or argv[0],
                *argv[1:],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent_hard,
            )

        def end() -> None:
            if process.returncode is None:
                process.terminate()

        self.at_end(end)
        return process

    async def await_line(self, process: asyncio.subprocess.Process, log: Path, text: str, patience: float) -> str:
        """Wait until `text` stands in the log. Returns the log's last line when the server ends or takes too long."""
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            content = log.read_text(errors="replace")
            if text in content:
                return ""
            if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                lines = content.strip().splitlines()
                return lines[-1] if lines else "it said nothing"
            await asyncio.sleep(0.01)
