"""Brings up everything that a plan names."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from gfwemu.errors import GfwemuError
from gfwemu.netlab.internet.authority import open_authority
from gfwemu.netlab.internet.certificates import Certificates
from gfwemu.netlab.internet.dns import Answerer, check_https_records
from gfwemu.netlab.internet.echo import start_echo, start_sink
from gfwemu.netlab.internet.names import Names
from gfwemu.netlab.internet.openvpn import start_openvpn
from gfwemu.netlab.internet.plan import Echo, OpenVpn, Resolver, Sink, Site, Ssh, WireGuard, load_plan
from gfwemu.netlab.internet.process import announce_ready, bind
from gfwemu.netlab.internet.quic import QuicSites
from gfwemu.netlab.internet.resolvers import DNS_PORT, DOT_PORT, UdpResolver, serve_stream
from gfwemu.netlab.internet.services import Status, Workshop
from gfwemu.netlab.internet.sites import Sites
from gfwemu.netlab.internet.ssh import start_ssh
from gfwemu.netlab.internet.web import Web, refuse_hello
from gfwemu.netlab.internet.wireguard import start_wireguard

HTTPS_PORT = 443
DOT_ALPN = ("dot",)

STARTERS: dict[type[Any], Callable[[Any, Workshop], Awaitable[Status]]] = {
    OpenVpn: start_openvpn,
    WireGuard: start_wireguard,
    Ssh: start_ssh,
    Echo: start_echo,
    Sink: start_sink,
}


def _ignore_names_in_odd_bytes(event: sys.UnraisableHookArgs) -> None:
    """Python's ssl cannot read an SNI that is not ASCII: it ends the handshake and complains on stderr."""
    if not isinstance(event.exc_value, UnicodeDecodeError):
        sys.__unraisablehook__(event)


async def serve_plan(path: Path, ready_fd: int | None) -> Iterable[Callable[[], None]]:
    """Start everything, write `status.json`, announce readiness. Returns what to call at the end.

    Raises `UsageError` for a wrong plan and `GfwemuError` for an address that cannot be had.
    """
    sys.unraisablehook = _ignore_names_in_odd_bytes
    plan = load_plan(path)
    check_https_records((*plan.sites, *((plan.catch_all,) if plan.catch_all else ())))
    authority = open_authority(Path(plan.directory))
    workshop = Workshop.of(plan, authority)
    statuses = asyncio.gather(*(_start_service(service, workshop) for service in plan.services))
    names = Names.of(plan)
    answerer = Answerer(names, plan.ttl)
    certificates = Certificates(names, authority)
    sites = Sites(names, answerer)
    listeners = _Listeners(Web(sites, certificates), QuicSites(sites, certificates), answerer, certificates)
    for owner in (*plan.sites, *((plan.catch_all,) if plan.catch_all else ()), *plan.resolvers):
        await listeners.add(owner)
    services = dict(zip((service.name for service in plan.services), await statuses, strict=True))
    for name, status in services.items():
        if status.state != "up":
            print(f"gfwemu: {name}: {status.detail}", file=sys.stderr)
    directory = Path(plan.directory)
    report = {
        "authority": str(directory / "authority.pem"),
        "bundle": str(directory / "ca-bundle.pem"),
        "tun": workshop.tun_problem or "ok",
        "services": {name: asdict(status) for name, status in services.items()},
    }
    path.with_name("status.json").write_text(json.dumps(report, indent=2) + "\n")
    announce_ready(ready_fd)
    return [workshop.close, listeners.close]


async def _start_service(service: Any, workshop: Workshop) -> Status:
    try:
        return await STARTERS[type(service)](service, workshop)
    except (GfwemuError, OSError) as error:
        return Status("failed", str(error))


class _Listeners:
    """Everything that answers in this process; what two owners share (an address and a port) is opened once."""

    def __init__(self, web: Web, quic: QuicSites, answerer: Answerer, certificates: Certificates) -> None:
        self._web = web
        self._quic = quic
        self._answerer = answerer
        self._certificates = certificates
        self._open: dict[tuple[str, str, int], Callable[[], None]] = {}

    def close(self) -> None:
        for close in self._open.values():
            close()

    async def add(self, owner: Site | Resolver) -> None:
        for text in owner.addresses:
            address = str(ip_address(text))
            for what in owner.listen:
                await self._add(address, what, owner)

    async def _add(self, address: str, what: str, owner: Site | Resolver) -> None:
        port, start = self._starter(address, what, owner)
        transport = "udp" if what in ("h3", "udp") else "tcp"
        if (address, transport, port) not in self._open:
            self._open[address, transport, port] = await start()

    def _starter(
        self, address: str, what: str, owner: Site | Resolver
    ) -> tuple[int, Callable[[], Awaitable[Callable[[], None]]]]:
        http, https = (owner.http_port, owner.https_port) if isinstance(owner, Site) else (0, HTTPS_PORT)
        refuses = isinstance(owner, Site) and owner.behaviour in ("tls-close", "tls-reset")
        return {
            "http": (http, lambda: self._http(address, http, tls=False)),
            "https": (
                https,
                lambda: self._refuse(address, https, owner) if refuses else self._http(address, https, tls=True),
            ),
            "h3": (https, lambda: self._http3(address, https)),
            "udp": (DNS_PORT, lambda: self._dns_udp(address)),
            "tcp": (DNS_PORT, lambda: self._dns_stream(address, DNS_PORT, tls=False)),
            "dot": (DOT_PORT, lambda: self._dns_stream(address, DOT_PORT, tls=True)),
            "doh": (HTTPS_PORT, lambda: self._http(address, HTTPS_PORT, tls=True)),
        }[what]

    async def _http(self, address: str, port: int, *, tls: bool) -> Callable[[], None]:
        return (await self._web.listen(address, port, tls=tls)).close

    async def _http3(self, address: str, port: int) -> Callable[[], None]:
        return (await self._quic.listen(address, port)).close

    async def _refuse(self, address: str, port: int, owner: Site | Resolver) -> Callable[[], None]:
        with_reset = isinstance(owner, Site) and owner.behaviour == "tls-reset"
        handler = partial(refuse_hello, with_reset=with_reset)
        return (await asyncio.start_server(handler, sock=bind(address, port, socket.SOCK_STREAM))).close

    async def _dns_udp(self, address: str) -> Callable[[], None]:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: UdpResolver(self._answerer), sock=bind(address, DNS_PORT, socket.SOCK_DGRAM)
        )
        return transport.close

    async def _dns_stream(self, address: str, port: int, *, tls: bool) -> Callable[[], None]:
        context = self._certificates.context(address, "", DOT_ALPN) if tls else None
        handler = partial(serve_stream, answerer=self._answerer)
        server = await asyncio.start_server(handler, sock=bind(address, port, socket.SOCK_STREAM), ssl=context)
        return server.close
