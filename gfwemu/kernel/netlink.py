"""The few netfilter netlink messages that no library at hand offers, or offers too slowly for the packet path.

Message, attribute and batch layouts: <linux/netlink.h>, <linux/netfilter/nfnetlink.h>.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress

NETLINK_NETFILTER = 12
NFPROTO_INET = 1
SUBSYSTEM_CTNETLINK = 1
SUBSYSTEM_QUEUE = 3
SUBSYSTEM_NFTABLES = 10

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800

_NLMSG_ERROR, _NLMSG_DONE, _NLMSG_OVERRUN = 2, 3, 4
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_HEADER = struct.Struct("=IHHII")
_FAMILY_HEADER = struct.Struct("!BBH")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 1 << 16
_SO_SNDBUFFORCE = 32  # <asm-generic/socket.h>; not in Python's socket module
_LONGEST_DATAGRAM = 1 << 20


def attribute(kind: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + bytes(-length % 4)


def nested(kind: int, *members: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(members))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each attribute; stops where the bytes end."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & _TYPE_MASK, data[offset + 4 : offset + length]
        offset += length + 3 & ~3


def message(kind: int, flags: int, family: int, resource: int, *members: bytes) -> bytes:
    """A request without its sequence number, which the socket fills in."""
    body = _FAMILY_HEADER.pack(family, 0, resource) + b"".join(members)
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, 0, 0) + body


def kind(subsystem: int, number: int) -> int:
    return subsystem << 8 | number


def batch(messages: Sequence[bytes], subsystem: int = SUBSYSTEM_NFTABLES) -> list[bytes]:
    """All of the messages or none."""
    return [message(_BATCH_BEGIN, 0, 0, subsystem), *messages, message(_BATCH_END, 0, 0, subsystem)]


class NetfilterSocket:
    """A netlink socket to netfilter. The kernel answers within `send`, so that nothing here waits for long."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._sequence = 0
        self.longest = self._widen()

    def _widen(self) -> int:
        """Lets long datagrams be sent; returns how long they may be. Beyond the system's limit only with privileges."""
        for option in (socket.SO_SNDBUF, _SO_SNDBUFFORCE):
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, option, _LONGEST_DATAGRAM)
        # <linux/netlink.h>'s socket (af_netlink.c, netlink_sendmsg) keeps 32 bytes of the buffer for itself.
        return min(_LONGEST_DATAGRAM, self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 32)

    def close(self) -> None:
        self._socket.close()

    def send(self, messages: Sequence[bytes]) -> None:
        """Sends requests as one datagram. Raises OSError for the first that the kernel refuses."""
        self._socket.send(self._numbered(messages))
        refused = 0
        while True:
            try:
                answer = self._socket.recv(_BUFFER, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            for number, body in _messages(answer):
                if number == _NLMSG_ERROR and not refused:
                    refused = -int(struct.unpack_from("=i", body)[0])
        if refused:
            raise OSError(refused, os.strerror(refused))

    def dump(self, request: bytes) -> Iterator[bytes]:
        """The bodies (with the 4-byte netfilter header) of all answers to a dump request. Raises OSError."""
        self._socket.send(self._numbered([request]))
        while True:
            for number, body in _messages(self._socket.recv(_BUFFER)):
                if number == _NLMSG_DONE:
                    return
                if number == _NLMSG_ERROR:
                    refused = -int(struct.unpack_from("=i", body)[0])
                    raise OSError(refused, os.strerror(refused))
                if number == _NLMSG_OVERRUN:
                    raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
                yield body

    def _numbered(self, messages: Sequence[bytes]) -> bytes:
        datagram = bytearray()
        for text in messages:
            self._sequence = self._sequence + 1 & 0xFFFFFFFF
            datagram += text[:8] + struct.pack("=I", self._sequence) + text[12:]
        return bytes(datagram)


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, number, _, _, _ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size:
            return
        yield number, datagram[offset + _HEADER.size : offset + length]
        offset += length + 3 & ~3
