"""Forged packets: what each kind of injector puts on the wire for one trigger."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from gfwemu.dissect.dns_answer import build_answer
from gfwemu.dissect.dns_message import parse_query
from gfwemu.dissect.reader import MalformedBytes
from gfwemu.model import Direction, FiveTuple, Transport, address_bytes
from gfwemu.rules.actions import Blockpage, Ends, Injector, Poison, Redirect, TlsAlert
from gfwemu.wire.build import build_tcp, build_udp
from gfwemu.wire.packet import Packet, TcpFlags

SEGMENT_BYTES = 1200
"""Payload of one forged segment at most: fits any link of an IPv6 network (MTU 1280, RFC 8200 section 5)."""

_MODULUS = 1 << 32
_RCODES = {"noerror": 0, "servfail": 2, "nxdomain": 3, "refused": 5}


@dataclass(frozen=True, slots=True)
class Forged:
    """One packet to send, `delay` seconds after the trigger, towards one end."""

    data: bytes
    delay: float
    towards: Direction


class InjectorState:
    """What injectors remember between triggers: counters of `increment` fields, the next answer of a pool."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._counters: dict[tuple[int, str], int] = {}

    def header(self, injector: Injector, name: Literal["ttl", "window", "ip_id"], mirrored: int, mask: int) -> int:
        """A header field of the template `injector`: drawn, mirrored or counted up."""
        setting = getattr(injector, name)
        if setting is None:
            return self.rng.randint(0, mask)
        if setting == "mirror":
            return mirrored
        if setting == "increment":
            count = self.next_of(id(injector), name, self.rng.randint(0, mask))
            # No router sends a packet with a TTL of 0 (RFC 791 section 3.2).
            return 1 + count % mask if name == "ttl" else count & mask
        return int(setting.sample_int(self.rng)) & mask

    def next_of(self, owner: int, name: str, start: int) -> int:
        """Counts up from `start`, one for each call."""
        key = (owner, name)
        value = self._counters.get(key, start)
        self._counters[key] = value + 1
        return value


@dataclass(frozen=True, slots=True)
class Trigger:
    """The packet that set a rule off, seen from its flow. `passed`: it went on to its destination.

    expected: the sequence number that the destination wants next, as the censor's stream has it. It differs from what
    the packet says where segments are lost, doubled or out of order. None: only the packet is known.
    """

    packet: Packet
    flow: FiveTuple
    direction: Direction
    passed: bool
    expected: int | None = None

    @property
    def answerable(self) -> bool:
        """Whether anything may be forged in answer: not to a reset (RFC 9293 section 3.5.2), nor to a fragment without
        TCP header."""
        packet = self.packet
        return packet.proto == Transport.TCP and not packet.flags & TcpFlags.RST and not packet.fragment_offset

    @property
    def sequence_length(self) -> int:
        """What the packet occupies in sequence space: its payload, and one each for SYN and FIN."""
        flags = self.packet.flags
        return len(self.packet.payload) + bool(flags & TcpFlags.SYN) + bool(flags & TcpFlags.FIN)

    def numbers(self, towards: Direction) -> tuple[int, int]:
        """Sequence and acknowledgement numbers that the end which gets the forged packet expects.

        Back to the sender: sequence is what the trigger acknowledges. Onward: sequence is what the destination wants
        next, else the trigger's own, past its payload where it passed.
        """
        after = (self.packet.seq + self.sequence_length) % _MODULUS
        has_ack = bool(self.packet.flags & TcpFlags.ACK)
        if towards is not self.direction:
            return (self.packet.ack if has_ack else 0), after
        seq = self.expected
        if seq is None:
            seq = after if self.passed else self.packet.seq
        elif self.passed and self.packet.flags & TcpFlags.FIN and (seq + 1) % _MODULUS == after:
            seq = after
        return seq, (self.packet.ack if has_ack else 0)


def _ways(towards: Ends) -> tuple[Direction, ...]:
    if towards == "both":
        return (Direction.TO_CLIENT, Direction.TO_SERVER)
    return (Direction.TO_CLIENT,) if towards == "client" else (Direction.TO_SERVER,)


def _flag_bits(text: str) -> int:
    return sum(1 << "FSRPAUEC".index(letter) for letter in set(text))


def _segment(
    state: InjectorState,
    injector: Injector,
    trigger: Trigger,
    towards: Direction,
    flags: int,
    payload: bytes,
    *,
    seq_offset: int = 0,
) -> bytes:
    seq, ack = trigger.numbers(towards)
    packet = trigger.packet
    return build_tcp(
        trigger.flow if towards is Direction.TO_SERVER else trigger.flow.reversed(),
        seq=(seq + seq_offset) % _MODULUS,
        ack=ack if flags & TcpFlags.ACK else 0,
        flags=flags,
        window=state.header(injector, "window", packet.window, 0xFFFF),
        payload=payload,
        ttl=state.header(injector, "ttl", packet.ttl, 0xFF),
        ip_id=state.header(injector, "ip_id", packet.ip_id & 0xFFFF, 0xFFFF),
        dont_fragment=injector.df,
    )


