"""The netfilter queue: packets in, verdicts out.

NetfilterQueue binds the queues, takes their messages apart and gives the verdicts. What it has no words for is
configured by messages of <linux/netfilter/nfnetlink_queue.h> on a duplicate of its socket: segmentation offload, what
becomes of packets for which there is no room, and the copy of whole packets. They are read from that duplicate, too:
`run` would cut a message at 4096 bytes, and tells nobody of the kernel's overruns.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from netfilterqueue import COPY_NONE, COPY_PACKET, NetfilterQueue
from netfilterqueue import Packet as QueuedPacket

from gfwemu.errors import CapabilityError
from gfwemu.kernel.marks import (
    OFFLOAD_ACCEPT,
    OFFLOAD_BULK,
    OFFLOAD_DROP,
    PACKET_BITS,
    QUEUE_ALL,
    QUEUED,
    SPARE_ANSWERS,
)
from gfwemu.kernel.netlink import SUBSYSTEM_QUEUE, attribute, attributes, kind, message
from gfwemu.model import Side

Receive = Callable[[int, bytes, "Side | None", int], None]
"""Called with the packet's number, its bytes, where it came from, and its true length (the bytes may be cut)."""

# <linux/netfilter/nfnetlink_queue.h>
_CONFIG, _VERDICT_BATCH = 2, 3
_NF_ACCEPT = 1
_VERDICT_HEADER, _MARK = 2, 3
_CFG_PARAMS, _CFG_LENGTH, _CFG_MASK, _CFG_FLAGS = 2, 3, 4, 5
_FLAG_FAIL_OPEN, _FLAG_GSO = 1, 4
_ATTR_TRUE_LENGTH = 13
_FIRST_ATTRIBUTE = 20

_LARGEST_COPY = 0xFFFF - 4
"""The kernel's own bound: the attribute's header counts (nfnetlink_queue.c, nfqnl_set_mode)."""

_BULK_COPY = 256
"""Enough for the longest IPv4 and TCP headers, and for IPv6 with an extension header or two."""

_BULK = 0x8000
"""From the number of a queue to that of its bulk queue: daemons with neighbouring queues do not meet."""

QUEUE_NUMBERS = _BULK
_BULK_ID = 1 << 32
"""Added to the numbers of the bulk queue's packets; the kernel's own have 32 bits."""

_BUFFER = 0xFFFF + 1024
"""A packet and the attributes around it."""

_FETCH = 64
"""Messages that are fetched from a socket at once."""

_ALONE = 4
"""So many packets came alone before a fetch looks for a second one: the answer that there is none is an exception,
which costs a packet that comes alone as much as its own fetch."""

_TURN = 16
"""Packets that are decided before more are fetched and their verdicts are given."""

_STATE = Path("/proc/net/netfilter/nfnetlink_queue")
_KEEP_MARK = 0xFFFFFFFF & ~PACKET_BITS
_BIND_PATIENCE = 1.0
"""Seconds. A daemon that was killed a moment ago holds its queue until the kernel has cleared it away."""

_UNBIND_PATIENCE = struct.pack("@ll", 1, 0)
"""A second. NetfilterQueue waits for the kernel's answer, which a full socket loses."""

_U32 = struct.Struct("!I")
_IP_LENGTHS = struct.Struct("!BxHH")
_IPV6_HEADER = 40


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """How a queue behaves.

    length: packets that may wait in the kernel, held ones included. buffer: bytes of the socket on which the kernel
    hands them over, of each of the two. fail_open: where either is full, packets pass; otherwise they are lost.
    """

    length: int = 8192
    buffer: int = 16 << 20
    fail_open: bool = True


class QueueLosses(NamedTuple):
    """Packets that a queue lost: it was full, or its socket was."""

    full_queue: int
    full_socket: int


