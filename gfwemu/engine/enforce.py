"""From an order to its execution: what each action does at the packet that set its rule off."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from gfwemu.dissect.dns_message import Query
from gfwemu.engine.answers import forge_answers
from gfwemu.engine.dice import Dice
from gfwemu.engine.facts import inside_end
from gfwemu.engine.forge import (
    Forged,
    InjectorState,
    Trigger,
    forge_closes,
    forge_content,
    forge_wrong_syn_ack,
    http_response,
    tls_alert_record,
)
from gfwemu.engine.treatments import (
    Bucket,
    DelayFlow,
    DropFlow,
    FreezeFlow,
    LoseFlow,
    PassFlow,
    RedirectFlow,
    RewriteFlow,
    ThrottleFlow,
    UnreachableFlow,
)
from gfwemu.engine.work import Decision, Modifier, Treatment, Work
from gfwemu.flow.flow import Flow
from gfwemu.model import Direction, Placement, Transport, address_bytes, address_text
from gfwemu.rules.actions import (
    Alert,
    Blockpage,
    Delay,
    Drop,
    Fin,
    Freeze,
    IcmpUnreachable,
    Lose,
    Pass,
    Poison,
    Probe,
    Redirect,
    Reset,
    Residual,
    RewriteToReset,
    Throttle,
    TlsAlert,
)
from gfwemu.rules.compiled import CompiledRule
from gfwemu.wire.packet import Packet, TcpFlags

# A member of an enumeration is slow to reach and to compute with.
_TCP = int(Transport.TCP)
_TO_SERVER = Direction.TO_SERVER
_ON_PATH, _IN_PATH = Placement.ON_PATH, Placement.IN_PATH
_SYN, _RST, _ACK = int(TcpFlags.SYN), int(TcpFlags.RST), int(TcpFlags.ACK)

_RESETS = frozenset({"reset", "fin", "rewrite_to_reset"})
_PLAIN_RESET = Reset()

Scaled = Callable[[float], float]


class Enforcer:
    """Carries out rules. `real_seconds` turns a duration of the censor's clock into one of the real clock.

    After a call the decision of the flow holds the treatment, and the work what happens to the trigger itself.
    """

    def __init__(self, dice: Dice, real_seconds: Scaled, limit: int) -> None:
        """limit: subscribers whose token buckets are kept; of more, the oldest go, as if their buckets were full."""
        self._rng = dice.rng
        self._real_seconds = real_seconds
        self._limit = limit
        self._injectors = InjectorState(dice)
        self._buckets: OrderedDict[tuple[str, str], tuple[Bucket, Bucket]] = OrderedDict()

    def enforce(self, rule: CompiledRule, work: Work, decision: Decision, query: Query | None) -> None:
        """`query`: the DNS query that matched, if it is one; only `poison` reads it."""
        action: Any = rule.action
        match action:
            case Poison():
                trigger = self._trigger(rule, work)
                forged = [] if query is None else forge_answers(self._injectors, action, trigger, query)
                self._inject_and(rule, work, decision, forged, "answer forged", flow_goes_on=True)
            case Alert():
                work.touch(rule, "alert")
            case Probe():
                work.touch(rule, "probes ordered")
            case Throttle() | Delay() | Lose():
                decision.modifiers += (self._modifier(rule, work, decision),)
            case Reset():
                self._close(rule, work, decision, action, "RA")
            case Fin():
                self._close(rule, work, decision, action, "FA")
            case Blockpage():
                self._content(rule, work, decision, http_response(action), "block page sent")
            case Redirect() if action.location:
                self._content(rule, work, decision, http_response(action), "redirect sent")
            case TlsAlert():
                self._content(rule, work, decision, tls_alert_record(action), "TLS alert sent")
            case _:
                self._treat(rule, work, decision, self._terminal(rule, work))

    def meet_residual(self, rule: CompiledRule, work: Work) -> None:
        """What a residual block of `rule` does to one packet."""
        residual = rule.residual
        assert residual is not None
        resets = rule.action_name in _RESETS
        if residual.action == "drop" or (residual.action == "same" and not resets):
            work.drop(rule)
            return
        if work.packet.proto == _TCP and not work.packet.flags & _RST:
            work.inject(self._residual_packets(rule, residual, work), rule)
            work.touch(rule, "residual reset")
        if rule.placement is _IN_PATH:
            work.drop(rule)

    def _residual_packets(self, rule: CompiledRule, residual: Residual, work: Work) -> list[Forged]:
        action = rule.action
        order = action if isinstance(action, Reset | Fin) else _PLAIN_RESET
        injectors = order.injectors if residual.injectors is None else residual.injectors
        trigger = self._trigger(rule, work)
        is_syn = work.packet.flags & (_SYN | _ACK) == _SYN
        if residual.syn == "forged_synack" and is_syn and work.direction is _TO_SERVER:
            return forge_wrong_syn_ack(self._injectors, injectors[0], trigger)
        flags = "FA" if isinstance(action, Fin) else "RA"
        return forge_closes(self._injectors, injectors, trigger, residual.towards or order.towards, flags)

    def _trigger(self, rule: CompiledRule, work: Work) -> Trigger:
        passed = rule.placement is _ON_PATH
        tcb = None if work.blocked else work.flow.tcb
        expected = None if tcb is None else tcb.expected(work.direction, passed=passed)
        return Trigger(
            work.packet, work.flow.tuple, work.direction, passed, expected, work.flow.flow_id, work.censor_now
        )

    def _close(self, rule: CompiledRule, work: Work, decision: Decision, action: Reset | Fin, flags: str) -> None:
        trigger = self._trigger(rule, work)
        forged = forge_closes(self._injectors, action.injectors, trigger, action.towards, flags)
        self._inject_and(rule, work, decision, forged, "reset sent" if flags == "RA" else "FIN sent")

    def _content(self, rule: CompiledRule, work: Work, decision: Decision, content: bytes, note: str) -> None:
        injectors = rule.action.injectors  # type: ignore[union-attr]
        self._inject_and(
            rule, work, decision, forge_content(self._injectors, injectors, self._trigger(rule, work), content), note
        )

    def _inject_and(
        self,
        rule: CompiledRule,
        work: Work,
        decision: Decision,
        forged: list[Any],
        note: str,
        *,
        flow_goes_on: bool = False,
    ) -> None:
        """Injects; in-path the trigger is dropped, and the rest of the flow unless it goes on, as with `repeat`."""
        work.inject(forged, rule)
        work.touch(rule, note)
        if rule.placement is _IN_PATH:
            work.drop(rule)
        if not (flow_goes_on or rule.repeat):
            in_path = rule.placement is _IN_PATH
            decision.terminal = DropFlow(rule, "both", work.now) if in_path else PassFlow()

    def _treat(self, rule: CompiledRule, work: Work, decision: Decision, treatment: Treatment) -> None:
        decision.terminal = treatment
        work.touch(rule, "matched")
        if not (isinstance(rule.action, Drop) and not rule.action.trigger):
            treatment.apply(work)

    def _terminal(self, rule: CompiledRule, work: Work) -> Treatment:
        action: Any = rule.action
        match action:
            case Pass():
                return PassFlow()
            case Drop():
                return DropFlow(rule, action.direction, work.now + self._real_seconds(action.after.sample(self._rng)))
            case RewriteToReset():
                return RewriteFlow(rule, action.direction)
            case IcmpUnreachable():
                return UnreachableFlow(rule, action)
            case Freeze():
                packets = None if action.packets is None else action.packets.sample_int(self._rng)
                size = None if action.bytes is None else int(action.bytes.sample(self._rng))
                return FreezeFlow(rule, action, packets, size)
            case Redirect():
                return self._redirect(rule, action, work.packet)
        raise TypeError(f"the action {rule.action_name} has no treatment")

    def _redirect(self, rule: CompiledRule, action: Redirect, packet: Packet) -> Treatment:
        for text in action.address:
            address = address_bytes(text)
            if len(address) == len(packet.dst):
                return RedirectFlow(rule, address, action.port or 0)
        return PassFlow()

    def _modifier(self, rule: CompiledRule, work: Work, decision: Decision) -> Modifier:
        action: Any = rule.action
        if isinstance(action, Delay):
            return DelayFlow(rule, action, self._rng)
        if isinstance(action, Lose):
            return LoseFlow(rule, action, self._rng)
        assert isinstance(action, Throttle)
        if action.per == "flow":
            return ThrottleFlow(rule, action, (Bucket(), Bucket()))
        owner = _subscriber(work.flow, decision) if action.per == "subscriber" else ""
        buckets = self._buckets.pop((rule.name, owner), None) or (Bucket(), Bucket())
        self._buckets[rule.name, owner] = buckets
        if len(self._buckets) > self._limit:
            self._buckets.popitem(last=False)
        return ThrottleFlow(rule, action, buckets)


def _subscriber(flow: Flow, decision: Decision) -> str:
    """By name, where the rule file knows it, so that all addresses count together; else by the inside address."""
    named = decision.facts.get("subscriber")
    return str(named) if named is not None else address_text(inside_end(flow))
