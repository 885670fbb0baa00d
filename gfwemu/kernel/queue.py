"""The netfilter queue: packets in, verdicts out.

Messages and attributes: <linux/netfilter/nfnetlink_queue.h>. They are read and written here rather than by a library,
because the ones at hand know neither a cut packet's true length nor several verdicts in one system call.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gfwemu.errors import CapabilityError
from gfwemu.kernel.marks import OFFLOAD_ACCEPT, OFFLOAD_BULK, OFFLOAD_DROP, PACKET_BITS, QUEUE_ALL, QUEUED
from gfwemu.kernel.netlink import NETLINK_NETFILTER, NLM_F_ACK, SUBSYSTEM_QUEUE, attribute, kind, message
from gfwemu.model import Side

Receive = Callable[[int, bytes, "Side | None", int], None]
"""Called with the packet's number, its bytes, where it came from, and its true length (the bytes may be cut)."""

_PACKET, _VERDICT, _CONFIG = 0, 1, 2
_CFG_COMMAND, _CFG_PARAMS, _CFG_LENGTH, _CFG_MASK, _CFG_FLAGS = 1, 2, 3, 4, 5
_BIND = 1
_COPY_PACKET = 2
_FLAG_FAIL_OPEN, _FLAG_GSO = 1, 4
_ATTR_HEADER, _ATTR_VERDICT, _ATTR_MARK, _ATTR_INDEV, _ATTR_PAYLOAD, _ATTR_TRUE_LENGTH = 1, 2, 3, 5, 10, 13
_NLMSG_ERROR = 2
_DROP, _ACCEPT = 0, 1

_LARGEST_COPY = 0xFFFF - 4
"""The kernel's own bound: the attribute's header counts (nfnetlink_queue.c, nfqnl_set_mode)."""

_BULK_COPY = 256
"""Enough for the longest IPv4 and TCP headers, and for IPv6 with an extension header or two."""

_BULK = 0x8000
"""From the number of a queue to that of its bulk queue: daemons with neighbouring queues do not meet."""

QUEUE_NUMBERS = _BULK
_BULK_ID = 1 << 32
_ID = _BULK_ID - 1
"""Added to the numbers of the bulk queue's packets; the kernel's own have 32 bits."""

_BUFFER = 0xFFFF + 1024
"""A packet and the attributes around it."""

_FETCH = 64
"""Messages that are fetched at once."""

_TURN = 16
"""Packets that are decided before more are fetched. Their verdicts go out together: a system call costs as much as one
of them, and none should wait long."""

_SEND_AT = 1 << 16
"""Bytes of verdicts that wait for each other, at most."""

_SO_RCVBUFFORCE = 33
"""<asm-generic/socket.h>; not in Python's socket module."""

_STATE = Path("/proc/net/netfilter/nfnetlink_queue")
_KEEP_MARK = 0xFFFFFFFF & ~PACKET_BITS
_BIND_PATIENCE = 1.0
"""Seconds. A daemon that was killed a moment ago holds its queue until the kernel has cleared it away."""

_HEADER = struct.Struct("=IH")
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("!I")
_RESOURCE = struct.Struct("!H")
_RESOURCE_OFFSET = 18
_FIRST_ATTRIBUTE = 20

_FRONT = struct.Struct("!4sI4x4sI8x4sI")
"""Packet header, incoming interface, outgoing interface, mark: so every kernel begins a forwarded packet's message."""

_AFTER_FRONT = _FIRST_ATTRIBUTE + _FRONT.size
_FRONT_HEADS = tuple(
    _ATTRIBUTE.pack(size, name) for size, name in ((11, _ATTR_HEADER), (8, _ATTR_INDEV), (8, _ATTR_MARK))
)
_PACKET_KIND = kind(SUBSYSTEM_QUEUE, _PACKET)
_VERDICT_PAIR = struct.Struct("!II")
_MARKED = struct.Struct("!II4sI")
_MARK_HEAD = _ATTRIBUTE.pack(8, _ATTR_MARK)


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """How a queue behaves.

    length: packets that may wait in the kernel, held ones included. buffer: bytes of the socket on which the kernel
    hands them over. fail_open: where either is full, packets pass; otherwise they are lost.
    """

    length: int = 8192
    buffer: int = 16 << 20
    fail_open: bool = True


class QueueLosses(NamedTuple):
    """Packets that a queue lost: it was full, or its socket was."""

    full_queue: int
    full_socket: int


