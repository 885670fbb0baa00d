"""What the kernel does under a plan, on paper, in front of an engine; and two ends that talk through it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from kernel_model import KernelModel, _covers

from gfwemu.engine.commands import Command, Report, SetVerdict, Watch
from gfwemu.engine.events import PacketArrived, RulesReplaced
from gfwemu.engine.records import RuleHit
from gfwemu.engine.series import open_engine
from gfwemu.model import TRANSPORT_NAMES, Side, Verdict
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.needs import OTHER
from gfwemu.rules.plan import KernelPlan, KernelRule, compile_plan
from gfwemu.wire.packet import Malformed, Packet
from gfwemu.wire.parse import parse_packet

_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
_SAMPLES = 8
_PORTS = (6, 17)

End = tuple[bytes, int]


@dataclass
class Connection:
    """A line of connection tracking: who sent its first packet, and its mark."""

    opener: End
    mark: str = ""
    answered_until: float = 0.0
    flow_until: float = 0.0
    client_until: float = 0.0


class PlanModel(KernelModel):
    """`plan` None: user space sees everything."""

    def __init__(self, rules: RuleSet, plan: KernelPlan | None) -> None:
        super().__init__(open_engine(rules, seed=4, offload=plan is not None))  # type: ignore[arg-type]
        self.hits: list[tuple[str, str, str]] = []
        self._rules = rules
        self._plan = plan
        self._connections: dict[frozenset[End], Connection] = {}

    def packet(self, number: int, data: bytes, after: float, came_from: Side | None = None) -> None:
        self._pass_time(after)
        packet = self._packets[number] = parse_packet(data)
        verdict = None
        if self._plan is not None and not isinstance(packet, Malformed) and not packet.is_fragment:
            verdict = self._decided(packet, self._plan)
        if verdict is None:
            self.outcome.queued += 1
            self._perform(self._engine.handle(PacketArrived(number, data, self._now, came_from)))
            return
        self.outcome.fates[number] = (verdict, None)
        if verdict is Verdict.ACCEPT and not isinstance(packet, Malformed):
            self._track(packet)

    def replace(self, rules: RuleSet) -> None:
        self._rules = rules
        if self._plan is not None:
            self._plan = compile_plan(rules)
        for connection in self._connections.values():
            connection.mark = ""
        self._perform(self._engine.handle(RulesReplaced(rules, self._now)))

    # -- the chains ---------------------------------------------------------------------------------------------

    def _decided(self, packet: Packet, plan: KernelPlan) -> Verdict | None:
        """The kernel's own verdict, None for the queue."""
        known = self._connections.get(_line(packet))
        to_server = known is None or known.opener == (packet.src, packet.sport)
        key = packet.five_tuple if to_server else packet.five_tuple.reversed()
        if any(end > self._now and _covers(watch, key) for watch, end in self._watches):
            return None
        if known is not None and known.mark in ("accept", "drop"):
            return self._answered(packet, known)
        if known is not None and known.mark == "answers":
            spared = not to_server and known.flow_until > self._now and packet.payload[2:3] >= b"\x80"
            return Verdict.ACCEPT if spared else None
        if known is not None and known.mark == "followed":
            return self._followed(packet, known, to_server, plan)
        for rule in plan.rules:
            if _matches(rule, packet, to_server):
                dropped = rule.verdict != "accept" and rule.direction in (
                    "both",
                    f"to_{'server' if to_server else 'client'}",
                )
                return Verdict.DROP if dropped else Verdict.ACCEPT
        return Verdict.ACCEPT if _unseen(packet, plan) else None

    def _answered(self, packet: Packet, known: Connection) -> Verdict | None:
        if _begins(packet) or known.answered_until <= self._now:
            return None
        return Verdict(known.mark)

    def _followed(self, packet: Packet, known: Connection, to_server: bool, plan: KernelPlan) -> Verdict | None:
        spared, flags = plan.spared, packet.flags
        if flags & (_FIN | _RST) or _begins(packet):
            return None
        if (known.flow_until if not to_server else known.client_until) <= self._now:
            return None
        if flags & _SYN:
            return Verdict.ACCEPT if not to_server and spared.handshake else None
        if packet.payload:
            return Verdict.ACCEPT if not to_server and spared.server_payload else None
        return Verdict.ACCEPT

    def _sample(self, packet: Packet) -> float:
        flows = self._rules.options.flows
        tcp = min(flows.tcp_opening, flows.tcp_established)
        return {6: tcp, 17: flows.udp}.get(packet.proto, flows.other) / _SAMPLES

    def _pass_time(self, seconds: float) -> None:
        super()._pass_time(seconds)
        if seconds > self._rules.options.flows.udp:
            # Connection tracking forgets who began.
            self._connections = {line: one for line, one in self._connections.items() if (b"", 6) in line}

    def _track(self, packet: Packet) -> Connection:
        return self._connections.setdefault(_line(packet), Connection((packet.src, packet.sport)))

    def _perform(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, SetVerdict):
                self.outcome.fates[command.packet_id] = (command.verdict, command.data)
                self._settle(command)
            elif isinstance(command, Report):
                if isinstance(command.record, RuleHit):
                    record = command.record
                    self.hits.append((record.rule, str(record.flow.tuple), record.direction.value))
            elif isinstance(command, Watch):
                self._watches.append((command, self._now + command.seconds))
            else:
                super()._perform([command])

    def _settle(self, command: SetVerdict) -> None:
        packet = self._packets[command.packet_id]
        if isinstance(packet, Malformed) or packet.is_fragment or self._plan is None:
            return
        through = command.verdict is Verdict.ACCEPT
        known = self._connections.get(_line(packet))
        if not (through or command.offload or command.queue_all or known):
            return
        if known is None and not through:
            # The kernel forgets a connection whose first packet it drops.
            return
        known = self._track(packet)
        original = known.opener == (packet.src, packet.sport)
        if command.spare_answers and self._plan.spared.answers:
            assert packet.proto == 17
            assert through
            if command.queue_all:
                known.mark = "answers" if original else ""
            known.flow_until = self._now + self._sample(packet)
        elif command.queue_all:
            known.mark = ""
        elif command.offload:
            known.mark, known.answered_until = command.verdict.value, self._now + self._sample(packet)
        elif not through:
            return
        else:
            if _begins(packet):
                known.mark = "followed" if self._plan.spared.bare and original else ""
                known.client_until = self._now + self._sample(packet) if self._plan.spared.first_ack else 0.0
            elif known.mark != "followed":
                known.mark = ""
            known.flow_until = self._now + self._sample(packet)
            if original and packet.flags & (_SYN | _RST | _ACK) == _ACK:
                known.client_until = known.flow_until


