"""From packets to messages: which bytes the dissectors get to see, by the censor's idea of the connection."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.outcome import Confirm, DeferredFacts, Message, Reject, Session
from gfwemu.dissect.registry import DISSECTORS
from gfwemu.flow.flow import Flow, direction_index
from gfwemu.flow.tcb import Tcb
from gfwemu.model import Direction, Transport
from gfwemu.rules.compiled import RuleSet
from gfwemu.rules.needs import server_readers
from gfwemu.wire.packet import Packet

KEPT_BYTES = 4096
"""Bytes of each direction that are kept for the excerpts of the verdict table."""

_TCP, _UDP = int(Transport.TCP), int(Transport.UDP)
_TO_CLIENT = Direction.TO_CLIENT
UNKNOWN = Message({"protocol": "unknown"})


class Inspector:
    """Feeds the dissectors that the loaded rules need."""

    def __init__(self, rules: RuleSet, rng: random.Random) -> None:
        """rng: for what the censor's idea of TCP leaves to chance."""
        self._options = rules.options
        self._rng = rng
        # A packet behind the client's SYN may make a control block: at first, or again after it was torn down.
        self._may_follow = rules.options.tcp.create_on != "syn"
        self._reads_server = bool(server_readers(rules))
        needed = [dissector for dissector in DISSECTORS if dissector.name in rules.dissectors]
        self._by_transport = {
            int(transport): [dissector for dissector in needed if transport in dissector.transports]
            for transport in (Transport.TCP, Transport.UDP)
        }

    def reads(self, proto: int) -> bool:
        """Whether any dissector that the rules need reads this transport."""
        return bool(self._by_transport.get(proto))

    def finished(self, flow: Flow) -> bool:
        """Whether no further message can come of the flow."""
        if flow.sessions is not None:
            return not flow.sessions
        if not self.reads(flow.tuple.proto):
            return True
        return flow.tuple.proto == _TCP and flow.tcb is None and not self._may_follow

    def ready(self, flow: Flow) -> bool:
        """Whether this censor looks at payload of the flow yet: some wait for the whole handshake."""
        return self._options.tcp.handshake == "none" or (flow.tcb is not None and flow.tcb.ready)

    def read(self, packet: Packet, flow: Flow, direction: Direction) -> list[Message]:
        """The messages that this packet completes, each with `protocol` among its facts."""
        if packet.proto == _TCP:
            return self._read_segment(packet, flow, direction)
        if packet.proto == _UDP and packet.payload and flow.sessions != ():
            return self._read_datagram(packet, flow, direction)
        return []

    def _read_segment(self, packet: Packet, flow: Flow, direction: Direction) -> list[Message]:
        tcp = self._options.tcp
        if flow.tcb is None or flow.tcb.torn_down:
            if flow.tcb is not None:
                if not self._may_follow:
                    flow.sessions = ()
                    return []
                flow.read_anew()
            if not Tcb.created_by(packet, tcp):
                return []
            flow.tcb = Tcb(tcp, self._rng)
        data = flow.tcb.read(packet, direction, flow.last)
        if not data or (direction is _TO_CLIENT and not self._reads_server):
            return []
        if tcp.reassembly == "none":
            return self._read_alone(packet, flow, direction)
        if tcp.reassembly == "first_segment" and flow.payloads[direction_index(direction)] > 1:
            # A server that speaks first, and at length, does not hide what its client says.
            return self._give_up(flow) if flow.payloads[0] else []
        room = tcp.inspect - flow.inspect(direction, len(data))
        kept = flow.excerpt(direction)
        if len(kept) < KEPT_BYTES:
            flow.keep(direction, kept + data[: KEPT_BYTES - len(kept)])
        messages = self._feed(flow, direction, data[:room]) if room > 0 else []
        return messages if len(data) <= room else messages + self._give_up(flow)

    @staticmethod
    def _give_up(flow: Flow) -> list[Message]:
        """Nothing more is read: a protocol that nobody recognised so far is unknown for good."""
        undecided = bool(flow.sessions) and not flow.confirmed
        flow.sessions = ()
        return [UNKNOWN] if undecided else []

    def _read_alone(self, packet: Packet, flow: Flow, direction: Direction) -> list[Message]:
        """Each segment by itself, as if the stream began and ended with it."""
        flow.sessions = None
        flow.keep(direction, packet.payload[:KEPT_BYTES])
        messages = self._feed(flow, direction, packet.payload)
        messages += self._give_up(flow)
        flow.sessions = None
        return messages

    def _read_datagram(self, packet: Packet, flow: Flow, direction: Direction) -> list[Message]:
        flow.keep(direction, packet.payload[:KEPT_BYTES])
        return self._feed(flow, direction, packet.payload)

    def _feed(self, flow: Flow, direction: Direction, data: bytes) -> list[Message]:
        sessions: Sequence[tuple[Dissector, Session | None]]
        if flow.sessions is None:
            sessions = [(dissector, None) for dissector in self._by_transport.get(flow.tuple.proto, [])]
        else:
            sessions = flow.sessions
        alive = []
        for dissector, opened in sessions:
            # Opened one by one, since the first that recognises its protocol ends the search.
            session = dissector.open(self._options.dissect) if opened is None else opened
            outcome = session.feed(direction, data)
            if isinstance(outcome, Reject):
                continue
            if isinstance(outcome, Confirm):
                flow.protocol = dissector.name
                flow.confirmed = True
                flow.sessions = () if outcome.final else ((dissector, session),)
                return [_named(message, dissector.name) for message in outcome.messages]
            alive.append((dissector, session))
        flow.sessions = tuple(alive)
        if sessions and not alive and not flow.confirmed:
            return [UNKNOWN]
        return []


def _named(message: Message, protocol: str) -> Message:
    facts = message.facts
    if isinstance(facts, DeferredFacts):
        return Message(facts.plus("protocol", protocol), message.spans, message.query)
    return Message({**facts, "protocol": protocol}, message.spans, message.query)