class _Bound:
    """One queue that is bound. copy: the most bytes of a packet that come. first_id: added to its packets' numbers."""

    __slots__ = ("copy", "first_id", "netfilter", "number", "socket", "unsplit")

    def __init__(self, number: int, receive: Callable[[QueuedPacket], None], buffer: int, *, bulk: bool) -> None:
        """Raises CapabilityError."""
        self.number = number
        self.copy = _BULK_COPY if bulk else _LARGEST_COPY
        self.unsplit = _FLAG_GSO if bulk else 0
        self.first_id = _BULK_ID if bulk else 0
        try:
            self.netfilter = NetfilterQueue()
            self._bind(receive, buffer)
        except OSError as error:
            raise _bind_error(number, error) from None
        self.socket = socket.socket(fileno=fcntl.fcntl(self.netfilter.get_fd(), fcntl.F_DUPFD_CLOEXEC, 0))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _UNBIND_PATIENCE)

    def _bind(self, receive: Callable[[QueuedPacket], None], buffer: int) -> None:
        deadline = time.monotonic() + _BIND_PATIENCE
        while True:
            try:
                with warnings.catch_warnings():
                    # It warns where a user may have no larger buffer than the system's limit.
                    warnings.simplefilter("ignore", RuntimeWarning)
                    self.netfilter.bind(self.number, receive, mode=COPY_NONE, sock_len=buffer)
                return
            except OSError:
                if self.number not in bound_queues() or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def configure(self, options: QueueOptions) -> None:
        flags = (_FLAG_FAIL_OPEN if options.fail_open else 0) | self.unsplit
        # Without NLM_F_ACK: an answer would mix with the packets.
        self.socket.send(
            message(
                kind(SUBSYSTEM_QUEUE, _CONFIG),
                0,
                0,
                self.number,
                attribute(_CFG_PARAMS, struct.pack("!IB", self.copy, COPY_PACKET)),
                attribute(_CFG_LENGTH, _U32.pack(options.length)),
                attribute(_CFG_FLAGS, _U32.pack(flags)),
                attribute(_CFG_MASK, _U32.pack(_FLAG_FAIL_OPEN | _FLAG_GSO)),
            )
        )

    def close(self) -> None:
        self.netfilter.unbind()
        self.socket.close()


