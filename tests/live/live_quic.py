"""A QUIC client whose datagrams the test sends itself."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Sequence

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted
from aioquic.quic.packet import QuicProtocolVersion

from gfwemu.netlab.lab import Lab

VERSIONS = {1: QuicProtocolVersion.VERSION_1, 2: QuicProtocolVersion.VERSION_2}
Rewrite = Callable[[Sequence[bytes]], Sequence[bytes]]


class HandQuic:
    """One connection in the making. `padding`: bytes of ALPN names that nobody speaks, to make a long ClientHello."""

    def __init__(self, lab: Lab, udp: socket.socket, name: str, *, version: int = 1, padding: int = 0) -> None:
        self._udp = udp
        idle = [f"none-{number:04}-{'x' * 90}" for number in range(padding // 100)]
        configuration = QuicConfiguration(
            is_client=True,
            alpn_protocols=["h3", *idle],
            server_name=name,
            verify_mode=ssl.CERT_REQUIRED,
            original_version=VERSIONS[version],
            supported_versions=[VERSIONS[version]],
        )
        configuration.load_verify_locations(cafile=str(lab.directory / "internet" / "authority.pem"))
        self._quic = QuicConnection(configuration=configuration)
        self._quic.connect(udp.getpeername(), now=time.time())
        self.first = [data for data, _ in self._quic.datagrams_to_send(now=time.time())]

    def handshake(self, rewrite: Rewrite = lambda datagrams: datagrams, seconds: float = 5.0) -> None:
        """`rewrite`: what leaves instead of the first datagrams. Raises TimeoutError or ConnectionRefusedError."""
        deadline = time.monotonic() + seconds
        for datagram in rewrite(self.first):
            self._udp.send(datagram)
        while (left := deadline - time.monotonic()) > 0:
            self._udp.settimeout(left)
            self._quic.receive_datagram(self._udp.recv(65_536), self._udp.getpeername(), now=time.time())
            for datagram, _ in self._quic.datagrams_to_send(now=time.time()):
                self._udp.send(datagram)
            while event := self._quic.next_event():
                if isinstance(event, HandshakeCompleted):
                    return
                if isinstance(event, ConnectionTerminated):
                    raise EOFError(event.reason_phrase)
        raise TimeoutError


def small_initial(like: bytes, number: int = 1000) -> bytes:
    """An Initial packet of the same connection (version 1) that carries PING and PADDING alone, to be coalesced."""
    ids = like[5 : 7 + like[5] + like[6 + like[5]]]
    frames = b"\x01" + bytes(19)
    header = b"\xc1\x00\x00\x00\x01" + ids + b"\x00" + (0x4000 | 2 + len(frames) + 16).to_bytes(2, "big")
    header += number.to_bytes(2, "big")
    keys = CryptoPair()
    keys.setup_initial(cid=like[6 : 6 + like[5]], is_client=True, version=1)
    return bytes(keys.encrypt_packet(header, frames, number))
