"""Forged packets: what each kind of injector puts on the wire for one trigger."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from http import HTTPStatus
from typing import Literal

from gfwemu.engine.dice import Dice
from gfwemu.model import Direction, FiveTuple, Transport, record
from gfwemu.rules.actions import Blockpage, Ends, Injector, Redirect, TlsAlert
from gfwemu.rules.quantities import Rising, Varied
from gfwemu.wire.build import build_tcp
from gfwemu.wire.packet import Packet, TcpFlags

SEGMENT_BYTES = 1200
"""Payload of one forged segment at most: fits any link of an IPv6 network (MTU 1280, RFC 8200 section 5)."""

_MODULUS = 1 << 32

# A member of an enumeration is slow to reach and to compute with.
_TCP = int(Transport.TCP)
_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
_FIN, _SYN, _RST = int(TcpFlags.FIN), int(TcpFlags.SYN), int(TcpFlags.RST)
_PSH, _ACK = int(TcpFlags.PSH), int(TcpFlags.ACK)


@record
class Forged:
    """One packet to send, `delay` seconds after the trigger, towards one end."""

    data: bytes
    delay: float
    towards: Direction


HeaderName = Literal["ttl", "window", "ip_id"]
_MASKS: dict[HeaderName, int] = {"ttl": 0xFF, "window": 0xFFFF, "ip_id": 0xFFFF}


class InjectorState:
    """What injectors remember between triggers: counters of `increment` fields, the next answer of a pool."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.rng = dice.rng
        self._counters: dict[tuple[int, str], int] = {}
        self._fixed: dict[int, tuple[Injector, dict[HeaderName, int]]] = {}

    def burst(self, injector: Injector, trigger: Packet) -> Burst:
        """The headers of the packets that the injector sends at one trigger towards one end."""
        return Burst(self, injector, trigger)

    def fixed(self, injector: Injector) -> dict[HeaderName, int]:
        """The header fields that are the same in all packets of the injector."""
        found = self._fixed.get(id(injector))
        if found is None:
            # The injector beside them, so that no other gets its identity.
            found = self._fixed[id(injector)] = injector, _fixed_fields(injector)
        return found[1]

    def next_of(self, owner: int, name: str, start: int) -> int:
        """Counts up from `start`, one for each call."""
        key = (owner, name)
        value = self._counters.get(key, start)
        self._counters[key] = value + 1
        return value


def _fixed_fields(injector: Injector) -> dict[HeaderName, int]:
    settings = {name: getattr(injector, name) for name in _MASKS}
    return {
        name: round(setting.points[0][1]) & _MASKS[name]
        for name, setting in settings.items()
        if isinstance(setting, Varied) and len(setting.points) == 1 and not setting.choices
    }


class Burst:
    """Header fields of an injector's packets, one packet after the other."""

    def __init__(self, state: InjectorState, injector: Injector, trigger: Packet) -> None:
        self._state = state
        self._injector = injector
        self._trigger = trigger
        self._fixed = state.fixed(injector)
        self._rising: dict[str, int] = {}

    @property
    def varies(self) -> bool:
        """Whether a repeated packet differs from the one before."""
        injector = self._injector
        return any(isinstance(getattr(injector, name), Rising) for name in _MASKS)

    def header(self, name: HeaderName) -> int:
        """The field of the next packet: drawn, mirrored or counted up."""
        fixed = self._fixed.get(name)
        if fixed is not None:
            return fixed
        setting, rng, mask = getattr(self._injector, name), self._state.rng, _MASKS[name]
        if setting is None:
            return rng.randint(0, mask)
        if setting == "mirror":
            return int(getattr(self._trigger, name)) & mask
        if setting == "increment":
            count = self._state.next_of(id(self._injector), name, rng.randint(0, mask))
        elif isinstance(setting, Rising):
            count = self._rising[name] if name in self._rising else setting.increment_from.sample_int(rng)
            self._rising[name] = count + 1
            return count & mask
        else:
            return int(setting.sample_int(rng)) & mask
        # No router sends a packet with a TTL of 0 (RFC 791 section 3.2).
        return 1 + count % mask if name == "ttl" else count & mask


@record
class Trigger:
    """The packet that set a rule off, seen from its flow. `passed`: it went on to its destination.

    expected: the sequence number that the destination wants next, as the censor's stream has it. It differs from what
    the packet says where segments are lost, doubled or out of order. None: only the packet is known. flow_id and
    censor_now: for what depends on the flow, and on the hour of the censor's clock.
    """

    packet: Packet
    flow: FiveTuple
    direction: Direction
    passed: bool
    expected: int | None = None
    flow_id: int = 0
    censor_now: float = 0.0

    @property
    def answerable(self) -> bool:
        """Whether anything may be forged in answer: not to a reset (RFC 9293 section 3.5.2), nor to a fragment without
        TCP header."""
        packet = self.packet
        return packet.proto == _TCP and not packet.flags & _RST and not packet.fragment_offset

    @property
    def sequence_length(self) -> int:
        """What the packet occupies in sequence space: its payload, and one each for SYN and FIN."""
        flags = self.packet.flags
        return len(self.packet.payload) + (flags & _SYN != 0) + (flags & _FIN != 0)

    def numbers(self, towards: Direction) -> tuple[int, int]:
        """Sequence and acknowledgement numbers that the end which gets the forged packet expects.

        Back to the sender: sequence is what the trigger acknowledges. Onward: sequence is what the destination wants
        next, else the trigger's own, past its payload where it passed.
        """
        packet = self.packet
        after = (packet.seq + self.sequence_length) % _MODULUS
        ack = packet.ack if packet.flags & _ACK else 0
        if towards is not self.direction:
            return ack, after
        seq = self.expected
        if seq is None:
            seq = after if self.passed else packet.seq
        elif self.passed and packet.flags & _FIN and (seq + 1) % _MODULUS == after:
            seq = after
        return seq, ack


