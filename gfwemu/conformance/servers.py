"""The live runner's servers: real kernels with a program that reads, and says what a script tells it to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import defaultdict

from gfwemu.conformance.sockets import NodeSockets
from gfwemu.model import FiveTuple, Transport, address_bytes, address_text

_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class Servers:
    """Listens where it is asked to, on one node."""

    def __init__(self, node: NodeSockets, loop: asyncio.AbstractEventLoop) -> None:
        self._node = node
        self._loop = loop
        self._bound: dict[tuple[bytes, int, int], socket.socket | None] = {}
        self._connections: dict[FiveTuple, socket.socket] = {}
        self._read: defaultdict[FiveTuple, bytearray] = defaultdict(bytearray)

    def serve(self, address: bytes, port: int, proto: int) -> None:
        """Where a server of the lab already is, that one answers."""
        key = (address, port, proto)
        if key in self._bound:
            return
        kind = socket.SOCK_STREAM if proto == Transport.TCP else socket.SOCK_DGRAM
        made = self._bound[key] = self._node.bound(kind, address_text(address), port)
        if made is None:
            return
        if proto == Transport.TCP:
            self._loop.add_reader(made, self._accept, made, address, port)
        else:
            self._loop.add_reader(made, self._datagrams, made, address, port)

    def received(self, flow: FiveTuple) -> bytes:
        return bytes(self._read[flow]) if flow in self._read else b""

    def answer(self, flow: FiveTuple, data: bytes) -> bool:
        if flow.proto == Transport.UDP:
            made = self._bound.get((flow.dst, flow.dport, flow.proto))
            if made is None:
                return False
            made.sendto(data, (address_text(flow.src), flow.sport))
            return True
        connection = self._connections.get(flow)
        if connection is None:
            return False
        try:
            connection.send(data)
        except OSError:
            return False
        return True

    def close(self) -> None:
        for connection in list(self._connections.values()):
            self._drop(connection)
        for made in self._bound.values():
            if made is not None:
                self._drop(made)

    def _accept(self, listener: socket.socket, address: bytes, port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, (client, client_port, *_) = listener.accept()
                connection.setblocking(False)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                flow = FiveTuple(Transport.TCP, address_bytes(client), client_port, address, port)
                self._connections[flow] = connection
                self._loop.add_reader(connection, self._take, flow, connection)

    def _take(self, flow: FiveTuple, connection: socket.socket) -> None:
        try:
            data = connection.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._read[flow] += data
        else:
            self._loop.remove_reader(connection)

    def _datagrams(self, made: socket.socket, address: bytes, port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, (client, client_port, *_) = made.recvfrom(65_536)
                self._read[FiveTuple(Transport.UDP, address_bytes(client), client_port, address, port)] += data

    def _drop(self, made: socket.socket) -> None:
        self._loop.remove_reader(made)
        made.close()
