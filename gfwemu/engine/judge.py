"""The rules against one packet: messages, conditions, orders, residual blocks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from gfwemu.dissect.outcome import Message
from gfwemu.engine.candidates import Candidate
from gfwemu.engine.commands import Command, Report, Watch
from gfwemu.engine.dice import Dice
from gfwemu.engine.enforce import Enforcer
from gfwemu.engine.events import ProbeFinished
from gfwemu.engine.facts import FlowFacts, PacketView, View
from gfwemu.engine.inspect import Inspector
from gfwemu.engine.matching import evidence_of, holds
from gfwemu.engine.pending import Prospects
from gfwemu.engine.probing import Suspects, probe_reacted, server_blocked
from gfwemu.engine.records import (
    Evidence,
    FlowRef,
    MessageSeen,
    ResidualHit,
    RuleHit,
)
from gfwemu.engine.treatments import PassFlow, covers
from gfwemu.engine.work import Decision, Work
from gfwemu.flow.flow import Flow
from gfwemu.flow.residual import Block, KeyKind, ResidualTable, residual_key
from gfwemu.model import Direction, FiveTuple, Transport, Verdict
from gfwemu.rules.actions import Probe, Residual
from gfwemu.rules.compiled import CompiledRule, RuleSet
from gfwemu.rules.odds import Odds
from gfwemu.rules.quantities import Varied
from gfwemu.wire.packet import Packet

_ACCEPT = Verdict.ACCEPT
_TCP = int(Transport.TCP)

_WATCH_SLACK = 0.125
"""Of a block's length. Our choice: at most nine updates of the kernel's set while a block lasts."""


class Judge:
    """Decides packets by one rule set; residual blocks outlive a change of rules.

    `real_seconds` turns a duration of the censor's clock into one of the real clock. `told` collects reports and
    watches in order.
    """

    def __init__(
        self,
        rules: RuleSet,
        rng: random.Random,
        real_seconds: Callable[[float], float],
        request_ids: Iterator[int],
    ) -> None:
        self._rng = rng
        self._real_seconds = real_seconds
        self._residuals = ResidualTable(rules.options.flows.residual_limit)
        self._suspects = Suspects(request_ids, rules.options.flows.residual_limit)
        self._generation = 0
        self._prospects = Prospects(())
        self.load(rules)

    def load(self, rules: RuleSet) -> None:
        self._rules = rules
        self._generation += 1
        self._prospects.retire()
        self._prospects = Prospects(rules.rules)
        self._inspector = Inspector(rules, self._rng)
        self._dice = Dice(self._rng, rules.seed)
        self._enforcer = Enforcer(self._dice, self._real_seconds, rules.options.flows.limit)
        self._residuals.limit = rules.options.flows.residual_limit
        self._suspects.limit = rules.options.flows.residual_limit
        self._probing = {rule.name: rule for rule in rules.rules if isinstance(rule.action, Probe)}
        self._residuals.rebind({rule.name: rule for rule in rules.rules if rule.residual is not None})

    def passes(self, flow: Flow) -> bool:
        """Whether nothing at all is left to do to the flow's packets."""
        decision: Decision | None = flow.decision
        return (
            decision is not None
            and decision.settled
            and decision.generation == self._generation
            and decision.terminal.__class__ is PassFlow
            and not decision.modifiers
            and not len(self._residuals)
        )

    def glance(self, packet: Packet, flow: Flow, direction: Direction) -> tuple[bool, list[Message] | None]:
        """Whether the packet changes nothing; and the messages that it completes, None where it was not read for that.

        Most packets of a flow that is not decided are parts of messages, and no rule looks at them by themselves.
        """
        decision: Decision | None = flow.decision
        if (
            decision is None
            or decision.terminal is not None
            or decision.fresh
            or decision.generation != self._generation
            or decision.pending.eager
            or decision.modifiers
            or self._residuals
        ):
            return False, None
        messages = self._inspector.read(packet, flow, direction)
        # A piece of a datagram says nothing of what its flow may still bring.
        over = self._inspector.finished(flow) and not packet.is_fragment
        return not messages and over is decision.messages_over, messages

    def ignores_answers(self, flow: Flow) -> bool:
        """Whether DNS answers of the flow's server change nothing, whatever comes."""
        decision: Decision = flow.decision
        undecided = decision.terminal is None and not decision.modifiers
        return undecided and flow.confirmed and flow.protocol == "dns" and not decision.pending.heeds_answers

    def judge(self, work: Work, censor_now: float, told: list[Command], *, readable: bool = True) -> Decision:
        """Settles what happens to the packet and, where a rule decides it, to the rest of its flow.

        readable False: this censor learns nothing from the packet, whose checksum is wrong.
        """
        work.censor_now = censor_now
        decision = self._decision_of(work.flow)
        if self._meet_residual(work, decision, censor_now, told):
            return decision
        if decision.terminal is not None:
            decision.terminal.apply(work)
        elif readable:
            self._inspect(work, decision, censor_now, told)
        for modifier in decision.modifiers:
            if work.verdict is _ACCEPT and _in_force(modifier.rule, censor_now):
                modifier.apply(work)
        return decision

    def _decision_of(self, flow: Flow) -> Decision:
        decision: Decision | None = flow.decision
        if decision is None or decision.generation != self._generation:
            if flow.sessions == ():
                flow.read_anew()
            facts = FlowFacts(flow, self._rules.subscribers)
            decision = flow.decision = Decision(self._generation, facts, self._prospects.opening(facts))
        return decision

    # -- rules --------------------------------------------------------------------------------------------------

    def _inspect(self, work: Work, decision: Decision, censor_now: float, told: list[Command]) -> None:
        flow, packet = work.flow, work.packet
        pending = decision.pending
        messages = work.messages
        if messages is None:
            messages = self._inspector.read(packet, flow, work.direction) if pending else []
        for message in messages:
            flow.facts = {**flow.facts, **message.facts} if flow.facts else message.facts
            if flow.protocol:
                told.append(Report(MessageSeen(work.now, flow_ref(flow), work.direction, message.facts)))
        fresh = decision.fresh
        if fresh and flow.facts and not messages:
            messages = [Message(flow.facts)]
        if messages or (fresh and pending.whole):
            touched = self._prospects.touched(pending, [message.facts for message in messages])
        else:
            may_hold = pending.eager and self._is_ripe(work) and _any_may_hold(work, decision)
            touched = pending.eager if may_hold else ()
        if touched:
            if fresh and packet.proto == _TCP:
                # Met in the middle, a connection is judged by its endpoints before its words, as it is at its SYN.
                touched = tuple(sorted(touched, key=_is_by_message))
            self._try_rules(touched, work, decision, messages, censor_now, told)
        decision.fresh = False
        if decision.terminal is None:
            over = self._inspector.finished(flow) and not packet.is_fragment
            self._settle(flow, decision, fresh=fresh, messages_over=over)
        if decision.terminal is not None:
            flow.forget_stream()

    def _is_ripe(self, work: Work) -> bool:
        """Whether rules may look at the packet itself: payload counts once this censor saw enough of the handshake."""
        packet = work.packet
        return packet.proto != _TCP or not packet.payload or self._inspector.ready(work.flow)

    def _try_rules(
        self,
        candidates: Sequence[Candidate],
        work: Work,
        decision: Decision,
        messages: Sequence[Message],
        censor_now: float,
        told: list[Command],
    ) -> None:
        """In order; the first rule that holds now and is terminal ends it. Alternatives of a rule act as one."""
        packet = PacketView(work.packet, work.flow, work.direction)
        latest = messages[-1] if messages else Message(work.flow.facts)
        whole = [(View(decision.facts, work.flow.facts, packet), latest)]
        single = [(View(decision.facts, message.facts, packet), message) for message in messages]
        stream = work.flow.excerpt(work.direction)
        over: set[str] = set()
        done: set[tuple[str, int]] = set()
        for candidate in candidates:
            rule = candidate.rule
            if (over and rule.name in over) or not _in_force(rule, censor_now):
                continue
            for position, (view, message) in enumerate(single if candidate.by_message else whole):
                # Of those that are tried message by message, the index has left few: asking twice would not pay.
                if not candidate.by_message and not candidate.may_hold(view):
                    continue
                found = holds(rule, view)
                if found is None or (rule.name, position) in done or _is_no_query(rule, message):
                    continue
                done.add((rule.name, position))
                acts = rule.probability >= 1.0 or self._acts(rule, work)
                if acts:
                    self._enforcer.enforce(rule, work, decision, message.query)
                    self._tell(candidate, work, evidence_of(found, message.spans, stream), view, told)
                    if isinstance(rule.action, Probe):
                        payload = flow_payload(work)
                        told.append(self._suspects.order(rule, rule.action, flow_ref(work.flow), payload))
                    elif rule.residual is not None:
                        self._begin_residual(rule, rule.residual, work.flow.tuple, censor_now, told)
                    if rule.terminal:
                        return
                elif rule.odds is not None and rule.odds.per == "packet":
                    continue
                if not candidate.repeats if acts else not candidate.by_message:
                    over.add(rule.name)
                    decision.pending = self._prospects.without(decision.pending, rule.name)
                    break

    def _acts(self, rule: CompiledRule, work: Work) -> bool:
        if rule.odds is None:
            return self._rng.random() < rule.probability
        return self._dice.throw(rule.odds, work.flow.tuple, work.flow.flow_id, work.censor_now, rule.name)

    @staticmethod
    def _tell(
        candidate: Candidate, work: Work, evidence: tuple[Evidence, ...], view: View, told: list[Command]
    ) -> None:
        rule = candidate.rule
        if rule.name not in work.flow.rules:
            work.flow.rules += (rule.name,)
        told.append(_hit(candidate, work, evidence, view))

    def _settle(self, flow: Flow, decision: Decision, *, fresh: bool, messages_over: bool) -> None:
        """Drops rules that can no longer fire; a flow without any passes for good."""
        pending = decision.pending
        if fresh or messages_over is not decision.messages_over or (pending.limited and pending.ended_by_count(flow)):
            decision.messages_over = messages_over
            decision.pending = self._prospects.remaining(pending, flow, messages_over=messages_over)
        if not decision.pending:
            decision.terminal = PassFlow()

    # -- residual blocks ----------------------------------------------------------------------------------------

    def probed(self, event: ProbeFinished, censor_now: float, told: list[Command]) -> None:
        """A server reacted to a probe; that may have it blocked."""
        request = self._suspects.finished(event)
        rule = None if request is None else self._probing.get(request.rule)
        if request is None or rule is None:
            return
        flow, action = request.flow, rule.action
        assert isinstance(action, Probe)
        told.append(probe_reacted(rule, flow, event))
        if rule.residual is None:
            return
        reactions = self._suspects.convicted(action, flow)
        if reactions and self._dice.throw(action.block_probability, flow.tuple, flow.flow_id, censor_now, rule.name):
            block = self._begin_residual(rule, rule.residual, flow.tuple, censor_now, told)
            # One that lasts already, and is not renewed, is no news.
            if block.watched:
                told.append(server_blocked(rule, flow, block.kind, block.seconds, reactions, event.now))

    def _begin_residual(
        self, rule: CompiledRule, residual: Residual, endpoints: FiveTuple, censor_now: float, told: list[Command]
    ) -> Block:
        begins = censor_now + residual.after.sample(self._rng)

        def begin(kind: KeyKind, lasting: Varied) -> Block:
            seconds = lasting.sample(self._rng)
            block = Block(kind, residual_key(kind, endpoints), rule, begins, begins + seconds, seconds)
            if self._residuals.add(block, refresh=residual.refresh):
                self._watch(block, censor_now, told)
            return block

        block, wider = begin(residual.key, residual.seconds), residual.escalate
        if wider is not None and self._residuals.ports_blocked(block, endpoints, censor_now) >= wider.ports:
            return begin(wider.key, wider.seconds or residual.seconds)
        return block

    def _watch(self, block: Block, censor_now: float, told: list[Command]) -> None:
        """Has the packets of the block queued. One that every packet renews is watched a little longer than it lasts,
        so that not every packet costs the kernel an update."""
        if block.ends <= block.watched:
            return
        slack = block.seconds * _WATCH_SLACK if block.rule.residual.refresh else 0.0
        block.watched = block.ends + slack
        key = block.key
        seconds = self._real_seconds(block.watched - censor_now)
        told.append(Watch(key.client, key.server, key.client_port, key.server_port, key.proto, seconds))

    def _meet_residual(self, work: Work, decision: Decision, censor_now: float, told: list[Command]) -> bool:
        """Applies the widest residual block that the packet meets, if any."""
        if not self._residuals:
            return False
        for block in self._residuals.find(work.flow.tuple, censor_now):
            rule: CompiledRule = block.rule
            residual = rule.residual
            assert residual is not None
            if not covers(residual.direction, work.direction):
                continue
            if residual.probability.low < 1.0 and self._is_spared(rule, residual.probability, work, decision):
                continue
            if residual.refresh:
                block.ends = max(block.ends, censor_now + block.seconds)
                self._watch(block, censor_now, told)
            if _is_treated(decision, rule):
                continue
            if rule.name not in work.flow.rules:
                work.flow.rules += (rule.name,)
                action = rule.action_name if residual.action == "same" else residual.action
                remaining = block.ends - censor_now
                ref = flow_ref(work.flow)
                told.append(Report(ResidualHit(work.now, ref, rule.name, action, block.kind, remaining, rule.cite)))
            work.blocked = True
            self._enforcer.meet_residual(rule, work)
            return True
        return False

    def _is_spared(self, rule: CompiledRule, odds: Odds, work: Work, decision: Decision) -> bool:
        """Whether the block lets this packet be; of each new flow, unless the odds are for something else."""
        flow = work.flow
        if odds.per != "match":
            return not self._dice.throw(odds, flow.tuple, flow.flow_id, work.censor_now, f"block/{rule.name}")
        if decision.spared_by is None:
            decision.spared_by = {}
        if rule.name not in decision.spared_by:
            decision.spared_by[rule.name] = self._rng.random() >= odds.at(work.censor_now)
        return decision.spared_by[rule.name]


