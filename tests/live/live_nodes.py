"""Sockets that belong to a node of the lab, in the test's own hands, and what passes on that node's wire."""

from __future__ import annotations

import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import count
from types import TracebackType
from typing import Any

from gfwemu.netlab.lab import Lab
from gfwemu.wire.packet import Packet
from gfwemu.wire.parse import parse_packet

# Makes sockets on request and hands them over: a socket stays in the namespace it was made in.
_AGENT = """
import socket
control = socket.socket(fileno=0)
while order := control.recv(64):
    with socket.socket(*map(int, order.split())) as made:
        socket.send_fds(control, [b"1"], [made.fileno()])
"""
_EVERY_PROTOCOL = 3  # ETH_P_ALL, <linux/if_ether.h>
_TIMESTAMPS = 35  # SO_TIMESTAMPNS, <asm-generic/socket.h>
_BUFFER = 8 << 20

_PORTS = count(20_000)
"""Below those that the kernel chooses itself (ip_local_port_range)."""


class Node:
    """A node's sockets. Ends with `close`, like every socket that it gave."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._agent = lab.popen(name, [sys.executable, "-I", "-S", "-c", _AGENT], as_root=True, stdin=theirs)
        self._made: list[socket.socket] = []

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.close_sockets()
        self._control.close()
        self._agent.wait(10)

    def close_sockets(self) -> None:
        for made in self._made:
            made.close()
        self._made.clear()

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        self._control.send(f"{int(family)} {int(kind)} {protocol}".encode())
        _, fds, _, _ = socket.recv_fds(self._control, 16, 1)
        assert fds, f"no socket {family} {kind} {protocol} on {self.name}"
        made = socket.socket(fileno=fds[0])
        self._made.append(made)
        return made

    def connect(self, address: str, port: int, *, source: str = "", local_port: int = 0, timeout: float = 5) -> Any:
        """A TCP connection. Raises what `connect` raises."""
        made = self.socket(family_of(address), socket.SOCK_STREAM)
        made.settimeout(timeout)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source or local_port:
            made.bind((source, local_port))
        try:
            made.connect((address, port))
        except OSError:
            # Or else the kernel would go on trying.
            made.close()
            raise
        return made

    def listen(self, address: str, port: int) -> socket.socket:
        made = self.socket(family_of(address), socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(64)
        made.settimeout(10)
        return made

    def datagrams(self, address: str = "", port: int = 0, *, source: str = "", local_port: int = 0) -> socket.socket:
        """A UDP socket, connected where an address is given, so that it hears of ICMP errors."""
        made = self.socket(family_of(address or source), socket.SOCK_DGRAM)
        made.settimeout(5)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Another test's port, drawn by chance, would go on with what the censor knows of that test's flow.
        made.bind((source, local_port or next(_PORTS)))
        if address:
            made.connect((address, port))
        return made

    def sniffer(self, interface: str = "eth0") -> Sniffer:
        return Sniffer(self.link_socket(interface))

    def link_socket(self, interface: str = "eth0") -> socket.socket:
        made = self.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        made.setsockopt(socket.SOL_SOCKET, _TIMESTAMPS, 1)
        made.bind((interface, _EVERY_PROTOCOL))
        return made


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@dataclass(frozen=True, slots=True)
class Seen:
    """A packet on the wire, with the kernel's time. `sent`: by the node itself."""

    data: bytes
    at: float
    sent: bool

    @property
    def packet(self) -> Packet:
        parsed = parse_packet(self.data)
        assert isinstance(parsed, Packet), parsed
        return parsed


class Sniffer:
    """Every IP packet that passes the interface from now on."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self.seen: list[Seen] = []

    def __enter__(self) -> Sniffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._link.close()

    def look(self, seconds: float = 0.0) -> list[Seen]:
        """Takes what has come, waiting so long for the first; returns everything seen so far."""
        while select.select([self._link], [], [], seconds)[0]:
            seconds = 0.0
            data, notes, _, (_, protocol, kind, *_) = self._link.recvmsg(65_536, 256)
            if protocol not in (0x0800, 0x86DD):
                continue
            stamps = [struct.unpack("qq", note) for level, _, note in notes if level == socket.SOL_SOCKET]
            whole, nanoseconds = stamps[0]
            self.seen.append(Seen(data, whole + nanoseconds * 1e-9, kind == socket.PACKET_OUTGOING))
        return self.seen

    def segments(self, *, sport: int | None = None, dport: int | None = None, sent: bool | None = None) -> list[Seen]:
        """The TCP segments among everything seen so far."""
        return [
            seen
            for seen in self.look()
            if seen.packet.proto == 6
            and sport in (None, seen.packet.five_tuple.sport)
            and dport in (None, seen.packet.five_tuple.dport)
            and sent in (None, seen.sent)
        ]

    def wait(self, condition: Callable[[], Any], seconds: float = 5.0) -> Any:
        """The first true value of a condition on what is seen; the last false one where the time runs out."""
        deadline = time.monotonic() + seconds
        while not (value := condition()) and (left := deadline - time.monotonic()) > 0:
            self.look(left)
        return value


def packed(address: str) -> bytes:
    return ip_address(address).packed
