"""The rules against one packet: messages, conditions, orders, residual blocks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from gfwemu.dissect.outcome import Message
from gfwemu.engine.commands import Command, Report, Watch
from gfwemu.engine.enforce import Enforcer
from gfwemu.engine.facts import FLOW_FIELDS, PacketView, View, flow_facts
from gfwemu.engine.inspect import Inspector
from gfwemu.engine.matching import evidence_of, holds, refuted
from gfwemu.engine.records import Evidence, FlowRef, MessageSeen, ResidualHit, RuleHit
from gfwemu.engine.treatments import PassFlow, covers
from gfwemu.engine.work import Decision, Work
from gfwemu.flow.flow import Flow, direction_index
from gfwemu.flow.residual import Block, ResidualTable, residual_key
from gfwemu.model import Direction, Verdict
from gfwemu.rules.actions import NOT_TERMINAL
from gfwemu.rules.compiled import CompiledRule, RuleSet, Scope
from gfwemu.wire.checksum import checksum_ok

_REPEATING = frozenset({"poison", "alert"})
"""Actions that act on every message that matches, not once a flow."""


class Judge:
    """Decides packets by one rule set; residual blocks outlive a change of rules.

    `real_seconds` turns a duration of the censor's clock into one of the real clock. `told` collects reports and
    watches in order.
    """

    def __init__(self, rules: RuleSet, rng: random.Random, real_seconds: Callable[[float], float]) -> None:
        self._rng = rng
        self._real_seconds = real_seconds
        self._residuals = ResidualTable(rules.options.flows.residual_limit)
        self._generation = 0
        self.load(rules)

    def load(self, rules: RuleSet) -> None:
        self._rules = rules
        self._generation += 1
        self._inspector = Inspector(rules)
        self._enforcer = Enforcer(self._rng, self._real_seconds)
        self._residuals.limit = rules.options.flows.residual_limit
        self._residuals.keep(frozenset(rule.name for rule in rules.rules))

    def judge(self, work: Work, censor_now: float, told: list[Command]) -> Decision:
        """Settles what happens to the packet and, where a rule decides it, to the rest of its flow."""
        decision = self._decision_of(work.flow)
        if self._meet_residual(work, decision, censor_now, told):
            return decision
        if decision.terminal is not None:
            decision.terminal.apply(work)
        else:
            self._inspect(work, decision, censor_now, told)
        for modifier in decision.modifiers:
            if work.verdict is Verdict.ACCEPT:
                modifier.apply(work)
        return decision

    def _decision_of(self, flow: Flow) -> Decision:
        decision: Decision | None = flow.decision
        if decision is None or decision.generation != self._generation:
            if flow.sessions == []:
                flow.read_anew()
            facts = flow_facts(flow, self._rules.subscribers)
            pending = [rule for rule in self._rules.rules if not refuted(rule, facts, FLOW_FIELDS)]
            decision = flow.decision = Decision(self._generation, facts, pending)
        return decision

    # -- rules --------------------------------------------------------------------------------------------------

    def _inspect(self, work: Work, decision: Decision, censor_now: float, told: list[Command]) -> None:
        flow, packet = work.flow, work.packet
        if self._rules.options.tcp.verify_checksum and not checksum_ok(packet):
            return
        messages = self._inspector.read(packet, flow, work.direction) if decision.pending else []
        for message in messages:
            flow.facts.update(message.facts)
            if flow.protocol:
                told.append(Report(MessageSeen(work.now, flow_ref(flow), work.direction, dict(message.facts))))
        if decision.fresh and flow.facts and not messages:
            messages = [Message(dict(flow.facts))]
        self._try_rules(work, decision, messages, censor_now, told)
        decision.fresh = False
        if decision.terminal is None:
            self._settle(flow, decision)
        if decision.terminal is not None:
            flow.forget_stream()

    def _try_rules(
        self, work: Work, decision: Decision, messages: Sequence[Message], censor_now: float, told: list[Command]
    ) -> None:
        """In order; the first rule that holds now and is terminal ends it."""
        for rule in tuple(decision.pending):
            if rule.schedule is not None and not rule.schedule.active(censor_now):
                continue
            for view, message in self._looks(rule, work, decision, messages):
                found = holds(rule, view)
                if found is None:
                    continue
                if rule.probability < 1.0 and self._rng.random() >= rule.probability:
                    if rule.scope is not Scope.MESSAGE:
                        decision.pending.remove(rule)
                        break
                    continue
                stream = work.flow.excerpts[direction_index(work.direction)]
                evidence = evidence_of(found, message.spans, stream)
                self._enforcer.enforce(rule, work, decision, _dns_message(message, stream))
                work.flow.rules.append(rule.name)
                told.append(_hit(rule, work, evidence, view))
                if rule.residual is not None:
                    self._begin_residual(rule, work, censor_now, told)
                if rule.action_name not in NOT_TERMINAL:
                    return
                if rule.action_name not in _REPEATING:
                    decision.pending.remove(rule)
                    break

    @staticmethod
    def _looks(
        rule: CompiledRule, work: Work, decision: Decision, messages: Sequence[Message]
    ) -> list[tuple[View, Message]]:
        """What the rule is held against: once a flow, each message, or the packet with all that is known."""
        if rule.scope is Scope.MESSAGE:
            return [(View(decision.facts, message.facts, None), message) for message in messages]
        if rule.scope is Scope.FLOW and not decision.fresh and rule.schedule is None:
            return []
        latest = messages[-1] if messages else Message(work.flow.facts)
        packet = PacketView(work.packet, work.flow, work.direction)
        return [(View(decision.facts, work.flow.facts, packet), latest)]

    def _settle(self, flow: Flow, decision: Decision) -> None:
        """Drops rules that can no longer fire; a flow without any passes for good."""
        messages_over = self._inspector.finished(flow)
        decision.pending = [
            rule
            for rule in decision.pending
            if (rule.schedule is not None and rule.scope is Scope.FLOW)
            or (rule.scope is Scope.PACKET and not exhausted(rule, flow))
            or (rule.scope is Scope.MESSAGE and not messages_over)
        ]
        if not decision.pending:
            decision.terminal = PassFlow()

    # -- residual blocks ----------------------------------------------------------------------------------------

    def _begin_residual(self, rule: CompiledRule, work: Work, censor_now: float, told: list[Command]) -> None:
        residual = rule.residual
        assert residual is not None
        seconds = residual.seconds.sample(self._rng)
        begins = censor_now + residual.after.sample(self._rng)
        key = residual_key(residual.key, work.flow.tuple)
        block = Block(residual.key, key, rule, begins, begins + seconds, seconds)
        if self._residuals.add(block, refresh=residual.refresh):
            told.append(self._watch(block, censor_now))

    def _watch(self, block: Block, censor_now: float) -> Watch:
        key = block.key
        seconds = self._real_seconds(block.ends - censor_now)
        return Watch(key.client, key.server, key.client_port, key.server_port, key.proto, seconds)

    def _meet_residual(self, work: Work, decision: Decision, censor_now: float, told: list[Command]) -> bool:
        """Applies the residual block that the packet meets, if any."""
        block = self._residuals.find(work.flow.tuple, censor_now)
        if block is None:
            return False
        rule: CompiledRule = block.rule
        residual = rule.residual
        assert residual is not None
        if not covers(residual.direction, work.direction):
            return False
        if residual.probability < 1.0 and decision.spared_by.setdefault(
            rule.name, self._rng.random() >= residual.probability
        ):
            return False
        if residual.refresh:
            block.ends = censor_now + block.seconds
            told.append(self._watch(block, censor_now))
        if rule.name not in work.flow.rules:
            work.flow.rules.append(rule.name)
            action = rule.action_name if residual.action == "same" else residual.action
            remaining = block.ends - censor_now
            ref = flow_ref(work.flow)
            told.append(Report(ResidualHit(work.now, ref, rule.name, action, residual.key, remaining, rule.cite)))
        self._enforcer.meet_residual(rule, work)
        return True


def flow_ref(flow: Flow) -> FlowRef:
    return FlowRef(flow.flow_id, flow.tuple, flow.protocol)


def exhausted(rule: CompiledRule, flow: Flow) -> bool:
    """Whether a count that only grows has left the range that the rule asks for."""
    ways = [way for way in Direction if _may_run(rule, way)]
    counts = {
        "payload.number": min((flow.payloads[direction_index(way)] for way in ways), default=0),
        "count.packets": sum(flow.packets),
        "count.packets.to_server": flow.packets[0],
        "count.packets.to_client": flow.packets[1],
        "count.bytes": sum(flow.bytes),
        "count.bytes.to_server": flow.bytes[0],
        "count.bytes.to_client": flow.bytes[1],
    }
    for condition in rule.conditions:
        beyond = getattr(condition.matcher, "exhausted", None)
        value = counts.get(condition.field)
        if beyond is not None and value is not None and not condition.negated and beyond(value):
            return True
    return False


def _may_run(rule: CompiledRule, way: Direction) -> bool:
    return all(
        (condition.matcher.match(way.value) is None) == condition.negated
        for condition in rule.conditions
        if condition.field == "direction"
    )


def _dns_message(message: Message, stream: bytes) -> bytes:
    """The DNS message around the question that matched: its header is the 12 bytes before the name."""
    span = message.spans.get("dns.qname")
    return b"" if span is None else stream[max(0, span.offset - 12) :]


def _hit(rule: CompiledRule, work: Work, evidence: tuple[Evidence, ...], view: View) -> Report:
    return Report(
        RuleHit(
            time=work.now,
            flow=flow_ref(work.flow),
            rule=rule.name,
            action=rule.action_name,
            placement=rule.placement,
            direction=work.direction,
            packet_number=sum(work.flow.packets),
            packet_length=len(work.packet.raw),
            evidence=evidence,
            facts=dict(view.message),
            cite=rule.cite,
            observed=rule.observed,
            place=str(rule.place),
            residual_seconds=rule.residual.seconds.high if rule.residual is not None else 0.0,
            towards=str(getattr(rule.action, "towards", "")),
        )
    )
