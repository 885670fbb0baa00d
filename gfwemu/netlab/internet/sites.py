"""What the web sites say: one ASGI application for HTTP/1.1, HTTP/2 and HTTP/3.

Paths of a site that behaves normally (every other path answers like `/`):

    /                 hello from NAME over h2
    /info             JSON: who asked, over what, for which name
    /headers          JSON: the request's headers
    /bytes/N          N bytes
    /slow/N           N bytes, one each 200 ms
    /freeze/N         N bytes of a longer answer, then silence
    /upload           reads the body, answers its length
    /status/N         status N
    /redirect/N       N redirects, then /
    /redirect?to=URL  one redirect to URL
    /loop             a redirect to itself
    /captcha          403 and a challenge page
    /blockpage        451 and the blockpage
    /close /reset     ends the connection, or resets it, instead of answering
    /stall            never answers
    /dns-query        DNS over HTTPS (RFC 8484), at a resolver's addresses

A WebSocket on any path echoes.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import html
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gfwemu.netlab.internet.dns import Answerer
from gfwemu.netlab.internet.names import Names
from gfwemu.netlab.internet.plan import Resolver, Site
from gfwemu.netlab.internet.requests import Connection, Request, host_of

CHUNK = bytes(range(256)) * 256
SLOW_INTERVAL = 0.2
SLOW_BYTES = 50
DNS_MESSAGE = "application/dns-message"
DNS_MESSAGE_LIMIT = 65535

Handler = Callable[[Request], Awaitable[None]]


def while_present(work: Handler) -> Handler:
    """Stop a long answer when the client has gone: sending does not fail then."""

    async def run(request: Request) -> None:
        tasks = [asyncio.ensure_future(work(request)), asyncio.ensure_future(request.gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return run


async def hello(request: Request) -> None:
    await request.answer(f"hello from {request.name} over {request.protocol}\n")


async def info(request: Request) -> None:
    client = request.scope.get("client") or ("", 0)
    facts = {
        "name": request.name,
        "host": request.host,
        "protocol": request.protocol,
        "scheme": request.scope["scheme"],
        "method": request.scope["method"],
        "path": request.scope["path"],
        "client": {"address": client[0], "port": client[1]},
        "server": {"address": request.connection.local},
        "sni": request.connection.sni,
        "tls": request.connection.tls,
        "cipher": request.connection.cipher,
    }
    await request.answer(json.dumps(facts, indent=2) + "\n", media="application/json")


async def headers(request: Request) -> None:
    fields = [[key.decode("latin-1"), value.decode("latin-1")] for key, value in request.scope["headers"]]
    await request.answer(json.dumps(fields, indent=2) + "\n", media="application/json")


@while_present
async def send_bytes(request: Request) -> None:
    left = request.number(0)
    await request.start(200, "application/octet-stream", {}, left)
    while left > len(CHUNK):
        await request.body(CHUNK, more=True)
        await asyncio.sleep(0)
        left -= len(CHUNK)
    await request.body(CHUNK[:left], more=False)


@while_present
async def slow(request: Request) -> None:
    count = request.number(SLOW_BYTES)
    await request.start(200, "text/plain", {}, count)
    for _ in range(count):
        await asyncio.sleep(SLOW_INTERVAL)
        await request.body(b".", more=True)
    await request.body(b"", more=False)


async def freeze(request: Request) -> None:
    count = request.number(SLOW_BYTES)
    await request.start(200, "application/octet-stream", {}, count + 1)
    await request.body(bytes(count), more=True)
    await request.gone()


async def upload(request: Request) -> None:
    length = 0
    while True:
        message = await request.receive()
        if message["type"] != "http.request":
            return
        length += len(message["body"])
        if not message.get("more_body", False):
            break
    await request.answer(f"{length}\n")


async def status(request: Request) -> None:
    site = request.owner
    code = request.number(site.status if isinstance(site, Site) and site.behaviour == "status" else 200)
    if not 200 <= code <= 599:
        await request.answer("a status is a number from 200 to 599\n", status=400)
    elif code in (204, 304):
        await request.start(code, "text/plain", {}, None)
        await request.body(b"", more=False)
    else:
        await request.answer(f"status {code}\n", status=code)


async def redirect(request: Request) -> None:
    target = request.query("to")
    if isinstance(request.owner, Site) and request.owner.behaviour == "redirect":
        target = request.owner.location
    elif not target:
        left = request.number(1)
        target = f"/redirect/{left - 1}" if left > 1 else "/"
    await request.answer(f"see {target}\n", status=302, location=target)


async def loop(request: Request) -> None:
    await request.answer("see /loop\n", status=302, location="/loop")


async def captcha(request: Request) -> None:
    page = (
        "<!DOCTYPE html><title>Just a moment...</title><h1>Please confirm that you are human</h1>"
        '<form method="post"><input name="captcha-answer"></form>\n'
    )
    await request.answer(page, status=403, media="text/html; charset=utf-8")


async def blockpage(request: Request) -> None:
    page = (
        "<!DOCTYPE html><title>Access denied</title><h1>451 Unavailable For Legal Reasons</h1>"
        f"<p>Access to {html.escape(request.host or request.name)} has been blocked.</p>\n"
    )
    await request.answer(page, status=451, media="text/html; charset=utf-8")


async def close(request: Request) -> None:
    request.connection.cut()
    await request.gone()


async def reset(request: Request) -> None:
    request.connection.reset()
    await request.gone()


async def stall(request: Request) -> None:
    await request.gone()


async def dns_query(request: Request) -> None:
    method = request.scope["method"]
    query = await request.read(DNS_MESSAGE_LIMIT)
    if not (isinstance(request.owner, Resolver) and "doh" in request.owner.listen):
        await request.answer("no resolver lives here\n", status=404)
        return
    if method == "GET":
        text = request.query("dns")
        try:
            query = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except (binascii.Error, ValueError):
            query = None
    elif method == "POST":
        media = next((value for key, value in request.scope["headers"] if key == b"content-type"), b"").decode(
            "latin-1"
        )
        if media.partition(";")[0].strip() != DNS_MESSAGE:
            await request.answer(f"send {DNS_MESSAGE}\n", status=415)
            return
    else:
        await request.answer("ask with GET or POST\n", status=405)
        return
    answer = request.answerer.answer(query, udp=False) if query else None
    if answer is None:
        await request.answer("this is no DNS query\n", status=400)
    else:
        await request.answer(answer, media=DNS_MESSAGE)


PATHS: dict[str, Handler] = {
    "info": info,
    "headers": headers,
    "bytes": send_bytes,
    "slow": slow,
    "freeze": freeze,
    "upload": upload,
    "status": status,
    "redirect": redirect,
    "loop": loop,
    "captcha": captcha,
    "blockpage": blockpage,
    "close": close,
    "reset": reset,
    "stall": stall,
    "dns-query": dns_query,
}

BEHAVIOURS: dict[str, Handler] = {
    "blockpage": blockpage,
    "captcha": captcha,
    "redirect": redirect,
    "status": status,
    "close": close,
    "reset": reset,
    "stall": stall,
    "slow": slow,
}


# Bodies are read before anything is answered: hypercorn loses an HTTP/2 connection when data follows the answer.
READERS = frozenset({upload, dns_query})


@dataclass(frozen=True, slots=True)
class Sites:
    """The application. `respond` is ASGI with the connection in front."""

    names: Names
    answerer: Answerer

    async def respond(self, connection: Connection, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await echo_websocket(receive, send)
            return
        host = host_of(scope["headers"])
        owner = self.names.resident(connection.local, host)
        request = Request(connection, self.names, self.answerer, scope, receive, send, host, owner)
        first = str(scope["path"]).strip("/").partition("/")[0]
        handler = PATHS.get(first, hello)
        if isinstance(owner, Site):
            handler = BEHAVIOURS.get(owner.behaviour, handler)
        if handler not in READERS:
            await request.read(0)
        await handler(request)


async def echo_websocket(receive: Any, send: Any) -> None:
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message.get("text") is not None:
            await send({"type": "websocket.send", "text": message["text"]})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})
