"""How the mini-internet's processes live and die with whoever started them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable

from gfwemu.errors import GfwemuError

# linux/prctl.h
PR_SET_PDEATHSIG = 1
BACKLOG = 512


def die_with_parent() -> None:
    """Have the kernel end this process when its parent dies."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def announce_ready(fd: int | None) -> None:
    """Write the one byte that says: everything is up."""
    if fd is not None:
        os.write(fd, b"1")
        os.close(fd)


def bind(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    """A bound (TCP: listening), non-blocking socket. Raises `GfwemuError` when the address or port cannot be had."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((address, port))
        if kind == socket.SOCK_STREAM:
            bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        what = "tcp" if kind == socket.SOCK_STREAM else "udp"
        raise GfwemuError(f"cannot listen on {address} port {port}/{what}: {error.strerror}") from None
    bound.setblocking(False)
    return bound


def run_until_stopped(serve: Callable[[], Awaitable[Iterable[Callable[[], None]]]]) -> int:
    """Run `serve`, which starts everything and returns what to call at the end, until SIGTERM or SIGINT.

    Does not return then: the process ends with status 0. A `GfwemuError` becomes one line on stderr and its exit code.
    """

    async def main() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        closers = await serve()
        await stopped.wait()
        for close in closers:
            close()
        sys.stderr.flush()
        # Connections are cut, not wound up: unwinding thousands of tasks takes long and says things nobody asked for.
        os._exit(0)

    try:
        asyncio.run(main())
    except GfwemuError as error:
        print(f"gfwemu: {error}", file=sys.stderr)
        return error.exit_code
    return 0