def _line(packet: Packet) -> frozenset[End]:
    return frozenset({(packet.src, packet.sport), (packet.dst, packet.dport), (b"", packet.proto)})


def _begins(packet: Packet) -> bool:
    return packet.proto == 6 and packet.flags & (_FIN | _SYN | _RST | _ACK) == _SYN


def _unseen(packet: Packet, plan: KernelPlan) -> bool:
    name = TRANSPORT_NAMES.get(packet.proto, OTHER)
    for one in plan.unseen:
        if one.transport == name:
            return not any(low <= port <= high for low, high in one.ports for port in (packet.sport, packet.dport))
    return False


def _matches(rule: KernelRule, packet: Packet, to_server: bool) -> bool:
    client, server, port = packet.src, packet.dst, packet.dport
    if not to_server:
        client, server, port = packet.dst, packet.src, packet.sport
    if rule.transports and TRANSPORT_NAMES.get(packet.proto) not in rule.transports:
        return False
    if rule.ports and (packet.proto not in _PORTS or not any(low <= port <= high for low, high in rule.ports)):
        return False
    return _listed(client, rule.clients) and _listed(server, rule.servers)


def _listed(address: bytes, networks: tuple[str, ...]) -> bool:
    return not networks or any(ipaddress.ip_address(address) in ipaddress.ip_network(one) for one in networks)
