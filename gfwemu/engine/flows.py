"""Which flow a packet belongs to, who opened it, and when a new one begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gfwemu.engine.facts import in_networks
from gfwemu.flow.flow import Flow, FlowState, direction_index
from gfwemu.flow.table import FlowTable
from gfwemu.model import Direction, Side, Transport
from gfwemu.rules.compiled import RuleSet
from gfwemu.wire.packet import Packet, TcpFlags

# Members of an enumeration are slow to reach, and there are many packets.
_TCP = int(Transport.TCP)
_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
_OPENING, _ESTABLISHED, _CLOSING = FlowState.OPENING, FlowState.ESTABLISHED, FlowState.CLOSING
_SYN, _ACK = int(TcpFlags.SYN), int(TcpFlags.ACK)
_FIN, _RST = int(TcpFlags.FIN), int(TcpFlags.RST)
_BOTH_CLOSED = 3
_SEQUENCE_MODULUS = 1 << 32
_FIRST_STATE = {_TCP: _OPENING, int(Transport.UDP): FlowState.UDP}


class FlowKeeper:
    """Finds or makes the flow of each packet. Times are the censor's clock."""

    def __init__(self, rules: RuleSet, flow_ids: Iterator[int]) -> None:
        self.table = FlowTable(rules.options.flows, flow_ids)
        self._inside = rules.inside
        self._heeds_synack = rules.options.tcp.create_on != "syn"

    def load(self, rules: RuleSet) -> None:
        self.table.resize(rules.options.flows)
        self._inside = rules.inside
        self._heeds_synack = rules.options.tcp.create_on != "syn"

    def find(
        self, packet: Packet, now: float, came_from: Side | None
    ) -> tuple[Flow, Direction, Sequence[tuple[Flow, str]]]:
        """The packet's flow and direction, and the flows that ended for it, each with the reason."""
        table = self.table
        found = table.find((packet.proto, packet.src, packet.sport, packet.dst, packet.dport))
        ended: list[tuple[Flow, str]] = []
        if found is not None:
            flow, direction = found
            expired = table.expired(flow, now)
            if not expired and not (packet.flags & _SYN and _begins_anew(flow, direction, packet)):
                return flow, direction, ()
            table.remove(flow)
            ended.append((flow, "timeout" if expired else "closed"))
        side = came_from if came_from is not None else self._side_of(packet)
        from_client = not _comes_from_server(packet, side)
        opener = side if from_client or side is None else side.opposite
        state = _FIRST_STATE.get(packet.proto, FlowState.OTHER)
        key = packet.five_tuple
        flow, evicted = table.add(key if from_client else key.reversed(), opener, now, state)
        ended.extend((gone, "evicted") for gone in evicted)
        if _is_first_syn(packet):
            flow.client_isn = packet.seq
        return flow, _TO_SERVER if from_client else _TO_CLIENT, ended

    def advance(self, flow: Flow, packet: Packet, direction: Direction) -> None:
        """Books the packet in the flow's state, which decides its lifetime."""
        state = flow.state
        if packet.proto == _TCP:
            flags = packet.flags
            if flags & _SYN and direction is _TO_CLIENT and flow.client_isn is None:
                self._learn_roles(flow, packet)
            if flags & _FIN:
                flow.fins |= 1 << direction_index(direction)
            if flow.fins == _BOTH_CLOSED or (flags & _RST and (flow.tcb is None or flow.tcb.torn_down)):
                state = _CLOSING
            elif state is _OPENING and not flags & _SYN and (direction is _TO_SERVER or packet.payload):
                state = _ESTABLISHED
        self.table.touch(flow, state)

    def _learn_roles(self, flow: Flow, packet: Packet) -> None:
        """A censor that remembers connections by their SYN/ACK, too, takes its sender for the server from now on.

        Where every rule rules the flow out by its endpoints, that is all it remembers. Of a flow that is settled the
        kernel may have kept such a packet to itself.
        """
        settled = flow.decision is not None and flow.decision.settled
        if self._heeds_synack and packet.flags & _ACK and not settled:
            flow.client_isn = (packet.ack - 1) % _SEQUENCE_MODULUS
            flow.by_synack = True

    def _side_of(self, packet: Packet) -> Side | None:
        if not self._inside:
            return None
        return Side.INSIDE if in_networks(packet.src, self._inside) else Side.OUTSIDE


def _is_first_syn(packet: Packet) -> bool:
    return packet.proto == _TCP and packet.flags & (_SYN | _ACK) == _SYN


def _begins_anew(flow: Flow, direction: Direction, packet: Packet) -> bool:
    """A SYN with a new sequence number on a flow that is over, or whose end or beginning the censor need not have seen.

    What the censor does not remember a connection by says nothing of who is the client.
    """
    if not _is_first_syn(packet):
        return False
    over = flow.state is _CLOSING or (flow.decision is not None and flow.decision.settled)
    if direction is _TO_CLIENT:
        return over or (flow.client_isn is None and flow.tcb is None)
    return flow.client_isn != packet.seq and (over or flow.client_isn is None or flow.by_synack)


def _comes_from_server(packet: Packet, side: Side | None) -> bool:
    """Only the first packet of a TCP flow whose beginning was not seen can be the server's.

    That is a guess: servers are outside, and where nothing is known of sides, they have the lower port.
    """
    if packet.proto != _TCP or _is_first_syn(packet):
        return False
    if packet.flags & _SYN:
        return True
    return packet.sport < packet.dport if side is None else side is Side.OUTSIDE