def _firing(state: InjectorState, injectors: tuple[Injector, ...]) -> Iterator[tuple[Injector, float]]:
    """The injectors that act on this trigger, each with its delay."""
    for injector in injectors:
        if injector.probability >= 1.0 or state.rng.random() < injector.probability:
            yield injector, injector.delay.sample(state.rng)


def forge_closes(
    state: InjectorState, injectors: tuple[Injector, ...], trigger: Trigger, towards: Ends, default_flags: str
) -> list[Forged]:
    """Resets or FINs by every injector, `count` copies at each of its sequence offsets. Only TCP can be closed."""
    forged: list[Forged] = []
    if not trigger.answerable:
        return forged
    for injector, delay in _firing(state, injectors):
        flags = _flag_bits(injector.flags or default_flags)
        payload = bytes.fromhex(injector.payload)
        for way in _ways(injector.towards or towards):
            for offset in injector.seq_offsets:
                data = _segment(state, injector, trigger, way, flags, payload, seq_offset=offset)
                forged.extend([Forged(data, delay, way)] * injector.count)
    return forged


def forge_content(
    state: InjectorState, injectors: tuple[Injector, ...], trigger: Trigger, content: bytes
) -> list[Forged]:
    """Data to the client as if from the server, ended by FIN; a reset for the server. Only over TCP."""
    forged: list[Forged] = []
    if not trigger.answerable:
        return forged
    push_ack, fin_ack = int(TcpFlags.PSH | TcpFlags.ACK), int(TcpFlags.FIN | TcpFlags.ACK)
    reset_ack = int(TcpFlags.RST | TcpFlags.ACK)
    for injector, delay in _firing(state, injectors):
        offset = 0
        while offset < len(content):
            piece = content[offset : offset + SEGMENT_BYTES]
            data = _segment(state, injector, trigger, Direction.TO_CLIENT, push_ack, piece, seq_offset=offset)
            forged.append(Forged(data, delay, Direction.TO_CLIENT))
            offset += len(piece)
        data = _segment(state, injector, trigger, Direction.TO_CLIENT, fin_ack, b"", seq_offset=offset)
        forged.append(Forged(data, delay, Direction.TO_CLIENT))
        if (injector.towards or "both") == "both":
            data = _segment(state, injector, trigger, Direction.TO_SERVER, reset_ack, b"")
            forged.append(Forged(data, delay, Direction.TO_SERVER))
    return forged


def http_response(action: Blockpage | Redirect) -> bytes:
    """The whole forged response of a block page or a redirect."""
    headers = {"Content-Type": "text/html; charset=utf-8", "Connection": "close"}
    if isinstance(action, Blockpage):
        body = action.body.encode()
        headers.update(action.headers)
    else:
        body = b""
        headers["Location"] = action.location
    headers["Content-Length"] = str(len(body))
    try:
        phrase = HTTPStatus(action.status).phrase
    except ValueError:
        phrase = "Unknown"
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {action.status} {phrase}\r\n{head}\r\n".encode() + body


def tls_alert_record(action: TlsAlert) -> bytes:
    """A fatal alert in a TLS 1.2 record (RFC 8446 sections 5.1 and 6)."""
    return bytes((0x15, 0x03, 0x03, 0x00, 0x02, 0x02, action.description))


def forge_answers(state: InjectorState, action: Poison, trigger: Trigger, question: bytes) -> list[Forged]:
    """Forged answers to the DNS query `question` (without a TCP length), one for each injector that acts."""
    try:
        query = parse_query(question)
    except MalformedBytes:  # a query over TCP, too far into its stream for its bytes to have been kept
        return []
    pool = {1: action.a, 28: action.aaaa}.get(query.qtype_number, ())
    forged: list[Forged] = []
    for injector, delay in _firing(state, action.injectors):
        answer = build_answer(
            query,
            [address_bytes(_draw(state, action, pool))] if pool and action.rcode == "noerror" else [],
            ttl=injector.answer_ttl.sample_int(state.rng) if injector.answer_ttl is not None else action.answer_ttl,
            rcode=_RCODES[action.rcode],
            authoritative=injector.authoritative,
        )
        forged.extend(_answer_packets(state, injector, trigger, answer, delay))
    return forged


def _draw(state: InjectorState, action: Poison, pool: tuple[str, ...]) -> str:
    if action.order == "random":
        return state.rng.choice(pool)
    return pool[state.next_of(id(pool), "answer", 0) % len(pool)]


def _answer_packets(
    state: InjectorState, injector: Injector, trigger: Trigger, answer: bytes, delay: float
) -> list[Forged]:
    if trigger.flow.proto == Transport.TCP:
        return forge_content(state, (injector,), trigger, len(answer).to_bytes(2, "big") + answer)
    packet = trigger.packet
    data = build_udp(
        packet.five_tuple.reversed(),
        answer,
        ttl=state.header(injector, "ttl", packet.ttl, 0xFF),
        ip_id=state.header(injector, "ip_id", packet.ip_id & 0xFFFF, 0xFFFF),
        dont_fragment=injector.df,
    )
    return [Forged(data, delay, trigger.direction.opposite)] * injector.count
