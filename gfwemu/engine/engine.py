"""The engine: events in, commands out. No socket, clock, file or thread."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gfwemu.engine.commands import Command, Hold, Inject, Report, SetTimer, SetVerdict
from gfwemu.engine.events import Event, PacketArrived, RulesReplaced, Stopping, TimerFired
from gfwemu.engine.flows import FlowKeeper
from gfwemu.engine.judge import Judge, flow_ref
from gfwemu.engine.records import FlowEnded, PacketDropped
from gfwemu.engine.timers import Task, Timers
from gfwemu.engine.treatments import RedirectFlow
from gfwemu.engine.work import Decision, Work
from gfwemu.flow.flow import Flow
from gfwemu.flow.fragments import Fragments, Refused
from gfwemu.model import Direction, Side, Transport, Verdict
from gfwemu.rules.compiled import RuleSet
from gfwemu.wire.build import build_ip
from gfwemu.wire.packet import Malformed, Packet
from gfwemu.wire.parse import parse_packet


class Engine:
    """One censor. `time_scale`: its clock runs that many times faster than the real one.

    The scaled clock drives residual blocks, schedules and lifetimes; delays of injected packets and rates stay real.
    With `offload` False no command asks the kernel to answer for a flow.
    """

    def __init__(
        self, rules: RuleSet, *, time_scale: float = 1.0, seed: int | None = None, offload: bool = True
    ) -> None:
        self._rules = rules
        self._time_scale = time_scale
        self._epoch: float | None = None
        self._offload = offload
        self._timers = Timers()
        self._timer_wish: float | None = None
        self._held: dict[int, tuple[bytes | None, str]] = {}
        self._flows = FlowKeeper(rules)
        self._fragments = Fragments(rules.options.fragments)
        rng = random.Random(rules.seed if seed is None else seed)
        self._judge = Judge(rules, rng, lambda seconds: seconds / time_scale)

    @property
    def rules(self) -> RuleSet:
        return self._rules

    @property
    def flow_count(self) -> int:
        return len(self._flows.table)

    @property
    def held_count(self) -> int:
        return len(self._held)

    def handle(self, event: Event) -> list[Command]:
        """Takes one event; returns what to do about it, in order."""
        if self._epoch is None:
            self._epoch = event.now
        match event:
            case PacketArrived():
                commands = self._packet_arrived(event)
            case TimerFired():
                self._timer_wish = None
                commands = self._timers.run(event.now)
                commands.extend(self._sweep(event.now))
            case RulesReplaced():
                commands = []
                self._rules = event.rules
                self._judge.load(event.rules)
                self._flows.load(event.rules)
                self._fragments.options = event.rules.options.fragments
                self._await_expiry()
            case Stopping():
                commands = self._stop(event.now)
        return self._wish_timer(commands)

    def _censor_time(self, now: float) -> float:
        assert self._epoch is not None
        return self._epoch + (now - self._epoch) * self._time_scale

    def _real_time(self, censor_time: float) -> float:
        assert self._epoch is not None
        return self._epoch + (censor_time - self._epoch) / self._time_scale

    # -- packets ------------------------------------------------------------------------------------------------

    def _packet_arrived(self, event: PacketArrived) -> list[Command]:
        commands = self._timers.run(event.now)
        packet = parse_packet(event.data)
        if isinstance(packet, Malformed):
            commands.append(SetVerdict(event.packet_id, Verdict.ACCEPT))
        elif packet.is_fragment:
            commands.extend(self._fragment(event, packet))
        else:
            told: list[Command] = []
            work = self._decide(event.packet_id, packet, event.now, event.came_from, told)
            commands.extend(told)
            commands.extend(self._perform(work))
        commands.extend(self._sweep(event.now))
        return commands

    def _fragment(self, event: PacketArrived, packet: Packet) -> list[Command]:
        """Fragments wait until their datagram is whole; then all of them share its verdict."""
        if not self._rules.options.fragments.reassemble:
            return [SetVerdict(event.packet_id, Verdict.ACCEPT)]
        waiting = len(self._fragments)
        answer = self._fragments.add(event.packet_id, packet, event.now)
        self._held[event.packet_id] = (None, "")
        commands: list[Command] = [Hold(event.packet_id, "fragment waits for its datagram")]
        if answer is None:
            if waiting == 0:
                self._await_expiry()
            return commands + self._release(self._fragments.overflow(), Verdict.DROP, "too many fragments wait")
        if isinstance(answer, Refused):
            return commands + self._release(answer.packet_ids, Verdict.DROP, "fragments break the policy")
        first = answer.first
        whole = parse_packet(build_ip(first.src, first.dst, first.proto, answer.payload, ttl=first.ttl, tos=first.tos))
        if isinstance(whole, Malformed):
            return commands + self._release(answer.packet_ids, Verdict.ACCEPT, "")
        work = self._decide(event.packet_id, whole, event.now, event.came_from, commands)
        verdict = Verdict.DROP if work.data is not None else work.verdict
        if verdict is Verdict.ACCEPT and work.release_at > event.now:
            ids, reason = answer.packet_ids, work.reason
            self._timers.set(work.release_at, lambda _: self._release(ids, Verdict.ACCEPT, reason))
        else:
            commands.extend(self._release(answer.packet_ids, verdict, work.reason))
        return commands + self._injections(work)

    def _decide(self, packet_id: int, packet: Packet, now: float, came_from: Side | None, told: list[Command]) -> Work:
        """What is to happen with one whole packet; what there is to tell goes to `told`."""
        censor_now = self._censor_time(now)
        flow, direction, ended = self._flows.find(packet, censor_now, came_from)
        told.extend(self._ended(gone, now, reason) for gone, reason in ended)
        flow.count(direction, len(packet.raw), bool(packet.payload), censor_now)
        work = Work(packet_id, packet, flow, direction, now, release_at=now)
        decision = self._judge.judge(work, censor_now, told)
        if isinstance(decision.terminal, RedirectFlow) and flow.alias is None:
            self._flows.table.add_alias(flow, decision.terminal.replaced(flow.tuple))
        self._flows.advance(flow, packet, direction)
        if work.verdict is Verdict.DROP:
            self._note_drop(work, decision, told)
        return work

    # -- commands -----------------------------------------------------------------------------------------------

    def _perform(self, work: Work) -> list[Command]:
        decision: Decision = work.flow.decision
        if work.verdict is Verdict.ACCEPT and work.release_at > work.now:
            return self._hold(work) + self._injections(work)
        offload = False
        if self._offload and work.data is None and decision.terminal is not None and not decision.modifiers:
            offload = decision.terminal.offload(work.now) is work.verdict
            decision.offloaded = decision.offloaded or offload
        verdict = SetVerdict(work.packet_id, work.verdict, work.data, offload, work.reason)
        return [verdict, *self._injections(work)]

    def _injections(self, work: Work) -> list[Command]:
        commands: list[Command] = []
        for forged, rule in work.forged:
            work.flow.injected += 1
            end = "server" if forged.towards is Direction.TO_SERVER else "client"
            inject = Inject(forged.data, f"{rule.name}: injected towards the {end}")
            if forged.delay <= 0:
                commands.append(inject)
            else:
                self._timers.set(work.now + forged.delay, _later(inject))
        return commands

    def _hold(self, work: Work) -> list[Command]:
        if len(self._held) >= self._rules.options.hold_packets:
            return [SetVerdict(work.packet_id, Verdict.DROP, reason=f"{work.reason}: too many packets wait")]
        packet_id = work.packet_id
        self._held[packet_id] = (work.data, work.reason)
        self._timers.set(work.release_at, lambda _: self._release((packet_id,), Verdict.ACCEPT, None))
        return [Hold(packet_id, work.reason)]

    def _release(self, packet_ids: Sequence[int], verdict: Verdict, reason: str | None) -> list[Command]:
        """The verdict of held packets; those that have theirs already are left out."""
        commands: list[Command] = []
        for packet_id in packet_ids:
            held = self._held.pop(packet_id, None)
            if held is not None:
                note = held[1] if reason is None else reason
                commands.append(SetVerdict(packet_id, verdict, held[0], reason=note))
        return commands

    def _wish_timer(self, commands: list[Command]) -> list[Command]:
        wish = self._timers.next()
        if wish != self._timer_wish:
            self._timer_wish = wish
            commands.append(SetTimer(wish))
        return commands

    # -- endings ------------------------------------------------------------------------------------------------

    def _sweep(self, now: float) -> list[Command]:
        return [self._ended(flow, now, "timeout") for flow in self._flows.table.sweep(self._censor_time(now))]

    def _expire_fragments(self, now: float) -> list[Command]:
        commands = self._release(self._fragments.expire(now), Verdict.DROP, "fragments waited too long")
        self._await_expiry()
        return commands

    def _await_expiry(self) -> None:
        expiry = self._fragments.next_expiry()
        if expiry is not None:
            self._timers.set(expiry, self._expire_fragments)

    def _stop(self, now: float) -> list[Command]:
        """Nothing stays behind: held packets go, flows get their last record."""
        self._fragments.drain()
        commands = self._release(tuple(self._held), Verdict.ACCEPT, None)
        for flow in tuple(self._flows.table):
            self._flows.table.remove(flow)
            commands.append(self._ended(flow, now, "stopping"))
        return commands

    def _note_drop(self, work: Work, decision: Decision, told: list[Command]) -> None:
        work.flow.dropped += 1
        if work.direction in decision.told_drops or work.dropped_by is None:
            return
        decision.told_drops.add(work.direction)
        packet = work.packet
        is_tcp = packet.proto == Transport.TCP
        record = PacketDropped(
            time=work.now,
            flow=flow_ref(work.flow),
            rule=work.dropped_by.name,
            direction=work.direction,
            length=len(packet.raw),
            ttl=packet.ttl,
            reason=work.reason,
            tcp_seq=packet.seq if is_tcp else None,
            tcp_ack=packet.ack if is_tcp else None,
            tcp_flags=packet.flags if is_tcp else None,
        )
        told.append(Report(record))

    def _ended(self, flow: Flow, now: float, reason: str) -> Report:
        record = FlowEnded(
            time=now,
            flow=flow_ref(flow),
            start=self._real_time(flow.start),
            last=self._real_time(flow.last),
            packets_to_server=flow.packets[0],
            packets_to_client=flow.packets[1],
            bytes_to_server=flow.bytes[0],
            bytes_to_client=flow.bytes[1],
            dropped=flow.dropped,
            injected=flow.injected,
            state=flow.state.told_as,
            reason=reason,
            rules=tuple(dict.fromkeys(flow.rules)),
            facts=dict(flow.facts),
        )
        return Report(record)


def _later(command: Inject) -> Task:
    return lambda _: [command]
