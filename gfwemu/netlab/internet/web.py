"""HTTP/1.1 and HTTP/2 on TCP.

Hypercorn speaks the protocols. Its connection class is used below a listener of our own rather than its `serve`,
because a site must see its connection (the SNI, the TLS version) and be able to cut or reset it, which ASGI has no
words for.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any
from weakref import WeakKeyDictionary

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config

from gfwemu.netlab.internet.certificates import Certificates
from gfwemu.netlab.internet.process import bind
from gfwemu.netlab.internet.requests import Connection
from gfwemu.netlab.internet.sites import Sites

ALPN = ("h2", "http/1.1")
# nginx's default.
KEEP_ALIVE_SECONDS = 75


def _config() -> Config:
    config = Config()
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    return config


@dataclass(slots=True)
class Web:
    """Serves the sites on TCP addresses."""

    sites: Sites
    certificates: Certificates
    _config: Config = field(default_factory=_config)
    _context: WorkerContext = field(default_factory=lambda: WorkerContext(None))
    _asked: WeakKeyDictionary[Any, str] = field(default_factory=WeakKeyDictionary)

    async def listen(self, address: str, port: int, *, tls: bool) -> asyncio.Server:
        """Answer at an address. Raises `GfwemuError` when it cannot be had."""
        sock = bind(address, port, socket.SOCK_STREAM)
        context = self._listener_context(str(ip_address(address))) if tls else None
        return await asyncio.start_server(self._serve, sock=sock, ssl=context)

    def _listener_context(self, address: str) -> ssl.SSLContext:
        context = self.certificates.context(address, "", ALPN)

        def choose(connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
            if name is not None:
                self._asked[connection] = name.lower()
                connection.context = self.certificates.context(address, name.lower(), ALPN)

        context.sni_callback = choose
        return context

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        connection = Connection(
            local=str(ip_address(writer.get_extra_info("sockname")[0].partition("%")[0])),
            cut=writer.close,
            reset=partial(reset, writer),
            sni=self._asked.get(tls, "") if tls is not None else "",
            tls=(tls.version() or "") if tls is not None else "",
            cipher=(tls.cipher() or ("",))[0] if tls is not None else "",
        )
        app = ASGIWrapper(partial(self.sites.respond, connection))
        loop = asyncio.get_running_loop()
        try:
            with suppress(OSError, asyncio.CancelledError):
                await TCPServer(app, loop, self._config, self._context, {}, reader, writer)
        except Exception as error:  # whatever a client's bytes bring about in hypercorn ends this connection only
            print(f"gfwemu: a web connection was lost: {error!r}", file=sys.stderr)
            writer.transport.abort()


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST: closing with a linger time of zero does that on Linux."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def refuse_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, with_reset: bool) -> None:
    """Read a ClientHello and end the connection instead of answering."""
    with suppress(OSError):
        await reader.read(65536)
    if with_reset:
        reset(writer)
    else:
        writer.close()
