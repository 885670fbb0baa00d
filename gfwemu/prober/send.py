"""One probe on the wire: a connection, some bytes, and what the server makes of them."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass

from gfwemu.prober.plan import Attempt
from gfwemu.rules.actions import Reaction

_CHUNK = 65536
_VERSIONS = b"\x00\x00\x07\x00\x06\x00\x03\x00\x04\x00\x05"
"""Tor's VERSIONS cell: circuit 0, command 7, link protocols 3 to 5 (tor-spec, section 4)."""

_TLS_HANDSHAKE = b"\x16\x03"
_TOR_CONTEXT = ssl.create_default_context()
_TOR_CONTEXT.check_hostname = False
_TOR_CONTEXT.verify_mode = ssl.CERT_NONE


class NotSentError(Exception):
    """The probe never left. The text says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """seconds: from the last byte of the probe until the reaction. sent: bytes."""

    reaction: Reaction
    seconds: float
    sent: int


async def send(attempt: Attempt, server: str, port: int, device: str, hops: int) -> Outcome:
    """Raises NotSentError. hops: routers between here and the server, which take that much off the TTL.

    The socket is bound to the device: nothing leaves by another one.
    """
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        _prepare(sock, attempt, device, hops)
        began = time.monotonic()
        try:
            await asyncio.wait_for(loop.sock_connect(sock, (server, port)), attempt.timeout)
        except ConnectionRefusedError:
            return Outcome("refused", time.monotonic() - began, 0)
        except TimeoutError:
            return Outcome("unreachable", time.monotonic() - began, 0)
        except OSError as error:
            if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.ECONNRESET):
                return Outcome("unreachable", time.monotonic() - began, 0)
            raise NotSentError(error.strerror or str(error)) from None
        talk = _Talk(loop, sock, attempt.timeout)
        reaction = await (talk.tor() if attempt.send == "tor" else talk.once(attempt))
        # An orderly end: a prober that gives up sends a FIN (Alice et al., IMC 2020, section 5).
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        return Outcome(reaction, talk.waited, talk.sent)


def _prepare(sock: socket.socket, attempt: Attempt, device: str, hops: int) -> None:
    ttl = min(255, attempt.ttl + hops)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        sock.bind((attempt.source, attempt.port))
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise NotSentError(
                f"{attempt.source} is no address of this machine; `ip route add local NETWORK dev lo` makes the "
                "prober's network its own"
            ) from None
        raise NotSentError(f"{attempt.source} port {attempt.port}: {error.strerror}") from None


class _Talk:
    """Sends and waits; `waited` is how long the last reaction took."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, timeout: float) -> None:
        self._loop = loop
        self._socket = sock
        self._timeout = timeout
        self.waited = 0.0
        self.sent = 0

    async def once(self, attempt: Attempt) -> Reaction:
        data = client_hello() if attempt.send == "tls" else attempt.data
        reaction, answer = await self._ask(data)
        if attempt.send == "tls" and answer.startswith(_TLS_HANDSHAKE):
            return "confirmed"
        if attempt.send == "http" and answer.startswith(b"HTTP/1.1 200"):
            return "confirmed"
        return reaction

    async def tor(self) -> Reaction:
        """TLS, then VERSIONS: who answers with a VERSIONS cell is a relay or a bridge."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = _TOR_CONTEXT.wrap_bio(incoming, outgoing)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                reaction, answer = await self._ask(outgoing.read())
                if not answer:
                    return reaction
                incoming.write(answer)
            except ssl.SSLError:
                return "data"
        tls.write(_VERSIONS)
        request = outgoing.read()
        while True:
            reaction, answer = await self._ask(request)
            request = b""
            if not answer:
                return reaction
            incoming.write(answer)
            with suppress(ssl.SSLError):
                cell = tls.read(_CHUNK)
                # A cell of the link protocols before 4 has 2 bytes of circuit, and VERSIONS always has.
                return "confirmed" if cell[:3] == _VERSIONS[:3] else "data" if cell else "fin"

    async def _ask(self, data: bytes) -> tuple[Reaction, bytes]:
        self.sent += len(data)
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                await self._loop.sock_sendall(self._socket, data)
                answer = await self._loop.sock_recv(self._socket, _CHUNK)
        except TimeoutError:
            return "timeout", b""
        except OSError:
            return "reset", b""
        finally:
            self.waited = time.monotonic() - began
        return ("data", answer) if answer else ("fin", b"")


def client_hello() -> bytes:
    """The TLS library's own, without a name."""
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        _TOR_CONTEXT.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()
