"""Traffic for tests of matches: each call is one flow, and returns once its packets have passed the censor."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
from collections.abc import Sequence
from typing import Any

from dnslib import DNSHeader, DNSQuestion, DNSRecord
from hello_kit import client_hello, crypto, initial, records
from live_kit import Client
from live_nodes import Node, packed
from live_tcp import HandTcp, Wire
from live_tls import read_until

from gfwemu.wire.build import build_ip

V4, V6 = "203.0.113.10", "2001:db8:f::10"
LONELY, LONELY_V6 = "203.0.113.62", "2001:db8:f::62"
ECHO, ECHO_V6 = "203.0.113.90", "2001:db8:f::90"
RESOLVER, RESOLVER_V6 = "198.51.100.53", "2001:db8:53::53"
ECHO_PORT, SINK_PORT = 7, 9
ECHOES = [
    {"kind": "echo", "name": "tcp4", "address": ECHO, "transport": "tcp"},
    {"kind": "echo", "name": "tcp6", "address": ECHO_V6, "transport": "tcp"},
    {"kind": "echo", "name": "udp4", "address": ECHO, "transport": "udp"},
    {"kind": "echo", "name": "udp6", "address": ECHO_V6, "transport": "udp"},
    {"kind": "sink", "name": "sink4", "address": ECHO},
]


class Drive:
    """The client's side of the lab, and a listener of the internet's."""

    def __init__(self, client: Client, client_node: Node, internet_node: Node, wire: Wire) -> None:
        self.client = client
        self._node = client_node
        self._internet = internet_node
        self._wire = wire
        self._numbers = itertools.count(1)

    def flush(self) -> None:
        """Waits until the censor has seen all that was sent: packets pass it in order."""
        self.dns(f"flush-{next(self._numbers)}.allowed.example")

    # -- messages -----------------------------------------------------------------------------------------------

    def http(
        self,
        host: str = "www.allowed.example",
        path: str = "/",
        *,
        method: str = "GET",
        version: str = "1.1",
        agent: str = "live",
        address: str = V4,
        port: int = 80,
        source: str = "",
        local_port: int = 0,
    ) -> None:
        head = f"{method} {path} HTTP/{version}\r\nHost: {host}\r\nUser-Agent: {agent}\r\nContent-Length: 0\r\n\r\n"
        with self._node.connect(address, port, source=source, local_port=local_port) as tcp:
            tcp.sendall(head.encode())
            read_until(tcp, b"HTTP/")

    def tls(self, extensions: Sequence[Any] | None = None, *, address: str = V4, **hello: Any) -> None:
        """A ClientHello by hand; the server has its own thoughts about it."""
        message = client_hello(**hello) if extensions is None else client_hello(extensions, **hello)
        with self._node.connect(address, 443) as tcp:
            tcp.sendall(records(message))
            with contextlib.suppress(ConnectionResetError):
                tcp.recv(1)

    def quic(
        self, extensions: Sequence[Any] | None = None, *, address: str = V4, version: int = 1, dcid: bytes = bytes(8)
    ) -> None:
        message = client_hello() if extensions is None else client_hello(extensions)
        with self._node.datagrams(address, 443) as udp:
            udp.send(initial(crypto(0, message) + bytes(700), version=version, dcid=dcid))
        self.flush()

    def dns(
        self,
        name: str = "www.allowed.example",
        qtype: int = 1,
        *,
        qclass: int = 1,
        rd: int = 1,
        count: int = 1,
        address: str = RESOLVER,
        silent: bool = False,
    ) -> None:
        query = DNSRecord(DNSHeader(id=random.getrandbits(16), rd=rd))
        for _ in range(count):
            query.add_question(DNSQuestion(name, qtype, qclass))
        with self._node.datagrams(LONELY if silent else address, 53) as udp:
            udp.send(bytes(query.pack()))
            if count == 1 and not silent:
                udp.recv(4096)
                return
        self.flush()

    # -- plain packets ------------------------------------------------------------------------------------------

    def tcp(
        self,
        *payloads: bytes,
        address: str = ECHO,
        port: int = ECHO_PORT,
        source: str = "",
        local_port: int = 0,
        answers: bool = True,
    ) -> None:
        """Each payload goes after the answer to the one before."""
        with self._node.connect(address, port, source=source, local_port=local_port) as tcp:
            for payload in payloads:
                tcp.sendall(payload)
                got = b""
                while answers and len(got) < len(payload):
                    got += tcp.recv(65_536)
            if not answers:
                self.flush()

    def udp(
        self, *payloads: bytes, address: str = ECHO, source: str = "", local_port: int = 0, timeout: float = 5.0
    ) -> None:
        with self._node.datagrams(address, ECHO_PORT, source=source, local_port=local_port) as udp:
            udp.settimeout(timeout)
            for payload in payloads:
                udp.send(payload)
                udp.recv(65_536)

    def from_outside(self, port: int) -> None:
        """Somebody on the internet connects to the client."""
        with self._node.listen("192.0.2.10", port), self._internet.connect("192.0.2.10", port):
            pass

    def from_inside(self, port: int, *, local_port: int = 0) -> None:
        """The client connects to a port on the internet."""
        with (
            self._internet.listen(LONELY, port),
            self._node.connect(LONELY, port, local_port=local_port),
        ):
            pass

    def ping(self, address: str = V4) -> None:
        kind, protocol = (128, socket.IPPROTO_ICMPV6) if ":" in address else (8, socket.IPPROTO_ICMP)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self._node.socket(family, socket.SOCK_RAW, protocol) as raw:
            # Type, code, checksum (the kernel's over IPv6), identifier and number (RFC 792, RFC 4443).
            checksum = 0 if ":" in address else 0xFFFF - (kind << 8) - 2
            raw.sendto(bytes((kind, 0, checksum >> 8, checksum & 0xFF, 0, 1, 0, 1)), (address, 0))
        self.flush()

    def other_protocol(self) -> None:
        self._wire.send(build_ip(packed("192.0.2.77"), packed(V4), 253, b"RFC 3692"))
        self.flush()

    def odd_flags(self, flags: int) -> None:
        tcp = HandTcp(self._wire, V4, 80).connect()
        tcp.put(tcp.build(flags=flags))
        tcp.close()
        self.flush()
