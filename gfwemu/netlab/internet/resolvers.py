"""Resolvers on the wire: UDP, TCP and DNS over TLS (RFC 7858). DNS over HTTPS is a path of the web sites."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from gfwemu.netlab.internet.dns import Answerer

DNS_PORT = 53
DOT_PORT = 853
# RFC 7766 section 6.2.3 leaves it to the server; idle clients are let go after this many seconds.
IDLE = 30.0


class UdpResolver(asyncio.DatagramProtocol):
    """Answers each datagram from the address that it came to."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        answer = self._answerer.answer(data, udp=True)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)


async def serve_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answerer: Answerer) -> None:
    """Serve one TCP or TLS connection: two bytes of length before each message (RFC 1035 section 4.2.2)."""
    try:
        while True:
            async with asyncio.timeout(IDLE):
                query = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            answer = answerer.answer(query, udp=False)
            if answer is None:
                return
            writer.write(len(answer).to_bytes(2) + answer)
            await writer.drain()
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.close()
