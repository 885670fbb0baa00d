"""A TLS client whose ClientHello is cut as the test likes, over a real or a hand-made connection."""

from __future__ import annotations

import itertools
import ssl
import struct
from collections.abc import Callable, Iterable
from typing import Protocol

from gfwemu.netlab.lab import Lab

RECORD_HEADER = 5


class Stream(Protocol):
    """What is needed of a socket."""

    def sendall(self, data: bytes, /) -> None: ...

    def recv(self, size: int, /) -> bytes: ...


class Hello:
    """A TLS connection in the making. `record`: the ClientHello in its one record, not yet sent."""

    def __init__(self, lab: Lab, name: str, alpn: tuple[str, ...] = ("http/1.1",)) -> None:
        context = ssl.create_default_context(cafile=str(lab.directory / "internet" / "authority.pem"))
        context.set_alpn_protocols(list(alpn))
        # With a post-quantum key share, no ClientHello would fit into one segment.
        context.set_ecdh_curve("prime256v1")
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        self._name = name
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self.record = self._out.read()

    def start(self, stream: Stream, path: str) -> None:
        """Goes on after the ClientHello was sent: the handshake, and a request."""
        self._pump(stream, self._tls.do_handshake)
        request = f"GET {path} HTTP/1.1\r\nHost: {self._name}\r\nConnection: close\r\n\r\n".encode()
        self._pump(stream, lambda: self._tls.write(request))

    def finish(self, stream: Stream, path: str = "/") -> bytes:
        """As `start`, and returns the answer."""
        self.start(stream, path)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer.partition(b"\r\n\r\n")[2]) < _length(answer):
            answer += self._pump(stream, lambda: self._tls.read(65_536))
        return answer

    def _pump(self, stream: Stream, step: Callable[[], bytes | int | None]) -> bytes:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                if data := self._out.read():
                    stream.sendall(data)
                more = stream.recv(65_536)
                if not more:
                    raise EOFError from None
                self._in.write(more)
                continue
            if data := self._out.read():
                stream.sendall(data)
            return result if isinstance(result, bytes) else b""


def _length(answer: bytes) -> int:
    head = answer.partition(b"\r\n\r\n")[0].lower()
    return next(int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))


def split_record(record: bytes, cuts: Iterable[int]) -> bytes:
    """The same handshake message in several records; cuts are offsets in the message."""
    message = record[RECORD_HEADER:]
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(message)}), len(message)]
    return b"".join(
        struct.pack("!BHH", 22, 0x0301, end - start) + message[start:end] for start, end in itertools.pairwise(edges)
    )


def read_until(stream: Stream, marker: bytes) -> bytes:
    """What comes, up to the marker and beyond. Raises EOFError where the stream ends before."""
    got = b""
    while marker not in got:
        more = stream.recv(65_536)
        if not more:
            raise EOFError(got)
        got += more
    return got


def outcome(work: Callable[[], object]) -> str:
    """`ok`, or what became of the connection."""
    try:
        work()
    except TimeoutError:
        return "timeout"
    except (ConnectionResetError, BrokenPipeError):
        return "reset"
    except ConnectionRefusedError:
        return "refused"
    except EOFError:
        return "closed"
    return "ok"
