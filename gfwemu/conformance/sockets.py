"""Sockets that belong to a node of the lab, in our own hands."""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress

from gfwemu.netlab.errors import LabError
from gfwemu.netlab.lab import Lab

# Makes sockets on request and hands them over: a socket stays in the namespace it was made in. Ends with the other end.
_AGENT = """
import socket
control = socket.socket(fileno=0)
try:
    while order := control.recv(64):
        with socket.socket(*map(int, order.split())) as made:
            socket.send_fds(control, [b"1"], [made.fileno()])
except ConnectionError:
    pass
"""
_EVERY_PROTOCOL = 3  # ETH_P_ALL, <linux/if_ether.h>
_IP, _IPV6 = 0x0800, 0x86DD
_TIMESTAMPS = 35  # SO_TIMESTAMPNS, <asm-generic/socket.h>
_PACKET, _STATISTICS = 263, 6  # SOL_PACKET, PACKET_STATISTICS, <linux/if_packet.h>
_BUFFER = 16 << 20


class NodeSockets:
    """Gives sockets of one node. Those that it gave outlive it."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._name = name
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._agent = lab.popen(name, [sys.executable, "-I", "-S", "-c", _AGENT], as_root=True, stdin=theirs)

    def close(self) -> None:
        self._control.close()
        self._agent.wait(10)

    def make(self, family: int, kind: int) -> socket.socket:
        """Raises LabError where the node gives none."""
        fds: list[int] = []
        with suppress(ConnectionError):
            self._control.send(f"{int(family)} {int(kind)}".encode())
            _, fds, _, _ = socket.recv_fds(self._control, 16, 1)
        if not fds:
            raise LabError(f"The lab's {self._name} gives no sockets.")
        return socket.socket(fileno=fds[0])

    def bound(self, kind: int, address: str, port: int) -> socket.socket | None:
        """Bound there, and listening if of TCP; None where something else already is."""
        made = self.make(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((address, port))
            if kind == socket.SOCK_STREAM:
                made.listen(512)
        except OSError:
            made.close()
            return None
        return made

    def wire(self, interface: str) -> Wire:
        made = self.make(socket.AF_PACKET, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        made.setsockopt(socket.SOL_SOCKET, _TIMESTAMPS, 1)
        made.bind((interface, _EVERY_PROTOCOL))
        # A packet socket does not see what it sends itself; and this one, bound to no protocol, sees nothing.
        out = self.make(socket.AF_PACKET, socket.SOCK_DGRAM)
        out.bind((interface, 0))
        return Wire(made, out, interface)


class Wire:
    """A node's link, below IP: packets leave exactly as built, and all that passes is seen."""

    def __init__(self, link: socket.socket, out: socket.socket, interface: str) -> None:
        self.link = link
        self._out = out
        self._interface = interface
        self.gateway = b""

    @property
    def hardware_address(self) -> bytes:
        return bytes(self.link.getsockname()[4])

    def close(self) -> None:
        self.link.close()
        self._out.close()

    def send(self, data: bytes) -> None:
        protocol = _IPV6 if data[0] >> 4 == 6 else _IP
        self._out.sendto(data, (self._interface, protocol, 0, 0, self.gateway))

    def receive(self) -> tuple[bytes, float, bool] | None:
        """The next IP packet, its time, and whether the node sent it; None where there is none yet."""
        while True:
            try:
                data, notes, _, (_, protocol, kind, *_) = self.link.recvmsg(65_536, 256)
            except BlockingIOError:
                return None
            if protocol not in (_IP, _IPV6):
                continue
            whole, nanoseconds = next(
                struct.unpack("qq", note) for level, _, note in notes if level == socket.SOL_SOCKET
            )
            return data, whole + nanoseconds * 1e-9, kind == socket.PACKET_OUTGOING

    def lost(self) -> int:
        """Packets that came too fast for us, since the last call."""
        return int(struct.unpack("II", self.link.getsockopt(_PACKET, _STATISTICS, 8))[1])
