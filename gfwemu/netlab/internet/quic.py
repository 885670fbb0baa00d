"""HTTP/3: aioquic below, the same application as on TCP above.

Hypercorn speaks HTTP/3, too, but with one certificate for all names and without a bound on what it buffers.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.h3.connection import H3_ALPN, ErrorCode, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, ProtocolNegotiated, QuicEvent, StreamReset
from aioquic.tls import Context, pull_client_hello
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gfwemu.netlab.internet.certificates import Certificates
from gfwemu.netlab.internet.process import bind
from gfwemu.netlab.internet.requests import Connection
from gfwemu.netlab.internet.sites import Sites

# What one stream may have waiting to be sent or acknowledged.
STREAM_BUFFER = 512 * 1024
SOCKET_BUFFER = 4 * 1024 * 1024
IDLE_SECONDS = 30.0
# What Chrome sends; it leaves room for a tunnel below an MTU of 1,500.
DATAGRAM_SIZE = 1350


@dataclass(slots=True)
class _Exchange:
    """One request stream: the application's task and its inbox."""

    stream: int
    inbox: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    task: asyncio.Task[None] | None = None


class SiteProtocol(QuicConnectionProtocol):  # type: ignore[misc]
    """One client's connection."""

    def __init__(self, quic: Any, *args: Any, server: QuicSites, address: str, **kwargs: Any) -> None:
        super().__init__(quic, *args, **kwargs)
        self._server = server
        self._address = address
        self._sni = ""
        self._client = ("", 0)
        self._http: H3Connection | None = None
        self._exchanges: dict[int, _Exchange] = {}
        self._progress = asyncio.Event()
        # aioquic has no hook to choose the certificate by SNI: its TLS context exists only after the first packet.
        initialize = quic._initialize

        def initialize_and_hook(peer_cid: bytes) -> None:
            initialize(peer_cid)
            self._choose_certificate_by_sni(quic.tls)

        quic._initialize = initialize_and_hook

    def _choose_certificate_by_sni(self, tls: Context) -> None:
        handle_hello = tls._server_handle_hello

        def choose(hello: Any, *buffers: Any) -> None:
            start = hello.tell()
            self._sni = (pull_client_hello(hello).server_name or "").lower()
            hello.seek(start)
            tls.certificate, tls.certificate_private_key = self._server.certificate(self._address, self._sni)
            handle_hello(hello, *buffers)

        tls._server_handle_hello = choose

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._client = (addr[0], addr[1])
        super().datagram_received(data, addr)
        self._progress.set()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self._http = H3Connection(self._quic)
        elif isinstance(event, ConnectionTerminated):
            for exchange in self._exchanges.values():
                exchange.inbox.put_nowait({"type": "http.disconnect"})
                if exchange.task is not None:
                    exchange.task.cancel()
        elif isinstance(event, StreamReset) and (reset := self._exchanges.get(event.stream_id)) is not None:
            reset.inbox.put_nowait({"type": "http.disconnect"})
        if self._http is not None:
            for http_event in self._http.handle_event(event):
                self._http_event_received(http_event)

    def _http_event_received(self, event: H3Event) -> None:
        if isinstance(event, HeadersReceived) and event.stream_id not in self._exchanges:
            exchange = self._exchanges[event.stream_id] = _Exchange(event.stream_id)
            exchange.task = asyncio.ensure_future(self._respond(exchange, event.headers))
        if isinstance(event, HeadersReceived | DataReceived) and event.stream_id in self._exchanges:
            data = event.data if isinstance(event, DataReceived) else b""
            message = {"type": "http.request", "body": data, "more_body": not event.stream_ended}
            self._exchanges[event.stream_id].inbox.put_nowait(message)

    async def _respond(self, exchange: _Exchange, fields: list[tuple[bytes, bytes]]) -> None:
        pseudo = {key: value.decode("latin-1") for key, value in fields if key.startswith(b":")}
        path, _, query = pseudo.get(b":path", "/").partition("?")
        scope = {
            "type": "http",
            "http_version": "3",
            "method": pseudo.get(b":method", "GET"),
            "scheme": "https",
            "path": path,
            "query_string": query.encode("latin-1"),
            "headers": fields,
            "client": self._client,
        }
        connection = Connection(
            local=self._address,
            cut=partial(self._end, ErrorCode.H3_NO_ERROR),
            reset=partial(self._end, ErrorCode.H3_INTERNAL_ERROR),
            sni=self._sni,
            tls="TLSv1.3",
            cipher=self._quic.tls.key_schedule.cipher_suite.name,
        )
        await self._server.sites.respond(connection, scope, exchange.inbox.get, partial(self._send, exchange))
        del self._exchanges[exchange.stream]

    def _end(self, error: ErrorCode) -> None:
        self.close(error_code=error)

    async def _send(self, exchange: _Exchange, message: dict[str, Any]) -> None:
        assert self._http is not None
        if message["type"] == "http.response.start":
            status = (b":status", str(message["status"]).encode())
            self._http.send_headers(exchange.stream, [status, *message["headers"]])
        else:
            self._http.send_data(exchange.stream, message["body"], not message["more_body"])
        self.transmit()
        # aioquic buffers without a bound: wait until the peer has acknowledged enough.
        stream = self._quic._streams.get(exchange.stream)
        while stream is not None and len(stream.sender._buffer) > STREAM_BUFFER:
            self._progress.clear()
            await self._progress.wait()


@dataclass(slots=True)
class QuicSites:
    """Serves the sites over HTTP/3."""

    sites: Sites
    certificates: Certificates

    def certificate(self, address: str, name: str) -> tuple[x509.Certificate, Any]:
        leaf = self.certificates.leaf(address, name)
        certificate = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
        return certificate, load_pem_private_key(leaf.private_key_pem.bytes(), None)

    async def listen(self, address: str, port: int) -> asyncio.DatagramTransport:
        """Answer at an address. Raises `GfwemuError` when it cannot be had."""
        sock = bind(address, port, socket.SOCK_DGRAM)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
        canonical = str(ip_address(address))
        certificate, key = self.certificate(canonical, "")
        configuration = QuicConfiguration(
            is_client=False,
            alpn_protocols=H3_ALPN,
            certificate=certificate,
            private_key=key,
            idle_timeout=IDLE_SECONDS,
            max_datagram_size=DATAGRAM_SIZE,
        )
        create = partial(SiteProtocol, server=self, address=canonical)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: QuicServer(configuration=configuration, create_protocol=create), sock=sock
        )
        return transport
