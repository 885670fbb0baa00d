"""The ISP's resolver: a forwarder without a cache that believes whatever answers first.

Each UDP query goes upstream from a fresh source port; the first answer with the query's ID that comes back, forged or
true, is relayed, and later ones are lost. Each TCP query goes upstream over a TCP connection of its own. Where upstream
is silent, so is the forwarder; where upstream's connection is reset, so is the client's.

    python -m gfwemu.netlab.internet.forwarder --listen ADDR [--listen ADDR] --upstream ADDR [--ready-fd N]
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, cast

from gfwemu.netlab.internet.process import announce_ready, bind, die_with_parent, run_until_stopped

DNS_PORT = 53
HEADER_LENGTH = 12
# Longer than any stub resolver waits for one try (glibc and dig: 5 s).
PATIENCE = 10.0
PENDING_LIMIT = 4096


class _Upstream(asyncio.DatagramProtocol):
    """One query's socket: relays the first answer that fits, then closes."""

    def __init__(self, query: bytes, relay: Callable[[bytes], None], gone: Callable[[_Upstream], None]) -> None:
        self._query = query
        self._relay = relay
        self._gone = gone
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)
        self.transport.sendto(self._query)
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, self.transport.abort)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if data[:2] == self._query[:2] and self.transport is not None and not self.transport.is_closing():
            self._relay(data)
            self.transport.abort()

    def error_received(self, exc: Exception) -> None:
        """An ICMP error from upstream: the client hears nothing, as from a forwarder that keeps waiting."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._gone(self)


class UdpForwarder(asyncio.DatagramProtocol):
    """Relays queries from clients to `upstream` (address, port)."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self._pending: set[_Upstream] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if len(data) < HEADER_LENGTH or len(self._pending) >= PENDING_LIMIT or self._transport is None:
            return
        transport = self._transport
        upstream = _Upstream(data, lambda answer: transport.sendto(answer, addr), self._pending.discard)
        self._pending.add(upstream)
        task = asyncio.ensure_future(self._open(upstream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, upstream: _Upstream) -> None:
        try:
            await asyncio.get_running_loop().create_datagram_endpoint(lambda: upstream, remote_addr=self._upstream)
        except OSError:
            self._pending.discard(upstream)


async def forward_tcp(client: asyncio.StreamReader, to_client: asyncio.StreamWriter, upstream: tuple[str, int]) -> None:
    """Serve one client connection: queries one after the other, each on its own connection upstream."""
    try:
        while True:
            length = await client.readexactly(2)
            query = length + await client.readexactly(int.from_bytes(length))
            to_client.write(await _ask_tcp(query, upstream))
            await to_client.drain()
    except (asyncio.IncompleteReadError, TimeoutError):
        pass
    except OSError:
        to_client.transport.abort()
    finally:
        to_client.close()


async def _ask_tcp(query: bytes, upstream: tuple[str, int]) -> bytes:
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(*upstream)
        try:
            writer.write(query)
            length = await reader.readexactly(2)
            return length + await reader.readexactly(int.from_bytes(length))
        finally:
            writer.close()


async def serve(listen: Sequence[str], upstream: str, ready_fd: int | None) -> Iterable[Callable[[], None]]:
    loop = asyncio.get_running_loop()
    target = (upstream, DNS_PORT)
    closers: list[Callable[[], None]] = []
    for address in listen:
        transport, _ = await loop.create_datagram_endpoint(
            lambda: UdpForwarder(target), sock=bind(address, DNS_PORT, socket.SOCK_DGRAM)
        )
        closers.append(transport.close)
        server = await asyncio.start_server(
            lambda reader, writer: forward_tcp(reader, writer, target), sock=bind(address, DNS_PORT, socket.SOCK_STREAM)
        )
        closers.append(server.close)
    announce_ready(ready_fd)
    return closers


def main() -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m gfwemu.netlab.internet.forwarder", description="DNS forwarder")
    parser.add_argument("--listen", action="append", required=True, metavar="ADDR", help="address to answer on")
    parser.add_argument("--upstream", required=True, metavar="ADDR", help="the resolver to ask")
    parser.add_argument("--ready-fd", type=int, metavar="N", help="file descriptor that gets one byte when all is up")
    options = parser.parse_args()
    return run_until_stopped(lambda: serve(options.listen, options.upstream, options.ready_fd))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        raise SystemExit(main())
