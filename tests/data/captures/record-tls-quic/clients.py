"""The Python clients behind record.sh."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys

from aioquic.asyncio import connect
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion


def tls(name: str) -> None:
    context = ssl.create_default_context(cafile="/run/ca.pem")
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((name, 443)) as connection,
        context.wrap_socket(connection, server_hostname=name) as wrapped,
    ):
        wrapped.sendall(b"GET / HTTP/1.0\r\n\r\n")
        wrapped.recv(1000)


async def quic(kind: str, name: str) -> None:
    version = QuicProtocolVersion.VERSION_2 if kind == "quic-v2" else QuicProtocolVersion.VERSION_1
    alpn = ["h3"]
    if kind == "quic-long":
        # Makes the hello longer than a datagram, as a post-quantum key share does.
        alpn += [f"unknown-protocol-{number:03}" for number in range(90)]
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=alpn, server_name=name, cafile="/run/ca.pem", original_version=version
    )
    port = 444 if kind == "quic-retry" else 443
    async with connect(name, port, configuration=configuration) as connection:
        await connection.ping()


if sys.argv[1] == "tls":
    tls(sys.argv[2])
else:
    asyncio.run(quic(*sys.argv[1:]))