class PacketQueue:
    """A bound queue and its bulk queue: for flows of which nothing but sizes counts any more.

    The bulk queue hands over headers only, and of the packets as they are before segmentation offload splits them: a
    packet of 64 KB costs no more than one of 1500 bytes. Its packets have numbers of their own. Where a flow moves from
    one to the other, what it left behind is read first, so that its packets keep their order. `flush` gives the
    verdicts that wait.
    """

    def __init__(self, number: int, ends: tuple[str, str], receive: Receive, options: QueueOptions) -> None:
        """Raises CapabilityError."""
        self.overruns = 0
        self._names = dict(zip(ends, (Side.INSIDE, Side.OUTSIDE), strict=True))
        self._sides: dict[int, Side] = {}
        self._receive = receive
        self._open: dict[int, QueuedPacket] = {}
        """The packets that have no verdict yet."""
        self._cut: set[int] = set()
        """Those of them whose bytes did not come all."""
        self._verdicts: list[Callable[[], None] | tuple[_Bound, int, int]] = []
        """In their order; as a tuple, for all packets of that queue that are still in the kernel, up to that number:
        they pass, with that mark (0: their own)."""
        self._joinable: tuple[_Bound, int] | None = None
        """Queue and mark with which a packet may join the last of the verdicts."""
        self._arrived: deque[tuple[_Bound, bytes]] = deque()
        self._leaving: _Bound | None = None
        self._moved_from: _Bound | None = None
        self._left_behind = 0
        self._alone = 0
        self._turn = 0
        self._message = b""
        self._view = memoryview(bytearray(_BUFFER))
        self._queue = self._of = _Bound(number, self._packet, options.buffer, bulk=False)
        try:
            self._bulk = _Bound(bulk_queue(number), self._packet, options.buffer, bulk=True)
        except CapabilityError:
            self._queue.close()
            raise
        self.configure(options)
        self._resolve()

    def filenos(self) -> tuple[int, int]:
        return self._queue.socket.fileno(), self._bulk.socket.fileno()

    def configure(self, options: QueueOptions) -> None:
        """Takes new options; packets that wait keep what they came with. The sockets' buffers stay."""
        self._room = options.length
        self._queue.configure(options)
        self._bulk.configure(options)

    def read(self, limit: int, *, bulk: bool = True) -> int:
        """Hands over what waits, at most `limit` packets. Returns how many. What `receive` raises comes out here.

        The verdicts of the last of them wait for `flush`: the caller may have something to do that shall come before.
        bulk False: nothing waits in the bulk queue; then something may go on waiting in the other one, too.
        """
        waiting = self._arrived
        count = 0
        while True:
            if bulk or self._moved_from is not None:
                self._fetch_both()
            else:
                self._fetch_some()
            if not waiting:
                return count
            self.flush()
            self._turn = turn = min(_TURN, len(waiting), limit - count)
            while self._turn:
                self._of = waiting[0][0]
                self._of.netfilter.run_socket(self)
            count += turn
            if count == limit or not waiting:
                return count

    @property
    def backlog(self) -> int:
        """Packets that were fetched from the kernel and wait here: the sockets do not tell of them again."""
        return len(self._arrived)

    def recv(self, _size: int) -> bytes:
        """One message, for NetfilterQueue.run_socket, which ends at EAGAIN."""
        if not self._turn or self._arrived[0][0] is not self._of:
            raise BlockingIOError(errno.EAGAIN, "")
        self._turn -= 1
        self._message = self._arrived.popleft()[1]
        return self._message

    def _fetch_both(self) -> None:
        moved_from, before = self._moved_from, len(self._arrived)
        if moved_from is not None:
            drained = self._fetch(moved_from)
            self._left_behind -= len(self._arrived) - before
            if not drained and self._left_behind > 0:
                return
            self._moved_from = None
        self._fetch(self._queue)
        self._fetch(self._bulk)

    def _fetch_some(self) -> None:
        """One packet where one at a time comes, soon as many as there are where more do."""
        most = min(_FETCH, 1 + self._alone // _ALONE)
        self._alone = 0 if self._fetch(self._queue, most) else self._alone + most

    def _fetch(self, queue: _Bound, most: int = _FETCH) -> bool:
        """Makes room on the socket, whose buffer holds no hundred packets where a user may not enlarge it. True where
        nothing waits there any more."""
        receive_into, view, arrived = queue.socket.recv_into, self._view, self._arrived
        for _ in range(min(most, self._room - len(arrived))):
            try:
                size = receive_into(view, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                continue
            arrived.append((queue, bytes(view[:size])))
        return False

    def accept(
        self,
        packet_id: int,
        data: bytes | None = None,
        *,
        offload: bool = False,
        bulk: bool = False,
        queue_all: bool = False,
        spare_answers: bool = False,
    ) -> None:
        """Lets a packet go, unless it has its verdict already.

        offload: the kernel answers for the flow from now on. bulk: it goes on in the bulk queue. queue_all and
        spare_answers: as in `SetVerdict`.

        data: the packet's new bytes. A packet that came cut passes unchanged: they would replace what nobody saw, too.
        """
        packet = self._open.pop(packet_id, None)
        if packet is None:
            return
        queue = self._queue if packet_id < _BULK_ID else self._bulk
        if bulk is (queue is self._queue):
            self._leaving = queue
        mark = 0
        if offload or bulk or queue_all or spare_answers:
            how = OFFLOAD_ACCEPT if offload else OFFLOAD_BULK if bulk else QUEUE_ALL if queue_all else 0
            how |= SPARE_ANSWERS if spare_answers else 0
            mark = packet.mark & _KEEP_MARK | QUEUED | how
            packet.set_mark(mark)
        # While one is held, the others pass one by one: a number stands for all before it, too.
        joins = (queue, mark) if not self._open else None
        if packet_id in self._cut:
            self._cut.remove(packet_id)
        elif data is not None:
            packet.set_payload(data)
            joins = None
        if joins is not None and joins == self._joinable:
            self._verdicts[-1] = queue, packet_id, mark
        else:
            self._joinable = joins
            self._verdicts.append(packet.accept)

    def drop(self, packet_id: int, *, offload: bool = False, queue_all: bool = False) -> None:
        """Likewise. With `offload` or `queue_all` the table's later chain drops the packet, after it kept the mark."""
        packet = self._open.pop(packet_id, None)
        if packet is None:
            return
        self._joinable = None
        self._cut.discard(packet_id)
        if offload or queue_all:
            packet.set_mark(packet.mark & _KEEP_MARK | QUEUED | OFFLOAD_DROP | (0 if offload else QUEUE_ALL))
            self._verdicts.append(packet.accept)
        else:
            self._verdicts.append(packet.drop)

    def then(self, action: Callable[[], None]) -> None:
        """To be done behind the verdicts that wait, and before any other."""
        self._joinable = None
        self._verdicts.append(action)

    def flush(self) -> None:
        """Gives the verdicts that wait, in the order in which they were decided, and does what stands between them."""
        verdicts = self._verdicts
        if verdicts:
            self._verdicts, self._joinable = [], None
            for verdict in verdicts:
                if isinstance(verdict, tuple):
                    _accept_up_to(*verdict)
                else:
                    verdict()
        if self._leaving is not None:
            # No more packets than a queue holds can have come before those that go to the other one from now on.
            self._moved_from, self._left_behind, self._leaving = self._leaving, self._room, None

    def is_open(self, packet_id: int) -> bool:
        return packet_id in self._open

    def open_packets(self) -> tuple[int, ...]:
        return tuple(self._open)

    def close(self) -> None:
        """Unbinds. The kernel drops what still waits: remove the table and drain first."""
        self._queue.close()
        self._bulk.close()

    def _packet(self, packet: QueuedPacket) -> None:
        queue = self._of
        packet_id: int = packet.id + queue.first_id
        data: bytes = packet.get_payload()
        length = len(data)
        if length == queue.copy:
            length = self._true_length(data)
            if length > len(data):
                self._cut.add(packet_id)
        index: int = packet.indev
        side = self._sides.get(index)
        if side is None:
            # An interface that was made anew has a new index.
            self._resolve()
            side = self._sides.get(index)
        self._open[packet_id] = packet
        self._receive(packet_id, data, side, length)

    def _true_length(self, data: bytes) -> int:
        """Of the packet that came last, by its IP header: the kernel has removed link padding."""
        first, ipv4, ipv6 = _IP_LENGTHS.unpack_from(data)
        length: int = ipv4 if first >> 4 == 4 else ipv6 and ipv6 + _IPV6_HEADER
        if length:
            return length
        # Longer than the header can say (a jumbogram, RFC 2675; BIG TCP): the kernel tells in an attribute.
        for name, value in attributes(self._message[_FIRST_ATTRIBUTE:]):
            if name == _ATTR_TRUE_LENGTH:
                (length,) = _U32.unpack(value)
        return max(length, len(data))

    def _resolve(self) -> None:
        self._sides.clear()
        for name, side in self._names.items():
            try:
                self._sides[socket.if_nametoindex(name)] = side
            except OSError:
                continue


def _accept_up_to(queue: _Bound, packet_id: int, mark: int) -> None:
    """One message for many packets."""
    header = _U32.pack(_NF_ACCEPT) + _U32.pack(packet_id - queue.first_id)
    members = attribute(_VERDICT_HEADER, header), attribute(_MARK, _U32.pack(mark)) if mark else b""
    queue.socket.send(message(kind(SUBSYSTEM_QUEUE, _VERDICT_BATCH), 0, 0, queue.number, *members))


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
