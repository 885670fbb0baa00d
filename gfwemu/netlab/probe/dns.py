"""The DNS part of the probe: one question over UDP, TCP, TLS or HTTPS."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

from dnslib import QTYPE, RCODE, DNSError, DNSRecord

from gfwemu.netlab.probe.outcome import Options, Result, connect, http_head, split_target

PORTS = {"udp": 53, "tcp": 53, "dot": 853, "doh": 443}
RESOLV_CONF = Path("/etc/resolv.conf")


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, query: bytes) -> None:
        self._query = query
        self.answers: asyncio.Queue[bytes | Exception] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.DatagramTransport, transport).sendto(self._query)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if data[:2] == self._query[:2]:
            self.answers.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        self.answers.put_nowait(exc)


def _resolver(options: Options) -> str:
    if options.resolver:
        return options.resolver
    for line in RESOLV_CONF.read_text().splitlines():
        words = line.split()
        if words[:1] == ["nameserver"]:
            return words[1]
    raise OSError(f"{RESOLV_CONF} names no resolver: give --resolver")


async def _ask(way: str, options: Options, result: Result) -> None:
    """Ask for `options.target`; `result.answers` holds the addresses (or record texts) of every answer that came."""
    address, port = split_target(_resolver(options), PORTS[way])
    try:
        query = bytes(DNSRecord.question(options.target, options.query_type.upper()).pack())
    except (DNSError, AttributeError) as error:
        raise OSError(f"this cannot be asked: {error}") from None
    result.server, result.protocol = address, way
    if way == "udp":
        await _ask_udp(query, address, port, options, result)
    elif way == "doh":
        await _ask_doh(query, address, port, options, result)
    else:
        target = replace(options, sni=options.sni or options.resolver_name)
        reader, writer = await connect(target, result, address, port, tls=way == "dot")
        writer.write(len(query).to_bytes(2) + query)
        length = int.from_bytes(await reader.readexactly(2))
        _read(await reader.readexactly(length), result)
        writer.close()
    _judge(options, result)


async def _ask_udp(query: bytes, address: str, port: int, options: Options, result: Result) -> None:
    local = ("::" if ":" in address else "0.0.0.0", options.local_port) if options.local_port else None
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Udp(query), remote_addr=(address, port), local_addr=local, family=socket.AF_UNSPEC
    )
    try:
        first = await protocol.answers.get()
        if isinstance(first, Exception):
            raise first
        _read(first, result)
        if options.listen:
            await asyncio.sleep(options.listen)
            while not protocol.answers.empty():
                later = protocol.answers.get_nowait()
                if isinstance(later, bytes):
                    _read(later, result)
    finally:
        transport.close()


async def _ask_doh(query: bytes, address: str, port: int, options: Options, result: Result) -> None:
    name = options.resolver_name or address
    target = replace(options, address=options.address or address)
    reader, writer = await connect(target, result, name, port, tls=True)
    head = (
        f"POST /dns-query HTTP/1.1\r\nHost: {name}\r\nContent-Type: application/dns-message\r\n"
        f"Content-Length: {len(query)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + query)
    result.read_head(await http_head(reader))
    body = await reader.read(-1)
    if result.status != 200:
        raise OSError(f"the resolver answered status {result.status}")
    _read(body, result)


def _read(message: bytes, result: Result) -> None:
    try:
        record = DNSRecord.parse(message)
    except DNSError as error:
        raise OSError(f"the answer cannot be read: {error}") from None
    result.received += len(message)
    result.text = str(RCODE.get(record.header.rcode))
    result.answers += [str(answer.rdata) for answer in record.rr if answer.rtype != QTYPE.CNAME]


def _canonical(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        return text


def _judge(options: Options, result: Result) -> None:
    wrong = {_canonical(answer) for answer in result.answers} - {_canonical(text) for text in options.expect}
    if options.expect and wrong:
        result.end("poisoned", f"{', '.join(sorted(wrong))} instead of {', '.join(options.expect)}")
    elif not result.answers:
        result.end("failed", f"{result.text} without an answer" if result.text == "NOERROR" else result.text)
    else:
        result.end("ok")


async def probe_dns(options: Options, result: Result) -> None:
    await _ask("udp", options, result)


async def probe_dns_tcp(options: Options, result: Result) -> None:
    await _ask("tcp", options, result)


async def probe_dot(options: Options, result: Result) -> None:
    await _ask("dot", options, result)


async def probe_doh(options: Options, result: Result) -> None:
    await _ask("doh", options, result)