def _blocked_at_once(rule: CompiledRule) -> float:
    """Seconds, at most, for which the hit itself blocks: probes have to come first where the rule orders them."""
    return 0.0 if rule.residual is None or isinstance(rule.action, Probe) else rule.residual.seconds.high


def flow_payload(work: Work) -> bytes:
    """What the client said first, as far as this censor knows it."""
    if work.direction is Direction.TO_SERVER and work.packet.payload:
        return work.packet.payload
    return work.flow.excerpt(Direction.TO_SERVER)


def flow_ref(flow: Flow) -> FlowRef:
    return FlowRef(flow.flow_id, flow.tuple, flow.protocol)


def _is_by_message(candidate: Candidate) -> bool:
    return candidate.by_message


def _any_may_hold(work: Work, decision: Decision) -> bool:
    """Whether any rule that needs no message may hold at this packet: mostly none does, and nothing is to be built."""
    view = View(decision.facts, work.flow.facts, PacketView(work.packet, work.flow, work.direction))
    return any(candidate.may_hold(view) for candidate in decision.pending.eager)


def _is_treated(decision: Decision, rule: CompiledRule) -> bool:
    """Whether the rule already does to this very flow what it ordered: the block is for the flows that follow."""
    treating: CompiledRule | None = getattr(decision.terminal, "rule", None)
    return treating is not None and treating.name == rule.name


