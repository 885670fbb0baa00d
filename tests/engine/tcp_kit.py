"""Conversations with insertion packets in them, as the censor sees them: it knows nothing of TTLs.

A script gives the packets of one connection in order. A number between them is a pause in seconds.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rulekit import client_hello, rule, ruleset

from gfwemu.engine.records import RuleHit
from gfwemu.flow.options import FragmentOptions, TcpOptions
from gfwemu.rules.compiled import RuleSet
from gfwemu.testing.playbook import Playbook, TcpTalk
from gfwemu.wire.build import build_tcp
from gfwemu.wire.packet import TcpFlags

FIN, SYN, RST, PSH, ACK, URG = (
    int(flag) for flag in (TcpFlags.FIN, TcpFlags.SYN, TcpFlags.RST, TcpFlags.PSH, TcpFlags.ACK, TcpFlags.URG)
)
HELLO = client_hello("www.blocked.example")
JUNK = b"\0" * len(HELLO)
"""As long as the request: it takes the request's place in the censor's stream."""

MD5 = bytes((19, 18)) + bytes(16)
FAR = 100_000
"""Further ahead than any window."""

RULES = Path(__file__).parents[2] / "rules" / "tcp"

Step = bytes | float
Script = Callable[["Wire"], Iterable[Step]]


class Wire(TcpTalk):
    """Makes the packets of one connection, right or wrong on purpose."""

    def client(
        self,
        flags: int = PSH | ACK,
        payload: bytes = b"",
        *,
        ahead: int = 0,
        ack: int | None = None,
        options: bytes = b"",
        data_offset: int | None = None,
        checksum: int | None = None,
        stamp: int | None = None,
    ) -> bytes:
        """A segment `ahead` of the client's next byte, which it does not move."""
        if stamp is not None:
            options += bytes((1, 1, 8, 10)) + struct.pack("!II", stamp, 0)
        return build_tcp(
            self.tuple,
            seq=self.client_seq + ahead,
            ack=(self.server_seq if ack is None else ack) if flags & ACK else 0,
            flags=flags,
            window=64240,
            payload=payload,
            options=options,
            data_offset=data_offset,
            checksum=checksum,
        )

    def server(self, flags: int, payload: bytes = b"", *, ack: int | None = None, ahead: int = 0) -> bytes:
        return build_tcp(
            self.tuple.reversed(),
            seq=self.server_seq + ahead,
            ack=(self.client_seq if ack is None else ack) if flags & ACK else 0,
            flags=flags,
            window=65160,
            payload=payload,
        )

    def request(self, *cuts: int) -> Iterator[bytes]:
        """The request, cut there."""
        edges = (0, *cuts, len(HELLO))
        for left, right in itertools.pairwise(edges):
            yield self.to_server(HELLO[left:right])


def after_handshake(*inserted: Callable[[Wire], Step]) -> Script:
    """The handshake, then these, then the request."""

    def script(wire: Wire) -> Iterator[Step]:
        yield from wire.handshake()
        yield from (make(wire) for make in inserted)
        yield from wire.request()

    return script


def in_handshake(*inserted: Callable[[Wire], Step]) -> Script:
    """These between the SYN/ACK and the ACK."""

    def script(wire: Wire) -> Iterator[Step]:
        yield wire.syn()
        yield wire.syn_ack()
        yield from (make(wire) for make in inserted)
        yield wire.to_server()
        yield from wire.request()

    return script


def split(*cuts: int) -> Script:
    def script(wire: Wire) -> Iterator[Step]:
        yield from wire.handshake()
        yield from wire.request(*cuts)

    return script


def plain(wire: Wire) -> Iterator[Step]:
    yield from split()(wire)


def insert(flags: int = PSH | ACK, payload: bytes = JUNK, **wrong: Any) -> Script:
    return after_handshake(lambda wire: wire.client(flags, payload, **wrong))


def another_syn_first(wire: Wire) -> Iterator[Step]:
    yield wire.client(SYN, ahead=5000)
    yield from plain(wire)


def without_syn(wire: Wire) -> Iterator[Step]:
    wire.syn()
    yield wire.syn_ack()
    yield wire.to_server()
    yield from wire.request()


def without_synack(wire: Wire) -> Iterator[Step]:
    yield wire.syn()
    yield from wire.request()


def only_data(wire: Wire) -> Iterator[Step]:
    yield from wire.request()


def begins_at_the_isn(wire: Wire) -> Iterator[Step]:
    yield from wire.handshake()
    yield wire.client(PSH | ACK, b"\0" + HELLO, ahead=-1)


def old_timestamp(flags: int, payload: bytes) -> Script:
    def script(wire: Wire) -> Iterator[Step]:
        yield from wire.handshake()
        yield wire.client(ACK, stamp=1000)
        yield wire.client(flags, payload, stamp=900)
        yield from wire.request()

    return script


def cut_short(wire: Wire) -> Iterator[Step]:
    """Junk in a packet whose IP header promises more."""
    yield from wire.handshake()
    packet = bytearray(wire.client(PSH | ACK, JUNK))
    packet[2:4] = (len(packet) + 40).to_bytes(2, "big")
    yield bytes(packet)
    yield from wire.request()


def above_a_hole(size: int, pause: float = 0.0) -> Script:
    """A segment of that size above a hole of one byte, which is filled after the pause."""

    def script(wire: Wire) -> Iterator[Step]:
        yield from wire.handshake()
        yield wire.client(PSH | ACK, (HELLO[1:] + bytes(2000))[:size], ahead=1)
        yield pause
        yield wire.client(PSH | ACK, HELLO[:1])
        yield wire.client(PSH | ACK, (HELLO + bytes(2000))[1 + size :], ahead=1 + size)

    return script


def overlap(first: int, later: int, *, junk_first: bool) -> Script:
    """Two segments up to byte 200 that begin there, one of them junk, above a hole that is filled last."""

    def script(wire: Wire) -> Iterator[Step]:
        yield from wire.handshake()
        for left, junk in ((first, junk_first), (later, not junk_first)):
            yield wire.client(PSH | ACK, (JUNK if junk else HELLO)[left:200], ahead=left)
        yield wire.client(PSH | ACK, HELLO[: min(first, later)])
        yield wire.client(PSH | ACK, HELLO[200:], ahead=200)

    return script


def caught(rules: RuleSet, script: Script, *, seed: int = 0) -> bool:
    """Whether the rule of the censor fires anywhere in the conversation."""
    book, wire = Playbook(rules, seed=seed), Wire()
    pause = 0.0
    fired = False
    for step in script(wire):
        if isinstance(step, float):
            pause += step
            continue
        fired = bool(book.packet(step, after=pause).told(RuleHit)) or fired
        pause = 0.0
    book.stop()
    return fired


def censor(tcp: TcpOptions, fragments: FragmentOptions | None = None) -> RuleSet:
    return ruleset(rule("alert", {"tls.sni": "www.blocked.example"}), tcp=tcp, fragments=fragments)
