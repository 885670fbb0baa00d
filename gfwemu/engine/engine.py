"""The engine: events in, commands out. No socket, clock, file or thread."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from gfwemu.engine.clock import Clock
from gfwemu.engine.commands import Command, Hold, Inject, Report, SetTimer, SetVerdict, Watch
from gfwemu.engine.events import Event, PacketArrived, ProbeFinished, RulesReplaced, Stopping, TimerFired
from gfwemu.engine.fastpath import FastPath
from gfwemu.engine.flows import FlowKeeper
from gfwemu.engine.judge import Judge, flow_ref
from gfwemu.engine.records import FlowEnded, PacketDropped
from gfwemu.engine.timers import Task, Timers
from gfwemu.engine.treatments import FreezeFlow, PassFlow, RedirectFlow
from gfwemu.engine.work import Decision, Work
from gfwemu.flow.flow import Flow
from gfwemu.flow.fragments import Complete, Fragments, Refused
from gfwemu.flow.options import TcpOptions
from gfwemu.flow.readable import packet_filter
from gfwemu.model import Direction, FiveTuple, Transport, Verdict
from gfwemu.rules.compiled import RuleSet
from gfwemu.wire.build import build_ip
from gfwemu.wire.packet import Malformed, Packet
from gfwemu.wire.parse import parse_packet

# A member of an enumeration is slow to reach, and there are many packets.
_ACCEPT = Verdict.ACCEPT
_TCP, _UDP = int(Transport.TCP), int(Transport.UDP)


class Engine:
    """One censor. `time_scale`: its clock runs that many times faster than the real one.

    The scaled clock drives residual blocks, schedules and lifetimes; delays of injected packets and rates stay real.
    With `offload` False no command asks the kernel to answer for a flow. `flow_ids` may be shared by several engines.
    """

    def __init__(
        self,
        rules: RuleSet,
        *,
        time_scale: float = 1.0,
        seed: int | None = None,
        offload: bool = True,
        flow_ids: Iterator[int] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._flow_ids = itertools.count(1) if flow_ids is None else flow_ids
        self._seed = rules.seed if seed is None else seed
        self._rules = rules
        self._clock = Clock(time_scale) if clock is None else clock
        self._offload = offload
        self._timers = Timers()
        self._timer_wish: float | None = None
        self._unsent: list[Command] = []
        self._held: dict[int, tuple[bytes | None, str]] = {}
        self._delayed = 0
        self._fragments_due: float | None = None
        self._flows = FlowKeeper(rules, self._flow_ids)
        self._fragments = Fragments(rules.options.fragments)
        # Boxes of one file must not throw the same dice.
        rng = random.Random(f"{self._seed}/{rules.box}" if rules.box else self._seed)
        self._rng = rng
        self._reads = packet_filter(rules.options.tcp, rng)
        self._judge = Judge(rules, rng, self._clock.real_seconds, self._flow_ids)
        self.fast_path = None if offload else FastPath(self._flows.table, self._judge, self._clock, self._timers)

    @property
    def flow_count(self) -> int:
        return len(self._flows.table)

    @property
    def held_count(self) -> int:
        return len(self._held)

    @property
    def box(self) -> str:
        """The name of the box whose rules these are, "" where it has none."""
        return self._rules.box

    def twin(self, rules: RuleSet) -> Engine:
        """An engine of the same clock for other rules, which never gives a flow the ID of one of this engine's."""
        return Engine(rules, clock=self._clock, seed=self._seed, offload=self._offload, flow_ids=self._flow_ids)

    def knows(self, key: FiveTuple) -> bool:
        """Whether a flow with that five-tuple is remembered."""
        return self._flows.table.find(key) is not None

    def handle(self, event: Event) -> list[Command]:
        """Takes one event; returns what to do about it, in order.

        What a failed call had ordered comes with the next one: a bug over one packet loses no other.
        """
        self._clock.begin(event.now)
        commands = self._unsent
        match event:
            case PacketArrived():
                censor_now = self._clock.censor_time(event.now)
                self._timers.run(event.now, commands)
                self._packet_arrived(event, censor_now, commands)
                if censor_now > self._flows.table.sweep_at:
                    self._sweep(event.now, commands)
            case TimerFired():
                self._timer_wish = None
                self._timers.run(event.now, commands)
                self._sweep(event.now, commands)
            case RulesReplaced():
                self._rules = event.rules
                self._reads = packet_filter(event.rules.options.tcp, self._rng)
                self._judge.load(event.rules)
                self._flows.load(event.rules)
                self._fragments.options = event.rules.options.fragments
                self._await_expiry()
            case ProbeFinished():
                self._judge.probed(event, self._clock.censor_time(event.now), commands)
            case Stopping():
                self._stop(event.now, commands)
        wish = self._timers.next()
        if wish != self._timer_wish:
            self._timer_wish = wish
            commands.append(SetTimer(wish))
        self._unsent = []
        return commands

    # -- packets ------------------------------------------------------------------------------------------------

    def _packet_arrived(self, event: PacketArrived, censor_now: float, commands: list[Command]) -> None:
        packet = event.packet or parse_packet(event.data)
        if isinstance(packet, Malformed):
            commands.append(SetVerdict(event.packet_id, Verdict.ACCEPT))
        elif packet.is_fragment and self._rules.options.fragments.reassemble:
            self._fragment(event, packet, censor_now, commands)
        else:
            if packet.is_fragment:
                # A piece tells whose it is and no more: half a header must not pass for options or data.
                packet.payload, packet.flags = b"", 0
            if event.length:
                packet.unseen = max(0, event.length - len(event.data))
            flow, direction = self._flow_of(event, packet, censor_now, commands)
            if self._judge.passes(flow):
                self._flows.advance(flow, packet, direction)
                if self.fast_path is not None:
                    self._flows.table.add_ends(flow)
                commands.append(SetVerdict(event.packet_id, _ACCEPT, None, self._offload))
                return
            readable = self._reads is None or self._reads(packet)
            nothing_changes, messages = self._judge.glance(packet, flow, direction) if readable else (False, None)
            if nothing_changes:
                self._flows.advance(flow, packet, direction)
                queue_all, spare = self._must_see(flow, packet, direction)
                commands.append(SetVerdict(event.packet_id, _ACCEPT, queue_all=queue_all, spare_answers=spare))
                return
            work = Work(event.packet_id, packet, flow, direction, event.now, release_at=event.now, messages=messages)
            self._decide(work, censor_now, commands, readable=readable)
            self._perform(work, commands)

    def _fragment(self, event: PacketArrived, packet: Packet, censor_now: float, commands: list[Command]) -> None:
        """Fragments wait until their datagram is whole; then all of them share its verdict."""
        packet_id, limit = event.packet_id, self._rules.options.hold_packets
        if len(self._held) >= limit:
            self._release(self._fragments.pop_oldest(), Verdict.DROP, "too many packets wait", commands)
        if len(self._held) >= limit:
            commands.append(SetVerdict(packet_id, Verdict.DROP, reason="too many packets wait"))
            return
        answer = self._fragments.add(packet_id, packet, censor_now)
        self._held[packet_id] = (None, "")
        commands.append(Hold(packet_id, "fragment waits for its datagram"))
        if answer is None:
            self._await_expiry()
            self._release(self._fragments.overflow(), Verdict.DROP, "too many fragments wait", commands)
        elif isinstance(answer, Refused):
            self._release(answer.packet_ids, Verdict.DROP, "fragments break the policy", commands)
        else:
            self._whole_datagram(event, answer, censor_now, commands)

    def _whole_datagram(
        self, event: PacketArrived, datagram: Complete, censor_now: float, commands: list[Command]
    ) -> None:
        first, ids = datagram.first, datagram.packet_ids
        raw = build_ip(
            first.src, first.dst, first.proto, datagram.payload, ttl=first.ttl, tos=first.tos, ip_id=first.ip_id
        )
        packet = parse_packet(raw)
        if isinstance(packet, Malformed):
            self._release(ids, Verdict.ACCEPT, "", commands)
            return
        flow, direction = self._flow_of(event, packet, censor_now, commands)
        work = Work(event.packet_id, packet, flow, direction, event.now, release_at=event.now)
        readable = self._reads is None or self._reads(packet)
        self._decide(work, censor_now, commands, readable=readable)
        if _treated(work):
            # The kernel cannot tell by fragments which of its connections they are of.
            seconds = self._clock.real_seconds(self._rules.options.flows.tcp_established)
            key = flow.tuple
            commands.append(Watch(key.src, key.dst, key.sport, key.dport, key.proto, seconds))
        verdict = Verdict.DROP if work.data is not None else work.verdict
        if verdict is Verdict.ACCEPT and work.release_at > event.now:
            self._timers.set(work.release_at, lambda _: self._released(ids, work.reason))
        else:
            self._release(ids, verdict, work.reason, commands)
        self._inject(work, commands)

    def _flow_of(
        self, event: PacketArrived, packet: Packet, censor_now: float, commands: list[Command]
    ) -> tuple[Flow, Direction]:
        """The flow in which the packet is counted, and its direction; what ended for it is told."""
        flow, direction, ended = self._flows.find(packet, censor_now, event.came_from)
        for gone, reason in ended:
            commands.append(self._ended(gone, event.now, reason))
        flow.count(direction, len(packet.raw), bool(packet.payload), censor_now)
        return flow, direction

    def _decide(self, work: Work, censor_now: float, commands: list[Command], *, readable: bool) -> None:
        """What is to happen with one whole packet; what there is to tell comes first."""
        flow, packet = work.flow, work.packet
        decision = self._judge.judge(work, censor_now, commands, readable=readable)
        if isinstance(decision.terminal, RedirectFlow):
            alias = decision.terminal.replaced(flow.tuple)
            if flow.alias != alias:
                self._flows.table.add_alias(flow, alias)
        if readable:
            self._flows.advance(flow, packet, work.direction)
        if work.verdict is not _ACCEPT:
            self._note_drop(work, decision, commands)

    # -- commands -----------------------------------------------------------------------------------------------

    def _perform(self, work: Work, commands: list[Command]) -> None:
        if work.release_at > work.now and work.verdict is _ACCEPT:
            self._hold(work, commands)
        else:
            decision: Decision = work.flow.decision
            settled = _settled(work)
            # Noted without offload, too: whether a SYN begins a new flow must not depend on it.
            decision.settled = decision.settled or settled
            treated = not settled and (decision.terminal is not None or bool(decision.modifiers))
            must_see = treated, False
            if not (settled or treated):
                must_see = self._must_see(work.flow, work.packet, work.direction)
            commands.append(
                SetVerdict(
                    work.packet_id,
                    work.verdict,
                    work.data if work.verdict is _ACCEPT else None,
                    settled and self._offload,
                    work.reason,
                    bulk=treated and self._offload and self._is_bulk(work),
                    queue_all=must_see[0],
                    spare_answers=must_see[1] and work.verdict is _ACCEPT,
                )
            )
        if work.forged:
            self._inject(work, commands)

    def _must_see(self, flow: Flow, packet: Packet, direction: Direction) -> tuple[bool, bool]:
        """`queue_all` and `spare_answers` of a verdict for a packet whose flow is not decided."""
        if packet.proto == _TCP:
            return _is_seen_whole(flow, self._rules.options.tcp), False
        if packet.proto != _UDP:
            return False, False
        spare = self._offload and self._judge.ignores_answers(flow)
        # The kernel may still go by what was true of an earlier flow between the same ends.
        return direction is Direction.TO_SERVER and (spare or flow.packets_to_server == 1), spare

    def _is_bulk(self, work: Work) -> bool:
        """Whether nothing but headers and sizes of the flow's packets counts for a long while."""
        decision: Decision = work.flow.decision
        return (
            isinstance(decision.terminal, FreezeFlow)
            and work.packet.proto == Transport.TCP
            and decision.terminal.is_far(work.flow)
            and not (decision.modifiers or work.blocked or self._reads is not None)
        )

    def _inject(self, work: Work, commands: list[Command]) -> None:
        for forged, rule in work.forged:
            end = "server" if forged.towards is Direction.TO_SERVER else "client"
            inject = Inject(forged.data, f"{rule.name}: injected towards the {end}")
            if forged.delay <= 0:
                commands.append(inject)
            elif self._delayed < self._rules.options.hold_packets:
                self._delayed += 1
                self._timers.set(work.now + forged.delay, self._later(inject))
            else:
                continue
            work.flow.injected += 1

    def _later(self, inject: Inject) -> Task:
        def send(_: float) -> list[Command]:
            self._delayed -= 1
            return [inject]

        return send

    def _hold(self, work: Work, commands: list[Command]) -> None:
        packet_id = work.packet_id
        if len(self._held) >= self._rules.options.hold_packets:
            work.flow.dropped += 1
            commands.append(SetVerdict(packet_id, Verdict.DROP, reason=f"{work.reason}: too many packets wait"))
            return
        self._held[packet_id] = (work.data, work.reason)
        self._timers.set(work.release_at, lambda _: self._released((packet_id,), None))
        commands.append(Hold(packet_id, work.reason))

    def _released(self, packet_ids: Sequence[int], reason: str | None) -> list[Command]:
        commands: list[Command] = []
        self._release(packet_ids, Verdict.ACCEPT, reason, commands)
        return commands

    def _release(
        self, packet_ids: Sequence[int], verdict: Verdict, reason: str | None, commands: list[Command]
    ) -> None:
        """The verdict of held packets; those that have theirs already are left out."""
        for packet_id in packet_ids:
            held = self._held.pop(packet_id, None)
            if held is not None:
                note = held[1] if reason is None else reason
                commands.append(SetVerdict(packet_id, verdict, held[0], reason=note))

    # -- endings ------------------------------------------------------------------------------------------------

    def _sweep(self, now: float, commands: list[Command]) -> None:
        for flow in self._flows.table.sweep(self._clock.censor_time(now)):
            commands.append(self._ended(flow, now, "timeout"))

    def _await_expiry(self) -> None:
        """Sees to a timer for the datagram that runs out first, and to no more of them than needed."""
        due = self._fragments.next_expiry()
        if due is not None and (self._fragments_due is None or due < self._fragments_due):
            self._fragments_due = due
            self._timers.set(self._clock.real_time(due), lambda now: self._expire_fragments(now, due))

    def _expire_fragments(self, now: float, due: float) -> list[Command]:
        commands: list[Command] = []
        # The way to real time and back may have rounded the due time down.
        gone = self._fragments.expire(max(due, self._clock.censor_time(now)))
        self._release(gone, Verdict.DROP, "fragments waited too long", commands)
        if due == self._fragments_due:
            self._fragments_due = None
            self._await_expiry()
        return commands

    def _stop(self, now: float, commands: list[Command]) -> None:
        """Nothing stays behind: held packets go, flows get their last record."""
        self._fragments.drain()
        self._release(tuple(self._held), Verdict.ACCEPT, None, commands)
        for flow in tuple(self._flows.table):
            self._flows.table.remove(flow)
            commands.append(self._ended(flow, now, "stopping"))

    def _note_drop(self, work: Work, decision: Decision, commands: list[Command]) -> None:
        work.flow.dropped += 1
        if work.direction in decision.told_drops or work.dropped_by is None:
            return
        decision.told_drops += (work.direction,)
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
        commands.append(Report(record))

    def _ended(self, flow: Flow, now: float, reason: str) -> Report:
        record = FlowEnded(
            time=now,
            flow=flow_ref(flow),
            start=self._clock.real_time(flow.start),
            last=self._clock.real_time(flow.last),
            packets_to_server=flow.packets_to_server,
            packets_to_client=flow.packets_to_client,
            bytes_to_server=flow.bytes_to_server,
            bytes_to_client=flow.bytes_to_client,
            dropped=flow.dropped,
            injected=flow.injected,
            state=flow.state.told_as,
            reason=reason,
            rules=flow.rules,
            facts=flow.facts,
        )
        return Report(record)


def _settled(work: Work) -> bool:
    """Whether every later packet of the flow gets this same verdict.

    Until it is closed, a SYN of the end that a SYN/ACK made the server begins no new flow: so its end is to be seen.
    """
    decision: Decision = work.flow.decision
    if work.flow.by_synack or work.data is not None or work.blocked or decision.modifiers or decision.terminal is None:
        return False
    return decision.terminal.offload(work.now) is work.verdict


def _treated(work: Work) -> bool:
    """Whether something is done to each packet of the flow."""
    decision: Decision = work.flow.decision
    return bool(decision.modifiers) or not (decision.terminal is None or isinstance(decision.terminal, PassFlow))


def _is_seen_whole(flow: Flow, options: TcpOptions) -> bool:
    """Whether nothing of the flow may pass unseen, though nothing is decided: the kernel plan is made for `options`.

    Nor may it where connection tracking, which takes a SYN's sender for the client, may hold the other end for it.
    """
    tcb = flow.tcb
    return flow.by_synack or (
        tcb is not None and (tcb.resynchronising or tcb.may_begin_midway or not tcb.goes_by(options))
    )