def _in_force(rule: CompiledRule, censor_now: float) -> bool:
    return rule.schedule is None or rule.schedule.active(censor_now)


def _is_no_query(rule: CompiledRule, message: Message) -> bool:
    """Whether the rule would forge an answer to an answer."""
    return rule.action_name == "poison" and message.facts.get("dns.response") is True


def _number(flow: Flow) -> int:
    """Of the packet just counted. Where nothing of the server was seen, SYN/ACK and ACK passed unseen, and count."""
    begun = flow.tuple.proto == _TCP and flow.client_isn is not None and flow.payloads_to_server
    return sum(flow.packets) + (2 if begun and not flow.packets_to_client else 0)


def _hit(candidate: Candidate, work: Work, evidence: tuple[Evidence, ...], view: View) -> Report:
    rule = candidate.rule
    return Report(
        RuleHit(
            time=work.now,
            flow=flow_ref(work.flow),
            rule=rule.name,
            action=rule.action_name,
            placement=rule.placement,
            direction=work.direction,
            packet_number=_number(work.flow),
            packet_length=len(work.packet.raw),
            evidence=evidence,
            facts=view.message,
            cite=rule.cite,
            observed=rule.observed,
            place=candidate.place,
            residual_seconds=_blocked_at_once(rule),
            towards=candidate.towards,
        )
    )
