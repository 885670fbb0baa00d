"""The QUIC and HTTP/3 part of the probe."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, QuicEvent, StreamReset
from aioquic.quic.packet import QuicErrorCode, QuicProtocolVersion

from gfwemu.netlab.probe.outcome import Options, Result, endpoint, judge_page, split_target

VERSIONS = {1: QuicProtocolVersion.VERSION_1, 2: QuicProtocolVersion.VERSION_2}
# RFC 9000 section 20.1: CRYPTO_ERROR carries the TLS alert in its low byte.
CRYPTO_ERROR = 0x100

# The outcome says what aioquic would log.
logging.getLogger("quic").setLevel(logging.CRITICAL)


class _Client(QuicConnectionProtocol):  # type: ignore[misc]
    """One connection; `path` empty: handshake only."""

    def __init__(self, quic: QuicConnection, result: Result, options: Options, authority: str, path: str) -> None:
        super().__init__(quic)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._result = result
        self._options = options
        self._request = [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":authority", authority.encode()),
            (b":path", path.encode()),
            (b"user-agent", b"gfwemu-probe"),
        ]
        self._fetch = bool(path)
        self._http: H3Connection | None = None
        self._body_started = 0.0

    def error_received(self, exc: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(exc)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, HandshakeCompleted):
            self._result.protocol = event.alpn_protocol or "quic"
            if self._fetch:
                self._http = H3Connection(self._quic)
                self._http.send_headers(self._quic.get_next_available_stream_id(), self._request, end_stream=True)
                self.transmit()
            else:
                self._result.end("ok")
                self._finish()
        elif isinstance(event, ConnectionTerminated):
            self._terminated(event)
        elif isinstance(event, StreamReset):
            self._result.end("reset", f"stream error {event.error_code}")
            self._finish()
        if self._http is not None:
            for http_event in self._http.handle_event(event):
                self._http_event(http_event)

    def _terminated(self, event: ConnectionTerminated) -> None:
        if self.done.done():
            return
        reason = event.reason_phrase or f"error {event.error_code}"
        # Only a close of the transport names a frame; TLS failures are ours, since what the censor forges has no keys.
        tls_failure = event.frame_type is not None and CRYPTO_ERROR <= event.error_code < 2 * CRYPTO_ERROR
        idle = event.error_code == QuicErrorCode.INTERNAL_ERROR and event.reason_phrase == "Idle timeout"
        if idle:
            self._result.end("frozen" if self._result.received else "timeout", reason)
        else:
            self._result.end("failed" if tls_failure else "reset", reason)
        self._finish()

    def _http_event(self, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            self._result.status = int(dict(event.headers).get(b":status", b"0"))
            self._body_started = time.monotonic()
        elif isinstance(event, DataReceived):
            self._result.body(event.data)
        if isinstance(event, HeadersReceived | DataReceived) and event.stream_ended:
            judge_page(self._options, self._result, time.monotonic() - self._body_started)
            self._finish()


async def probe_h3(options: Options, result: Result) -> None:
    """GET an https URL over HTTP/3."""
    url = urlsplit(options.target)
    path = f"{url.path or '/'}{'?' + url.query if url.query else ''}"
    await _run(options, result, url.hostname or "", url.port or 443, url.netloc, path)


async def probe_quic(options: Options, result: Result) -> None:
    """Complete a QUIC handshake with NAME[:PORT]."""
    name, port = split_target(options.target, 443)
    await _run(options, result, name, port, "", "")


async def _run(options: Options, result: Result, name: str, port: int, authority: str, path: str) -> None:
    family, result.server = endpoint(options, name, port, socket.SOCK_DGRAM)
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=list(options.alpn) or H3_ALPN,
        server_name=options.sni or name,
        verify_mode=ssl.CERT_NONE if options.insecure else ssl.CERT_REQUIRED,
        idle_timeout=max(options.timeout * 2, 1.0),
        original_version=VERSIONS[options.quic_version],
        supported_versions=[VERSIONS[options.quic_version]],
    )
    cafile = options.authority or os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    if cafile and not options.insecure:
        configuration.load_verify_locations(cafile=cafile)
    client: list[_Client] = []

    def create() -> _Client:
        client.append(_Client(QuicConnection(configuration=configuration), result, options, authority, path))
        return client[0]

    # Connected, so that an ICMP error reaches the probe.
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        create,
        remote_addr=(result.server, port),
        local_addr=("::" if family == socket.AF_INET6 else "0.0.0.0", options.local_port)
        if options.local_port
        else None,
    )
    try:
        client[0].connect(transport.get_extra_info("peername"))
        await client[0].done
    finally:
        client[0].close()
        transport.close()
