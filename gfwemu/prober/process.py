"""The prober's process: requests come as lines of JSON over a socket, and reactions go back the same way."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from typing import Any

from gfwemu.prober.plan import Request, choose, delays, is_lab_address, prepare
from gfwemu.prober.send import NotSentError, Outcome, send

_MOST_REQUESTS = 256
"""Under way at a time; of more, each is given up with a word."""

_MOST_CONNECTIONS = 64
_MOST_SERVERS = 4096
_TRIES = 3
"""Source ports that are tried: the one drawn may be in use."""


class Prober:
    """Answers each request with one line for each probe that was sent; `last` stands in the final probe's."""

    def __init__(self, writer: asyncio.StreamWriter, device: str, hops: int, time_scale: float, seed: int) -> None:
        self._writer = writer
        self._device = device
        self._hops = hops
        self._time_scale = time_scale
        self._seed = seed
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections = asyncio.Semaphore(_MOST_CONNECTIONS)
        self._left: dict[int, int] = {}
        self._answered: dict[tuple[str, int], set[str]] = {}

    def take(self, line: bytes) -> None:
        request = Request.from_line(line)
        if not is_lab_address(request.server):
            self._say(f"no probe goes to {request.server}, which is no documentation address (RFC 5737, RFC 3849)")
        elif len(self._tasks) >= _MOST_REQUESTS:
            self._say(f"no probe goes to {request.server}: {_MOST_REQUESTS} requests are under way")
        else:
            task = asyncio.create_task(self._campaign(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _campaign(self, request: Request) -> None:
        rng = random.Random(f"{self._seed}/{request.request_id}")
        moments = [delay / self._time_scale for delay in delays(request, rng)]
        loop = asyncio.get_running_loop()
        began = loop.time()
        under_way: list[asyncio.Task[None]] = []
        self._left[request.request_id] = len(moments)
        for moment in moments:
            await asyncio.sleep(max(0.0, began + moment - loop.time()))
            under_way.append(asyncio.create_task(self._probe(request, rng)))
        await asyncio.gather(*under_way)
        del self._left[request.request_id]

    async def _probe(self, request: Request, rng: random.Random) -> None:
        try:
            await self._attempt(request, rng)
        finally:
            self._left[request.request_id] -= 1

    async def _attempt(self, request: Request, rng: random.Random) -> None:
        async with self._connections:
            answered = self._answered_by((request.server, request.port))
            kind = choose(request, answered, rng)
            if kind is None:
                return
            for tries in range(_TRIES):
                attempt = prepare(request, kind, rng)
                if attempt is None:
                    self._say(f"the pool of the rule has no address of the family of {request.server}")
                    return
                try:
                    outcome = await send(attempt, request.server, request.port, self._device, self._hops)
                except NotSentError as error:
                    if tries == _TRIES - 1:
                        self._say(f"a probe of {request.server} was not sent: {error}")
                    continue
                if outcome.reaction in ("data", "confirmed"):
                    answered.add(kind.name)
                self._tell(request, kind.name, outcome, attempt.source, attempt.port)
                return

    def _answered_by(self, server: tuple[str, int]) -> set[str]:
        """What the server answered to with data, so far."""
        answered = self._answered.setdefault(server, set())
        if len(self._answered) > _MOST_SERVERS:
            del self._answered[next(iter(self._answered))]
        return answered

    def _tell(self, request: Request, kind: str, outcome: Outcome, source: str, port: int) -> None:
        self._write(
            {
                "request_id": request.request_id,
                "type": kind,
                "reaction": outcome.reaction,
                "seconds": round(outcome.seconds, 6),
                "sent": outcome.sent,
                "prober": source,
                "port": port,
                "last": self._left[request.request_id] == 1,
            }
        )

    def _say(self, text: str) -> None:
        self._write({"say": text})

    def _write(self, told: dict[str, Any]) -> None:
        self._writer.write(json.dumps(told).encode() + b"\n")


async def serve(fd: int, device: str, hops: int, time_scale: float, seed: int) -> None:
    """Until the other end of the socket closes."""
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=fd), limit=1 << 22)
    prober = Prober(writer, device, hops, time_scale, seed)
    while line := await reader.readline():
        prober.take(line)
