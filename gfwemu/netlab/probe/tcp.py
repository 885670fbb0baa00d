"""Probes over TCP: connect, TLS handshake, HTTP/1.1."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from gfwemu.netlab.probe.outcome import Options, Result, connect, http_head, judge_page, split_target


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
    head = await http_head(reader)
    if not head:
        result.end("failed", "the server closed the connection without an answer")
        return
    result.read_head(head)
    result.protocol = result.protocol or "http/1.1"
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    expected = int(lengths[0]) if lengths else None
    started = time.monotonic()
    while data := await reader.read(65536):
        result.body(data)
    if expected is not None and result.received < expected:
        result.end("failed", f"the answer ended after {result.received} of {expected} bytes")
        return
    judge_page(options, result, time.monotonic() - started)
