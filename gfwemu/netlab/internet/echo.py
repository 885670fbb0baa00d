"""Servers that echo, and servers that only read."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any, cast

from gfwemu.netlab.internet.plan import Echo, Sink
from gfwemu.netlab.internet.process import bind
from gfwemu.netlab.internet.services import Status, Workshop

CHUNK = 65536


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while await reader.read(CHUNK):
            pass
    writer.close()


class _UdpEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._transport.sendto(data, addr)


async def start_echo(service: Echo, workshop: Workshop) -> Status:
    if service.transport == "udp":
        sock = bind(service.address, service.port, socket.SOCK_DGRAM)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(_UdpEcho, sock=sock)
        workshop.at_end(transport.close)
    else:
        server = await asyncio.start_server(_echo, sock=bind(service.address, service.port, socket.SOCK_STREAM))
        workshop.at_end(server.close)
    return Status("up")


async def start_sink(service: Sink, workshop: Workshop) -> Status:
    server = await asyncio.start_server(_sink, sock=bind(service.address, service.port, socket.SOCK_STREAM))
    workshop.at_end(server.close)
    return Status("up")