_WAYS: dict[Ends, tuple[Direction, ...]] = {
    "both": (_TO_CLIENT, _TO_SERVER),
    "client": (_TO_CLIENT,),
    "server": (_TO_SERVER,),
}


@lru_cache
def _flag_bits(text: str) -> int:
    return sum(1 << "FSRPAUEC".index(letter) for letter in set(text))


def _segment(
    burst: Burst,
    injector: Injector,
    trigger: Trigger,
    towards: Direction,
    flags: int,
    payload: bytes,
    *,
    seq_offset: int = 0,
    seq: int | None = None,
) -> bytes:
    """seq: instead of the correct sequence number."""
    right, ack = trigger.numbers(towards)
    return build_tcp(
        trigger.flow if towards is _TO_SERVER else trigger.flow.reversed(),
        seq=((right if seq is None else seq) + seq_offset) % _MODULUS,
        ack=ack if flags & _ACK else 0,
        flags=flags,
        window=burst.header("window"),
        payload=payload,
        ttl=burst.header("ttl"),
        ip_id=burst.header("ip_id"),
        dont_fragment=injector.df,
    )


def firing(state: InjectorState, injectors: tuple[Injector, ...], trigger: Trigger) -> Iterator[tuple[Injector, float]]:
    """The injectors that act on this trigger, each with its delay."""
    for number, injector in enumerate(injectors):
        odds = injector.probability
        if odds.low >= 1.0 or state.dice.throw(
            odds, trigger.flow, trigger.flow_id, trigger.censor_now, f"{injector.name}/{number}"
        ):
            yield injector, injector.delay.sample(state.rng)


def moment(state: InjectorState, injector: Injector, delay: float) -> float:
    """When the next packet of a burst leaves that begins after `delay`."""
    return delay + injector.jitter.sample(state.rng)


def forge_closes(
    state: InjectorState, injectors: tuple[Injector, ...], trigger: Trigger, towards: Ends, default_flags: str
) -> list[Forged]:
    """Resets or FINs by every injector, `count` copies at each of its sequence offsets. Only TCP can be closed."""
    forged: list[Forged] = []
    if not trigger.answerable:
        return forged
    for injector, delay in firing(state, injectors, trigger):
        flags = _flag_bits(injector.flags or default_flags)
        payload = bytes.fromhex(injector.payload)
        for way in _WAYS[injector.towards or towards]:
            burst = state.burst(injector, trigger.packet)
            for offset in injector.seq_offsets:
                data = _segment(burst, injector, trigger, way, flags, payload, seq_offset=offset)
                for copy in range(injector.count):
                    if copy and burst.varies:
                        data = _segment(burst, injector, trigger, way, flags, payload, seq_offset=offset)
                    forged.append(Forged(data, moment(state, injector, delay), way))
    return forged


def forge_wrong_syn_ack(state: InjectorState, injector: Injector, trigger: Trigger) -> list[Forged]:
    """A SYN/ACK for the client with a sequence number that the server never chose (Wang et al., IMC 2017)."""
    flags = _SYN | _ACK
    burst = state.burst(injector, trigger.packet)
    wrong = state.rng.getrandbits(32)
    data = _segment(burst, injector, trigger, _TO_CLIENT, flags, b"", seq=wrong)
    return [Forged(data, moment(state, injector, injector.delay.sample(state.rng)), _TO_CLIENT)]


def forge_content(
    state: InjectorState, injectors: tuple[Injector, ...], trigger: Trigger, content: bytes
) -> list[Forged]:
    """Data to the client as if from the server, ended by FIN; a reset for the server. Only over TCP.

    An injector with `flags` has these on its last segment, and sends nothing after it but the server's reset.
    """
    forged: list[Forged] = []
    for injector, delay in firing(state, injectors, trigger):
        forged.extend(content_of(state, injector, delay, trigger, content))
    return forged


def content_of(
    state: InjectorState, injector: Injector, delay: float, trigger: Trigger, content: bytes
) -> list[Forged]:
    """What one injector that acts sends of `forge_content`."""
    if not trigger.answerable:
        return []
    push_ack, fin_ack = _PSH | _ACK, _FIN | _ACK
    pieces = [content[start : start + SEGMENT_BYTES] for start in range(0, len(content), SEGMENT_BYTES)]
    segments = [(piece, push_ack) for piece in pieces]
    if injector.flags is None:
        segments.append((b"", fin_ack))
    else:
        segments[-1] = (pieces[-1], _flag_bits(injector.flags))
    burst = state.burst(injector, trigger.packet)
    forged: list[Forged] = []
    offset = 0
    for piece, flags in segments:
        data = _segment(burst, injector, trigger, _TO_CLIENT, flags, piece, seq_offset=offset)
        forged.append(Forged(data, delay, _TO_CLIENT))
        offset += len(piece)
    if (injector.towards or "both") == "both":
        data = _segment(burst, injector, trigger, _TO_SERVER, _RST | _ACK, b"")
        forged.append(Forged(data, delay, _TO_SERVER))
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