class PacketQueue:
    """A bound queue and, on the same socket, its bulk queue: for flows of which nothing but sizes counts any more.

    The bulk queue hands over headers only, and of the packets as they are before segmentation offload splits them: a
    packet of 64 KB costs no more than one of 1500 bytes. Its packets have numbers of their own. `flush` sends the
    verdicts that wait.
    """

    def __init__(self, number: int, ends: tuple[str, str], receive: Receive, options: QueueOptions) -> None:
        self.overruns = 0
        self._numbers = number, bulk_queue(number)
        self._names = dict(zip(ends, (Side.INSIDE, Side.OUTSIDE), strict=True))
        self._sides: dict[int, Side] = {}
        self._receive = receive
        self._open: dict[int, int] = {}
        """Marks of the packets that have no verdict yet."""
        self._verdicts: list[bytes] = []
        self._verdict_bytes = 0
        self._arrived: deque[bytes] = deque()
        self._room = options.length
        self._view = memoryview(bytearray(_BUFFER))
        # A verdict's head, the same for all without a mark and without bytes; behind it stand verdict and number.
        plain, mark = attribute(_ATTR_VERDICT, bytes(8)), attribute(_ATTR_MARK, bytes(4))
        self._heads = tuple(_verdict_message(one, plain)[:-8] for one in self._numbers)
        self._marked_heads = tuple(_verdict_message(one, plain, mark)[:-16] for one in self._numbers)
        self._bulk_resource = _RESOURCE.pack(bulk_queue(number))
        self._socket = _bound_socket(self._numbers)
        self._enlarge(options.buffer)
        self.configure(options)
        self._resolve()

    def fileno(self) -> int:
        return self._socket.fileno()

    def configure(self, options: QueueOptions) -> None:
        """Takes new options; packets that wait keep what they came with. The socket's buffer stays."""
        for number, copy, unsplit in zip(self._numbers, (_LARGEST_COPY, _BULK_COPY), (0, _FLAG_GSO), strict=True):
            flags = (_FLAG_FAIL_OPEN if options.fail_open else 0) | unsplit
            # Without NLM_F_ACK: an answer would mix with the packets.
            self._socket.send(
                message(
                    kind(SUBSYSTEM_QUEUE, _CONFIG),
                    0,
                    0,
                    number,
                    attribute(_CFG_PARAMS, struct.pack("!IB", copy, _COPY_PACKET)),
                    attribute(_CFG_LENGTH, _U32.pack(options.length)),
                    attribute(_CFG_FLAGS, _U32.pack(flags)),
                    attribute(_CFG_MASK, _U32.pack(_FLAG_FAIL_OPEN | _FLAG_GSO)),
                )
            )

    def read(self, limit: int) -> int:
        """Hands over what waits, at most `limit` packets. Returns how many. What `receive` raises comes out here.

        The verdicts of the last of them wait for `flush`: the caller may have something to do that shall come before.
        """
        waiting = self._arrived
        count = 0
        while count < limit:
            self._fetch()
            if not waiting:
                break
            self.flush()
            turn = min(_TURN, len(waiting), limit - count)
            for _ in range(turn):
                self._message(waiting.popleft())
            count += turn
        return count

    @property
    def backlog(self) -> int:
        """Packets that were fetched from the kernel and wait here: the socket does not tell of them again."""
        return len(self._arrived)

    def _fetch(self) -> None:
        """Makes room on the socket, whose buffer holds no hundred packets where a user may not enlarge it."""
        receive_into, view, arrived = self._socket.recv_into, self._view, self._arrived
        for _ in range(min(_FETCH, self._room - len(arrived))):
            try:
                size = receive_into(view, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                continue
            arrived.append(bytes(view[:size]))

    def accept(
        self,
        packet_id: int,
        data: bytes | None = None,
        *,
        offload: bool = False,
        bulk: bool = False,
        queue_all: bool = False,
    ) -> None:
        """offload: the kernel answers for the flow from now on. bulk: it goes on in the bulk queue. queue_all: all of
        its packets come to the queue from now on."""
        came_with = self._open.pop(packet_id)
        mark: int | None = None
        if offload or bulk or queue_all:
            how = OFFLOAD_ACCEPT if offload else OFFLOAD_BULK if bulk else QUEUE_ALL
            mark = came_with & _KEEP_MARK | QUEUED | how
        if data is not None:
            self._rewritten(packet_id, mark, data)
        elif mark is not None:
            self._marked(packet_id, mark)
        else:
            self._plain(packet_id, _ACCEPT)

    def drop(self, packet_id: int, *, offload: bool = False, queue_all: bool = False) -> None:
        """With `offload` or `queue_all` the table's later chain drops the packet, after it kept the mark."""
        mark = self._open.pop(packet_id)
        if offload or queue_all:
            self._marked(packet_id, mark & _KEEP_MARK | QUEUED | OFFLOAD_DROP | (0 if offload else QUEUE_ALL))
        else:
            self._plain(packet_id, _DROP)

    def flush(self) -> None:
        """Sends the verdicts that wait, in the order in which they were given."""
        if self._verdicts:
            batch = b"".join(self._verdicts)
            self._verdicts.clear()
            self._verdict_bytes = 0
            self._socket.send(batch)

    def is_open(self, packet_id: int) -> bool:
        return packet_id in self._open

    def open_packets(self) -> tuple[int, ...]:
        return tuple(self._open)

    def close(self) -> None:
        """Unbinds. The kernel drops what still waits: remove the table and drain first."""
        self._socket.close()

    def _plain(self, packet_id: int, verdict: int) -> None:
        self._verdicts.append(self._heads[packet_id >= _BULK_ID] + _VERDICT_PAIR.pack(verdict, packet_id & _ID))

    def _marked(self, packet_id: int, mark: int) -> None:
        head = self._marked_heads[packet_id >= _BULK_ID]
        self._verdicts.append(head + _MARKED.pack(_ACCEPT, packet_id & _ID, _MARK_HEAD, mark))

    def _rewritten(self, packet_id: int, mark: int | None, data: bytes) -> None:
        members = [attribute(_ATTR_VERDICT, _VERDICT_PAIR.pack(_ACCEPT, packet_id & _ID))]
        if mark is not None:
            members.append(attribute(_ATTR_MARK, _U32.pack(mark)))
        members.append(attribute(_ATTR_PAYLOAD, data))
        text = _verdict_message(self._numbers[packet_id >= _BULK_ID], *members)
        self._verdict_bytes += len(text)
        self._verdicts.append(text)
        if self._verdict_bytes > _SEND_AT:
            self.flush()

    def _message(self, buffer: bytes) -> None:
        if _HEADER.unpack_from(buffer)[1] != _PACKET_KIND:
            # An error about a verdict: the packet is gone already, because its interface or its hook is.
            return
        length = 0
        data = b""
        offset = _FIRST_ATTRIBUTE
        first, packet_id, second, index, third, mark = _FRONT.unpack_from(buffer, offset)
        if (first, second, third) == _FRONT_HEADS:
            offset = _AFTER_FRONT
        else:
            packet_id = index = mark = 0
        unpack = _ATTRIBUTE.unpack_from
        while offset < len(buffer):
            attribute_size, name = unpack(buffer, offset)
            if name == _ATTR_PAYLOAD:
                data = buffer[offset + 4 : offset + attribute_size]
            elif name == _ATTR_TRUE_LENGTH:
                (length,) = _U32.unpack_from(buffer, offset + 4)
            elif name == _ATTR_HEADER:
                (packet_id,) = _U32.unpack_from(buffer, offset + 4)
            elif name == _ATTR_INDEV:
                (index,) = _U32.unpack_from(buffer, offset + 4)
            elif name == _ATTR_MARK:
                (mark,) = _U32.unpack_from(buffer, offset + 4)
            offset += attribute_size + 3 & ~3
        side = self._sides.get(index)
        if side is None:
            # An interface that was made anew has a new index.
            self._resolve()
            side = self._sides.get(index)
        if buffer[_RESOURCE_OFFSET:_FIRST_ATTRIBUTE] == self._bulk_resource:
            packet_id += _BULK_ID
        self._open[packet_id] = mark
        self._receive(packet_id, data, side, length or len(data))

    def _resolve(self) -> None:
        self._sides.clear()
        for name, side in self._names.items():
            try:
                self._sides[socket.if_nametoindex(name)] = side
            except OSError:
                continue

    def _enlarge(self, size: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def _verdict_message(number: int, *members: bytes) -> bytes:
    return message(kind(SUBSYSTEM_QUEUE, _VERDICT), 0, 0, number, *members)


def _bound_socket(numbers: tuple[int, int]) -> socket.socket:
    """Raises CapabilityError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    sock.bind((0, 0))
    deadline = time.monotonic() + _BIND_PATIENCE
    for number in numbers:
        while (refused := _command(sock, number, _BIND)) and number in bound_queues() and time.monotonic() < deadline:
            time.sleep(0.02)
        if refused:
            sock.close()
            raise _bind_error(number, OSError(refused, os.strerror(refused)))
    return sock


def _command(sock: socket.socket, number: int, command: int) -> int:
    """The error that the kernel answers with, 0 for none."""
    body = attribute(_CFG_COMMAND, struct.pack("!BxH", command, 0))
    sock.send(message(kind(SUBSYSTEM_QUEUE, _CONFIG), NLM_F_ACK, 0, number, body))
    answer = sock.recv(4096)
    return -int(struct.unpack_from("=i", answer, 16)[0]) if _HEADER.unpack_from(answer)[1] == _NLMSG_ERROR else 0


def bulk_queue(number: int) -> int:
    """The number of the bulk queue that belongs to a queue."""
    return number + _BULK


def bound_queues() -> frozenset[int]:
    """The queues that any process of this network namespace has bound."""
    return frozenset(int(row[0]) for row in _rows())


def queue_losses() -> dict[int, QueueLosses]:
    """By queue, for all of this network namespace."""
    # nfnetlink_queue.c, seq_show: number, port, waiting, copy mode, copy range, dropped, dropped for user space, ...
    return {int(row[0]): QueueLosses(int(row[5]), int(row[6])) for row in _rows()}


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
