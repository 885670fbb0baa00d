"""The servers behind record.sh: HTTPS, HTTP and QUIC on one address, until killed."""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path

import trustme
from aioquic.asyncio import serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion

ADDRESSES = ("198.51.100.2", "2001:db8::2")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(65536)
    writer.write(ANSWER)
    writer.close()


async def main(name: str, directory: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    certificate = authority.issue_cert(name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    certificate.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
    await asyncio.start_server(answer, ADDRESSES, 443, ssl=context)
    await asyncio.start_server(answer, ADDRESSES, 80)
    for port, retry in ((443, False), (444, True)):
        configuration = QuicConfiguration(
            is_client=False,
            alpn_protocols=["h3"],
            supported_versions=[QuicProtocolVersion.VERSION_2, QuicProtocolVersion.VERSION_1],
        )
        configuration.load_cert_chain(directory / "cert.pem", directory / "key.pem")
        await serve(ADDRESSES[0], port, configuration=configuration, retry=retry)
    (directory / "ready").touch()
    await asyncio.get_running_loop().create_future()


asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
