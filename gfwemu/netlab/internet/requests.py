"""One HTTP request of any version, and the ways to answer it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs

from gfwemu.netlab.internet.dns import Answerer
from gfwemu.netlab.internet.names import Names
from gfwemu.netlab.internet.plan import Resolver, Site

# How long a client may remember that HTTP/3 is offered; labs are short.
ALT_SVC_SECONDS = 60
PROTOCOLS = {"1.0": "http/1.0", "1.1": "http/1.1", "2": "h2", "3": "h3"}


@dataclass(frozen=True, slots=True)
class Connection:
    """What the server knows about the connection below a request. Texts are empty where there is none of it."""

    local: str
    cut: Callable[[], None]
    reset: Callable[[], None]
    sni: str = ""
    tls: str = ""
    cipher: str = ""


@dataclass(slots=True)
class Request:
    """One request and the ways to answer it."""

    connection: Connection
    names: Names
    answerer: Answerer
    scope: dict[str, Any]
    receive: Callable[[], Awaitable[dict[str, Any]]]
    send: Callable[[dict[str, Any]], Awaitable[None]]
    host: str
    owner: Site | Resolver | None

    @property
    def name(self) -> str:
        return (self.names.known_as(self.owner, self.host) if self.owner else "") or self.connection.local

    @property
    def protocol(self) -> str:
        version = str(self.scope["http_version"])
        return PROTOCOLS.get(version, version)

    @property
    def argument(self) -> str:
        """What stands behind the first part of the path: `5` in `/bytes/5`."""
        return str(self.scope["path"]).strip("/").partition("/")[2]

    def number(self, default: int) -> int:
        return int(self.argument) if self.argument.isascii() and self.argument.isdigit() else default

    def query(self, key: str) -> str:
        return parse_qs(str(self.scope["query_string"], "latin-1")).get(key, [""])[0]

    async def start(self, status: int, media: str, headers: dict[str, str], length: int | None) -> None:
        fields = {"content-type": media, "server": "gfwemu-lab", **headers}
        if length is not None:
            fields["content-length"] = str(length)
        if self.scope["scheme"] == "https" and isinstance(self.owner, Site) and "h3" in self.owner.listen:
            fields["alt-svc"] = f'h3=":{self.owner.https_port}"; ma={ALT_SVC_SECONDS}'
        encoded = [(key.encode(), value.encode("latin-1", "replace")) for key, value in fields.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})

    async def body(self, data: bytes, *, more: bool) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def answer(
        self, content: bytes | str, *, status: int = 200, media: str = "text/plain; charset=utf-8", **headers: str
    ) -> None:
        data = content.encode() if isinstance(content, str) else content
        await self.start(status, media, headers, len(data))
        await self.body(data, more=False)

    async def read(self, limit: int) -> bytes | None:
        """The request's body, read to its end; `None` when it is longer than `limit` bytes or the client left."""
        parts: list[bytes] = []
        length = 0
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                return None
            length += len(message["body"])
            if length <= limit:
                parts.append(message["body"])
            if not message.get("more_body", False):
                return b"".join(parts) if length <= limit else None

    async def gone(self) -> None:
        """Return when the client has given up."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


def host_of(fields: list[tuple[bytes, bytes]]) -> str:
    """The name in the Host header, lower case, without port and trailing dot; empty when missing or an address."""
    text = next((value for key, value in fields if key in (b"host", b":authority")), b"").decode("latin-1").lower()
    if text.startswith("["):
        return ""
    name = text.partition(":")[0].rstrip(".")
    try:
        ip_address(name)
    except ValueError:
        return name
    return ""
