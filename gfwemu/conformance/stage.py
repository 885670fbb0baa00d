"""Where a case plays: two ends, a censor in between, and what passes. In a lab or on paper, behind one door."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gfwemu.conformance.trace import Trace
from gfwemu.model import FiveTuple, Side


@dataclass(frozen=True, slots=True)
class Path:
    """Routers on either side of the censor, which is a router itself; `rtt`: seconds there and back beyond it."""

    inside: int
    outside: int
    rtt: float

    def towards(self, end: Side) -> int:
        """Hops between the censor and that end."""
        return self.inside if end is Side.INSIDE else self.outside

    @property
    def whole(self) -> int:
        """Hops from end to end."""
        return self.inside + 1 + self.outside

    def ttl(self, kind: str, from_side: Side) -> int:
        """`censor`: enough to be seen there and too little for the other end; `before-censor`: never seen."""
        if kind == "before-censor":
            return max(1, self.towards(from_side) // 2)
        return self.towards(from_side) + 1 + max(1, self.towards(from_side.opposite) // 2)


@dataclass(frozen=True, slots=True)
class Ended:
    """A program's end. `exit`: None where it was still running when its time was over."""

    exit: int | None
    output: str
    seconds: float = 0.0


class InconclusiveError(Exception):
    """The case could not be played as written; this says nothing about the censor."""


class Stage(Protocol):
    """One repetition's share of a lab. Times are real seconds; the censor's clock runs `scale` times faster."""

    trace: Trace
    path: Path
    scale: float

    @property
    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None:
        """Lets real seconds pass."""

    def client(self, side: Side, *, ipv6: bool) -> bytes:
        """An address that no kernel owns, and that nobody else has for as long as this stage lasts."""

    def server(self, side: Side, client: bytes, wanted: str) -> bytes:
        """An address where a server answers (`wanted`: see `Connect.server`), never met by that client before."""

    def serve(self, side: Side, address: bytes, port: int, proto: int) -> None:
        """Sees to it that somebody listens there."""

    def emit(self, side: Side, data: bytes) -> None:
        """Sends an IP packet from that end exactly as it is."""

    def received(self, flow: FiveTuple) -> bytes:
        """What the server's program has read. `flow`: client to server."""

    def answer(self, flow: FiveTuple, data: bytes) -> bool:
        """The server's program sends that. False where it has no such connection."""

    async def program(self, argv: list[str], timeout: float) -> Ended:
        """A program on the client, which ends or is ended. `{client}` in it is an address of its own."""
