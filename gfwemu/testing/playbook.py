"""A censor on paper: packets in, verdicts out, in no time. For unit tests of rules and of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gfwemu.engine.commands import Command, Hold, Inject, Report, SetTimer, SetVerdict, Watch
from gfwemu.engine.events import Event, PacketArrived, RulesReplaced, Stopping, TimerFired
from gfwemu.engine.records import Record
from gfwemu.engine.series import open_engine, widened
from gfwemu.model import FiveTuple, Side, Transport, Verdict, address_bytes
from gfwemu.rules.compiled import RuleSet
from gfwemu.wire.build import build_tcp, build_udp
from gfwemu.wire.packet import Malformed, Packet, TcpFlags
from gfwemu.wire.parse import parse_packet


@dataclass(slots=True)
class Reaction:
    """What came of one event: the packet's own verdict (None while it is held), and everything else."""

    packet_id: int | None = None
    commands: list[Command] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict | None:
        own = self.own
        return None if own is None else own.verdict

    @property
    def own(self) -> SetVerdict | None:
        """The SetVerdict of the packet that was sent, None while it is held."""
        for command in self.commands:
            if isinstance(command, SetVerdict) and command.packet_id == self.packet_id:
                return command
        return None

    @property
    def held(self) -> bool:
        return self.verdict is None and any(isinstance(command, Hold) for command in self.commands)

    @property
    def injected(self) -> list[Packet]:
        return [_parsed(command.data) for command in self.commands if isinstance(command, Inject)]

    @property
    def records(self) -> list[Record]:
        return [command.record for command in self.commands if isinstance(command, Report)]

    @property
    def watches(self) -> list[Watch]:
        return [command for command in self.commands if isinstance(command, Watch)]

    def told(self, kind: type[Record]) -> list[Record]:
        return [record for record in self.records if isinstance(record, kind)]


class BrokenLawError(AssertionError):
    """The engine gave a packet no verdict or more than one, or a verdict to a packet that is not there."""


class Playbook:
    """Runs an engine and holds it to its law: every packet gets exactly one verdict, now or after a Hold."""

    def __init__(
        self,
        rules: RuleSet,
        *,
        time_scale: float = 1.0,
        start_time: float | None = None,
        seed: int = 0,
        start: float = 1_000_000.0,
        offload: bool = True,
    ) -> None:
        self.engine = open_engine(rules, time_scale=time_scale, start_time=start_time, seed=seed, offload=offload)
        self.now = start
        self.waiting: set[int] = set()
        self.timer: float | None = None
        self._next_id = 1

    def packet(self, data: bytes, *, after: float = 0.0, came_from: Side | None = None) -> Reaction:
        """Sends one IP packet, `after` seconds after the event before it; due timers fire in between."""
        fired = self.wait(after)
        packet_id = self._next_id
        self._next_id += 1
        self.waiting.add(packet_id)
        reaction = self.send(PacketArrived(packet_id, data, self.now, came_from))
        reaction.packet_id = packet_id
        reaction.commands[:0] = fired.commands
        if packet_id in self.waiting and not any(
            isinstance(command, Hold) and command.packet_id == packet_id for command in reaction.commands
        ):
            raise BrokenLawError(f"packet {packet_id} got neither a verdict nor a hold")
        return reaction

    def wait(self, seconds: float) -> Reaction:
        """Lets time pass; timers fire when they asked to."""
        end = self.now + seconds
        reaction = Reaction()
        while self.timer is not None and self.timer <= end:
            self.now, self.timer = max(self.now, self.timer), None
            reaction.commands.extend(self.send(TimerFired(self.now)).commands)
        self.now = end
        return reaction

    def replace_rules(self, rules: RuleSet) -> Reaction:
        self.engine = widened(self.engine, rules)
        return self.send(RulesReplaced(rules, self.now))

    def stop(self) -> Reaction:
        """Ends the engine; afterwards nothing may wait."""
        reaction = self.send(Stopping(self.now))
        if self.waiting:
            raise BrokenLawError(f"packets {sorted(self.waiting)} never got a verdict")
        return reaction

    def send(self, event: Event) -> Reaction:
        commands = self.engine.handle(event)
        for command in commands:
            if isinstance(command, SetVerdict):
                if command.packet_id not in self.waiting:
                    raise BrokenLawError(f"packet {command.packet_id} is unknown or has its verdict already")
                self.waiting.discard(command.packet_id)
            elif isinstance(command, SetTimer):
                self.timer = command.at
        return Reaction(None, commands)


class TcpTalk:
    """The two ends of one TCP connection: makes the next packet of either."""

    def __init__(
        self, client: str = "192.0.2.10", server: str = "203.0.113.80", *, port: int = 443, client_port: int = 40000
    ) -> None:
        self.tuple = FiveTuple(Transport.TCP, address_bytes(client), client_port, address_bytes(server), port)
        self.client_seq = 1_000
        self.server_seq = 500_000

    def syn(self) -> bytes:
        packet = build_tcp(self.tuple, seq=self.client_seq, ack=0, flags=TcpFlags.SYN, window=64240)
        self.client_seq += 1
        return packet

    def syn_ack(self) -> bytes:
        flags = TcpFlags.SYN | TcpFlags.ACK
        packet = build_tcp(self.tuple.reversed(), seq=self.server_seq, ack=self.client_seq, flags=flags, window=65160)
        self.server_seq += 1
        return packet

    def to_server(self, payload: bytes = b"", *, flags: int | None = None, seq: int | None = None) -> bytes:
        """A client segment; without `seq` it follows on the one before."""
        number = self.client_seq if seq is None else seq
        if seq is None:
            self.client_seq += len(payload)
        return build_tcp(
            self.tuple, seq=number, ack=self.server_seq, flags=_flags(flags, payload), window=64240, payload=payload
        )

    def to_client(self, payload: bytes = b"", *, flags: int | None = None) -> bytes:
        packet = build_tcp(
            self.tuple.reversed(),
            seq=self.server_seq,
            ack=self.client_seq,
            flags=_flags(flags, payload),
            window=65160,
            payload=payload,
        )
        self.server_seq += len(payload)
        return packet

    def handshake(self) -> Sequence[bytes]:
        return (self.syn(), self.syn_ack(), self.to_server())


def _flags(flags: int | None, payload: bytes) -> int:
    if flags is not None:
        return flags
    return int(TcpFlags.PSH | TcpFlags.ACK) if payload else int(TcpFlags.ACK)


class UdpTalk:
    """The two ends of one UDP exchange."""

    def __init__(
        self, client: str = "192.0.2.10", server: str = "203.0.113.53", *, port: int = 53, client_port: int = 50000
    ) -> None:
        self.tuple = FiveTuple(Transport.UDP, address_bytes(client), client_port, address_bytes(server), port)

    def to_server(self, payload: bytes, *, ttl: int = 64) -> bytes:
        return build_udp(self.tuple, payload, ttl=ttl)

    def to_client(self, payload: bytes, *, ttl: int = 64) -> bytes:
        return build_udp(self.tuple.reversed(), payload, ttl=ttl)


def _parsed(data: bytes) -> Packet:
    packet = parse_packet(data)
    assert not isinstance(packet, Malformed)
    return packet
