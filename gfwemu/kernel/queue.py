"""The netfilter queue: packets in, verdicts out."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

from netfilterqueue import NetfilterQueue
from netfilterqueue import Packet as QueuedPacket

from gfwemu.errors import CapabilityError
from gfwemu.kernel.marks import OFFLOAD_ACCEPT, OFFLOAD_DROP, PACKET_BITS, QUEUE_ALL, QUEUED
from gfwemu.kernel.netlink import SUBSYSTEM_QUEUE, attribute, kind, message
from gfwemu.model import Side

Receive = Callable[[int, bytes, "Side | None"], None]
"""Called with the packet's number, its bytes and where it came from."""

# <linux/netfilter/nfnetlink_queue.h>
_CONFIG = 2
_CFG_PARAMS, _CFG_MASK, _CFG_FLAGS = 2, 4, 5
_COPY_PACKET = 2
_FLAG_FAIL_OPEN = 1
_LARGEST_PACKET = 0xFFFF

_MESSAGE_BUFFER = _LARGEST_PACKET + 1024
"""A packet and the attributes around it. NetfilterQueue's own buffer of 4096 bytes would cut larger packets."""

_SOCKET_BUFFER = 16 << 20
_SO_RCVBUFFORCE = 33
"""<asm-generic/socket.h>; not in Python's socket module."""

_STATE = Path("/proc/net/netfilter/nfnetlink_queue")
_KEEP_MARK = 0xFFFFFFFF & ~PACKET_BITS


class PacketQueue:
    """One bound queue. length: packets that may wait in the kernel, held ones included."""

    def __init__(self, number: int, ends: tuple[str, str], receive: Receive, *, length: int, fail_open: bool) -> None:
        self.overruns = 0
        self._number = number
        self._names = dict(zip(ends, (Side.INSIDE, Side.OUTSIDE), strict=True))
        self._sides: dict[int, Side] = {}
        self._receive = receive
        self._open: dict[int, QueuedPacket] = {}
        self._budget = 0
        try:
            self._queue = NetfilterQueue()
            with warnings.catch_warnings():
                # The library warns when it may not enlarge the socket's buffer; `_enlarge` does what is possible.
                warnings.simplefilter("ignore", RuntimeWarning)
                self._queue.bind(number, self._arrived, max_len=length)
        except OSError as error:
            raise _bind_error(number, error) from None
        self._socket = socket.socket(fileno=_duplicate(self._queue.get_fd()))
        self._enlarge()
        self._configure(attribute(_CFG_PARAMS, struct.pack("!IB", _LARGEST_PACKET, _COPY_PACKET)))
        self.set_fail_open(fail_open)
        self._resolve()

    def fileno(self) -> int:
        return self._socket.fileno()

    def set_fail_open(self, fail_open: bool) -> None:
        """Whether the kernel passes packets for which the queue has no room, instead of dropping them."""
        flags = struct.pack("!I", _FLAG_FAIL_OPEN if fail_open else 0)
        self._configure(attribute(_CFG_FLAGS, flags) + attribute(_CFG_MASK, struct.pack("!I", _FLAG_FAIL_OPEN)))

    def read(self, limit: int) -> int:
        """Hands over what waits, at most `limit` packets. Returns how many. What `receive` raises comes out here."""
        self._budget = limit
        self._queue.run_socket(self)
        return limit - self._budget

    def recv(self, _size: int) -> bytes:
        """One message of the kernel, for NetfilterQueue.run_socket, which ends at EAGAIN and goes on at ENOBUFS."""
        if not self._budget:
            raise BlockingIOError(errno.EAGAIN, "")
        try:
            data = self._socket.recv(_MESSAGE_BUFFER, socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self.overruns += 1
            raise
        self._budget -= 1
        return data

    def accept(
        self, packet_id: int, data: bytes | None = None, *, offload: bool = False, queue_all: bool = False
    ) -> None:
        packet = self._open.pop(packet_id)
        if data is not None:
            packet.set_payload(data)
        if offload or queue_all:
            packet.set_mark(packet.get_mark() & _KEEP_MARK | QUEUED | (QUEUE_ALL if queue_all else OFFLOAD_ACCEPT))
        packet.accept()

    def drop(self, packet_id: int, *, offload: bool = False, queue_all: bool = False) -> None:
        """With `offload` or `queue_all` the table's later chain drops the packet, after it kept the mark."""
        packet = self._open.pop(packet_id)
        if offload or queue_all:
            mark = QUEUED | OFFLOAD_DROP | (QUEUE_ALL if queue_all else 0)
            packet.set_mark(packet.get_mark() & _KEEP_MARK | mark)
            packet.accept()
        else:
            packet.drop()

    def is_open(self, packet_id: int) -> bool:
        return packet_id in self._open

    def open_packets(self) -> tuple[int, ...]:
        return tuple(self._open)

    def dropped(self) -> int:
        """Packets that the kernel could not queue or not deliver (columns 6 and 7 of the kernel's own table)."""
        for row in _rows():
            if int(row[0]) == self._number:
                return int(row[5]) + int(row[6])
        return 0

    def close(self) -> None:
        """Unbinds. The kernel drops what still waits: remove the table and drain first."""
        self._queue.unbind()
        self._socket.close()

    def _arrived(self, packet: QueuedPacket) -> None:
        packet_id: int = packet.id
        self._open[packet_id] = packet
        side = self._sides.get(packet.indev)
        if side is None:
            # An interface that was made anew has a new index.
            self._resolve()
            side = self._sides.get(packet.indev)
        self._receive(packet_id, packet.get_payload(), side)

    def _resolve(self) -> None:
        self._sides.clear()
        for name, side in self._names.items():
            try:
                self._sides[socket.if_nametoindex(name)] = side
            except OSError:
                continue

    def _configure(self, members: bytes) -> None:
        # Without NLM_F_ACK: an answer would mix with the packets.
        self._socket.send(message(kind(SUBSYSTEM_QUEUE, _CONFIG), 0, 0, self._number, members))

    def _enlarge(self) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _SOCKET_BUFFER)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)


def _duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)


def bound_queues() -> frozenset[int]:
    """The queues that any process of this network namespace has bound."""
    return frozenset(int(row[0]) for row in _rows())


def _rows() -> list[list[str]]:
    try:
        return [line.split() for line in _STATE.read_text().splitlines()]
    except OSError:
        return []


def _bind_error(number: int, error: OSError) -> CapabilityError:
    if number in bound_queues():
        return CapabilityError(
            f"Netfilter queue {number} belongs to another process.", "Stop it, or choose another with --queue-num."
        )
    return CapabilityError(
        f"Netfilter queue {number} cannot be bound ({error}).",
        "It needs CAP_NET_ADMIN and the module nfnetlink_queue: modprobe nfnetlink_queue.",
    )
