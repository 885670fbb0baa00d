"""Sends forged IP packets by raw sockets, header included (raw(7), ipv6(7))."""

from __future__ import annotations

import errno
import socket
from collections import Counter

from gfwemu.errors import CapabilityError
from gfwemu.kernel.marks import ID_ZERO, INJECTED
from gfwemu.model import address_text

# <linux/in6.h>; not in Python's socket module
_IPV6_HDRINCL = 36
_SEND_BUFFER = 4 << 20


class Injector:
    """Every packet leaves as given: TTL, flags, checksums of the transport and all.

    The kernel fills in an IPv4 header's total length and checksum only. What cannot be sent is counted by reason.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.failed: Counter[str] = Counter()
        try:
            self._plain = _raw_socket(socket.AF_INET, INJECTED)
            self._id_zero = _raw_socket(socket.AF_INET, INJECTED | ID_ZERO)
            self._v6 = _raw_socket(socket.AF_INET6, INJECTED)
        except PermissionError:
            raise CapabilityError(
                "Raw sockets need CAP_NET_RAW.", "Run as root, or inside a user namespace: gfwemu run does."
            ) from None

    def close(self) -> None:
        for sock in (self._plain, self._id_zero, self._v6):
            sock.close()

    def send(self, data: bytes) -> bool:
        """Sends one IPv4 or IPv6 packet now. False, and counted in `failed`, where the kernel refuses it."""
        try:
            version = data[0] >> 4
            if version == 4:
                sock = self._plain if data[4] or data[5] else self._id_zero
                sock.sendto(data, (address_text(data[16:20]), 0))
            elif version == 6:
                self._v6.sendto(data, (address_text(data[24:40]), 0))
            else:
                raise ValueError(f"no IP packet: version {version}")
        except OSError as error:
            self.failed[errno.errorcode.get(error.errno or 0, str(error))] += 1
            return False
        except (IndexError, ValueError):
            self.failed["EINVAL"] += 1
            return False
        self.sent += 1
        return True


def _raw_socket(family: int, mark: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    # A raw socket of protocol RAW never receives, but the kernel would queue for it without this.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
    return sock
