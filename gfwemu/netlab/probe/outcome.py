"""What a probe is told, what it reports, and what the kinds of probes share."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import time
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

OUTCOMES = {
    "ok": 0,
    "failed": 1,
    "reset": 10,
    "timeout": 11,
    "refused": 12,
    "poisoned": 13,
    "blockpage": 14,
    "slow": 15,
    "frozen": 16,
}
BLOCKPAGE_STATUS = 451
# Speeds over fewer bytes or less time than this say nothing.
SPEED_BYTES = 20_000
SPEED_SECONDS = 0.2
TEXT_LIMIT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to ask, and how. Seconds; kbit/s; `address` replaces name resolution."""

    target: str
    timeout: float = 10.0
    address: str = ""
    local_port: int = 0
    authority: str = ""
    insecure: bool = False
    sni: str = ""
    alpn: tuple[str, ...] = ()
    quic_version: int = 1
    resolver: str = ""
    resolver_name: str = ""
    query_type: str = "A"
    expect: tuple[str, ...] = ()
    listen: float = 0.0
    slow_below: float = 0.0
    blockpage_text: str = ""


@dataclass(slots=True)
class Result:
    """What happened. `seconds` to the outcome, `last_byte` to the last byte of body; `received` bytes of body.

    `text`: the beginning of a page that is text; of a DNS answer its response code.
    """

    outcome: str = "failed"
    detail: str = ""
    seconds: float = 0.0
    received: int = 0
    last_byte: float = 0.0
    status: int = 0
    protocol: str = ""
    server: str = ""
    answers: list[str] = field(default_factory=list)
    text: str = ""
    _started: float = field(default_factory=time.monotonic)

    def body(self, data: bytes) -> None:
        """Take a piece of the page."""
        self.received += len(data)
        self.last_byte = self.elapsed()
        room = TEXT_LIMIT - len(self.text)
        if room > 0 and b"\0" not in data:
            self.text += data[:room].decode(errors="replace")

    def elapsed(self) -> float:
        return round(time.monotonic() - self._started, 4)

    def as_json(self) -> dict[str, object]:
        return {key: value for key, value in asdict(self).items() if not key.startswith("_")}

    def read_head(self, head: bytes) -> None:
        """Take the head of an HTTP/1 answer. Raises `ValueError` for what is none."""
        match = re.match(rb"HTTP/1\.[01] (\d{3})", head)
        if match is None:
            raise ValueError("the answer is not HTTP/1")
        self.status = int(match[1])

    def end(self, outcome: str, detail: str = "") -> None:
        self.outcome, self.detail = outcome, detail


def split_target(target: str, port: int) -> tuple[str, int]:
    """`name`, `name:port`, `[v6]:port` or a bare IPv6 address. Raises `ValueError` for anything else."""
    if "/" in target:
        raise ValueError(f"{target} is no NAME:PORT")
    try:
        return str(ip_address(target)), port
    except ValueError:
        parts = urlsplit(f"//{target}")
        return parts.hostname or "", parts.port or port


def endpoint(options: Options, name: str, port: int, kind: socket.SocketKind) -> tuple[socket.AddressFamily, str]:
    """The address to talk to. Raises `socket.gaierror` when the name has none, `ValueError` when there is no name."""
    if not (options.address or name):
        raise ValueError("the target has no name")
    found = socket.getaddrinfo(options.address or name, port, type=kind)
    return found[0][0], str(found[0][4][0])


def trust(options: Options) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.authority or os.environ.get("SSL_CERT_FILE") or None)
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.alpn:
        context.set_alpn_protocols(list(options.alpn))
    return context


async def http_head(reader: asyncio.StreamReader) -> bytes:
    """The head of an HTTP/1 answer; empty when the server closes before it is complete."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    except asyncio.LimitOverrunError:
        raise ValueError("the head of the answer is too long") from None


async def connect(
    options: Options, result: Result, name: str, port: int, *, tls: bool
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    family, address = endpoint(options, name, port, socket.SOCK_STREAM)
    result.server = address
    reader, writer = await asyncio.open_connection(
        address,
        port,
        family=family,
        local_addr=("::" if family == socket.AF_INET6 else "0.0.0.0", options.local_port)
        if options.local_port
        else None,
        ssl=trust(options) if tls else None,
        server_hostname=(options.sni or name) if tls else None,
    )
    if tls:
        tls_object = writer.get_extra_info("ssl_object")
        result.protocol = tls_object.selected_alpn_protocol() or tls_object.version()
    return reader, writer


def judge_page(options: Options, result: Result, seconds: float) -> None:
    """The outcome of a complete page whose body took `seconds`."""
    marked = bool(options.blockpage_text) and options.blockpage_text in result.text
    speed = result.received * 8 / 1000 / max(seconds, 1e-6)
    measurable = result.received >= SPEED_BYTES and seconds >= SPEED_SECONDS
    if result.status == BLOCKPAGE_STATUS or marked:
        result.end("blockpage", f"status {result.status}")
    elif measurable and speed < options.slow_below:
        result.end("slow", f"{speed:.0f} kbit/s")
    else:
        result.end("ok")
