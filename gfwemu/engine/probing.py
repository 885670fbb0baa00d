"""What a censor learns from its probes: the servers that it suspects, and what they answered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from gfwemu.engine.commands import Report, SendProbes
from gfwemu.engine.events import ProbeFinished
from gfwemu.engine.records import FlowRef, ProbeReacted, ServerBlocked
from gfwemu.model import address_text
from gfwemu.rules.actions import Probe
from gfwemu.rules.compiled import CompiledRule

Server = tuple[bytes, int]
Reactions = tuple[tuple[str, str], ...]

_ANSWERS = frozenset({"data", "confirmed"})


@dataclass(frozen=True, slots=True)
class Request:
    """Probes that were ordered: the rule, and the flow that set it off."""

    rule: str
    flow: FlowRef


class Suspects:
    """Requests under way and reactions by server, at most `limit` of each; the oldest go first."""

    def __init__(self, request_ids: Iterator[int], limit: int) -> None:
        self.limit = limit
        self._request_ids = request_ids
        self._requests: OrderedDict[int, Request] = OrderedDict()
        self._reactions: OrderedDict[Server, dict[str, set[str]]] = OrderedDict()

    def order(self, rule: CompiledRule, action: Probe, flow: FlowRef, payload: bytes) -> SendProbes:
        request_id = next(self._request_ids)
        self._requests[request_id] = Request(rule.name, flow)
        while len(self._requests) > self.limit:
            self._requests.popitem(last=False)
        return SendProbes(request_id, rule.name, action, flow.tuple.dst, flow.tuple.dport, payload)

    def finished(self, event: ProbeFinished) -> Request | None:
        """Notes the reaction. None where nobody here waits for it any more."""
        request = self._requests.get(event.request_id)
        if request is None:
            return None
        if event.last:
            del self._requests[event.request_id]
        server = request.flow.tuple.dst, request.flow.tuple.dport
        reactions = self._reactions.setdefault(server, {})
        reactions.setdefault(event.type, set()).add(event.reaction)
        self._reactions.move_to_end(server)
        while len(self._reactions) > self.limit:
            self._reactions.popitem(last=False)
        return request

    def convicted(self, action: Probe, flow: FlowRef) -> Reactions:
        """The reactions for which the action blocks the server, () where they do not suffice; given but once."""
        server = flow.tuple.dst, flow.tuple.dport
        known = self._reactions.get(server, {})
        for wanted in action.blocks_when:
            found = {name: sorted(known.get(name, set()) & {*any_of}) for name, any_of in wanted.items()}
            spoken = {name: (known.get(name, set()) & _ANSWERS) - {*any_of} for name, any_of in wanted.items()}
            if all(found.values()) and not any(spoken.values()):
                self._reactions.pop(server, None)
                return tuple((name, ", ".join(reactions)) for name, reactions in found.items())
        return ()


def probe_reacted(rule: CompiledRule, flow: FlowRef, event: ProbeFinished) -> Report:
    return Report(
        ProbeReacted(
            time=event.now,
            flow=flow,
            rule=rule.name,
            type=event.type,
            reaction=event.reaction,
            seconds=event.seconds,
            sent=event.sent,
            prober=address_text(event.prober),
            port=event.port,
            cite=rule.cite,
        )
    )


def server_blocked(
    rule: CompiledRule, flow: FlowRef, key: str, seconds: float, reactions: Reactions, now: float
) -> Report:
    return Report(
        ServerBlocked(
            time=now,
            flow=flow,
            rule=rule.name,
            key=key,
            seconds=seconds,
            reactions=reactions,
            cite=rule.cite,
            observed=rule.observed,
            place=str(rule.place),
        )
    )
