"""A small client that says in one word what became of a request.

    python -m gfwemu.netlab.probe KIND TARGET [options]

`KIND TARGET`: `http URL`, `https URL`, `h3 URL`, `quic NAME[:PORT]` (handshake only), `tls NAME[:PORT]` (handshake only),
`tcp NAME:PORT`, `dns NAME`, `dns-tcp NAME`, `dot NAME`, `doh NAME` (the last four ask `--resolver`).

Prints one JSON object; its `outcome` also decides the exit code (`OUTCOMES`). `failed` is what none of the others
names, such as a certificate that nobody vouches for; `detail` says what.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
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
    """What happened. `seconds` from the first packet to the outcome; `bytes` of body received."""

    outcome: str = "failed"
    detail: str = ""
    seconds: float = 0.0
    bytes: int = 0
    status: int = 0
    protocol: str = ""
    server: str = ""
    answers: list[str] = field(default_factory=list)
    text: str = ""

    def end(self, outcome: str, detail: str = "") -> None:
        self.outcome, self.detail = outcome, detail


def split_target(target: str, port: int) -> tuple[str, int]:
    """`name`, `name:port`, `[v6]:port` or a bare IPv6 address."""
    try:
        return str(ip_address(target)), port
    except ValueError:
        parts = urlsplit(f"//{target}")
        return parts.hostname or "", parts.port or port


def endpoint(options: Options, name: str, port: int, kind: socket.SocketKind) -> tuple[socket.AddressFamily, str]:
    """The address to talk to. Raises `socket.gaierror` when the name has none."""
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


async def probe_tcp(options: Options, result: Result) -> None:
    name, port = split_target(options.target, 80)
    _, writer = await connect(options, result, name, port, tls=False)
    writer.close()
    result.end("ok")


async def probe_tls(options: Options, result: Result) -> None:
    name, port = split_target(options.target, 443)
    _, writer = await connect(options, result, name, port, tls=True)
    writer.close()
    result.end("ok")


async def probe_http(options: Options, result: Result) -> None:
    url = urlsplit(options.target)
    tls = url.scheme == "https"
    reader, writer = await connect(options, result, url.hostname or "", url.port or (443 if tls else 80), tls=tls)
    path = f"{url.path or '/'}{'?' + url.query if url.query else ''}"
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\nUser-Agent: gfwemu-probe\r\nConnection: close\r\n\r\n".encode()
    )
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        result.end("failed", "the server closed the connection without an answer")
        return
    result.status = int(head.split(b" ", 2)[1])
    result.protocol = result.protocol or "http/1.1"
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    expected = int(lengths[0]) if lengths else None
    text = bytearray()
    started = time.monotonic()
    while data := await reader.read(65536):
        result.bytes += len(data)
        text += data[: max(0, TEXT_LIMIT - len(text))]
        result.text = text.decode(errors="replace")
    if expected is not None and result.bytes < expected:
        result.end("failed", f"the answer ended after {result.bytes} of {expected} bytes")
        return
    judge_page(options, result, time.monotonic() - started)


TEXT_LIMIT = 2000


def judge_page(options: Options, result: Result, seconds: float) -> None:
    """The outcome of a complete page whose body took `seconds`."""
    marked = bool(options.blockpage_text) and options.blockpage_text in result.text
    speed = result.bytes * 8 / 1000 / max(seconds, 1e-6)
    measurable = result.bytes >= SPEED_BYTES and seconds >= SPEED_SECONDS
    if result.status == BLOCKPAGE_STATUS or marked:
        result.end("blockpage", f"status {result.status}")
    elif measurable and speed < options.slow_below:
        result.end("slow", f"{speed:.0f} kbit/s")
    else:
        result.end("ok")


async def probe_h3(options: Options, result: Result) -> None:
    from gfwemu.netlab.quic_probe import fetch

    await fetch(options, result)


async def probe_quic(options: Options, result: Result) -> None:
    from gfwemu.netlab.quic_probe import handshake

    await handshake(options, result)


def _dns(ask: str) -> Callable[[Options, Result], Awaitable[None]]:
    async def run(options: Options, result: Result) -> None:
        from gfwemu.netlab import dns_probe

        await dns_probe.ask(ask, options, result)

    return run


KINDS: dict[str, Callable[[Options, Result], Awaitable[None]]] = {
    "tcp": probe_tcp,
    "tls": probe_tls,
    "http": probe_http,
    "https": probe_http,
    "h3": probe_h3,
    "quic": probe_quic,
    "dns": _dns("udp"),
    "dns-tcp": _dns("tcp"),
    "dot": _dns("dot"),
    "doh": _dns("doh"),
}


async def probe(kind: str, options: Options) -> Result:
    """Run one probe. Network trouble is an outcome, never an exception."""
    result = Result()
    started = time.monotonic()
    try:
        async with asyncio.timeout(options.timeout):
            await KINDS[kind](options, result)
    except TimeoutError:
        result.end("frozen" if result.bytes else "timeout", f"after {result.bytes} bytes" if result.bytes else "")
    except ConnectionRefusedError:
        result.end("refused")
    except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
        result.end("reset")
    except (OSError, asyncio.IncompleteReadError) as error:
        result.end("failed", str(error))
    result.seconds = round(time.monotonic() - started, 4)
    return result


def parse(argv: Sequence[str] | None) -> tuple[str, Options]:
    parser = argparse.ArgumentParser(
        prog="python -m gfwemu.netlab.probe", description="Ask for something, and say in one word what became of it."
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("target", help="URL, NAME or NAME:PORT")
    add = parser.add_argument
    add("--timeout", type=float, default=10.0, metavar="SECONDS")
    add("--address", default="", help="talk to this address instead of resolving the name")
    add("--local-port", type=int, default=0, metavar="PORT")
    add("--authority", default="", metavar="FILE", help="trusted certificates, PEM (default: $SSL_CERT_FILE)")
    add("--insecure", action="store_true", help="believe any certificate")
    add("--sni", default="", metavar="NAME", help="name for TLS, when not the target's")
    add("--alpn", action="append", default=[], metavar="PROTOCOL")
    add("--quic-version", type=int, choices=(1, 2), default=1)
    add("--resolver", default="", metavar="ADDR[:PORT]", help="whom to ask (default: the first of /etc/resolv.conf)")
    add("--resolver-name", default="", metavar="NAME", help="the resolver's name for TLS (default: its address)")
    add("--query-type", default="A", metavar="TYPE")
    add("--expect", action="append", default=[], metavar="ADDR", help="the true answer; any other is `poisoned`")
    add("--listen", type=float, default=0.0, metavar="SECONDS", help="wait for further DNS answers")
    add("--slow-below", type=float, default=0.0, metavar="KBIT/S", help="below this speed the outcome is `slow`")
    add("--blockpage-text", default="", metavar="TEXT", help="a page with this text is a blockpage")
    given = vars(parser.parse_args(argv))
    kind = given.pop("kind")
    return kind, Options(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})


def main(argv: Sequence[str] | None = None) -> int:
    kind, options = parse(argv)
    result = asyncio.run(probe(kind, options))
    json.dump({"probe": kind, "target": options.target, **asdict(result)}, sys.stdout)
    print()
    return OUTCOMES[result.outcome]


if __name__ == "__main__":
    raise SystemExit(main())
