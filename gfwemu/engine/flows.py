"""Which flow a packet belongs to, who opened it, and when a new one begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gfwemu.engine.facts import in_networks
from gfwemu.flow.flow import Flow, FlowState, direction_index
from gfwemu.flow.table import FlowTable
from gfwemu.model import Direction, Side, Transport
from gfwemu.rules.compiled import RuleSet
from gfwemu.wire.packet import Packet, TcpFlags

_SYN, _ACK = int(TcpFlags.SYN), int(TcpFlags.ACK)
_FIN, _RST = int(TcpFlags.FIN), int(TcpFlags.RST)
_BOTH_CLOSED = 3
_FIRST_STATE = {int(Transport.TCP): FlowState.OPENING, int(Transport.UDP): FlowState.UDP}


class FlowKeeper:
    """Finds or makes the flow of each packet. Times are the censor's clock."""

    def __init__(self, rules: RuleSet, flow_ids: Iterator[int]) -> None:
        self.table = FlowTable(rules.options.flows, flow_ids)
        self._inside = rules.inside

    def load(self, rules: RuleSet) -> None:
        self.table.resize(rules.options.flows)
        self._inside = rules.inside

    def find(
        self, packet: Packet, now: float, came_from: Side | None
    ) -> tuple[Flow, Direction, Sequence[tuple[Flow, str]]]:
        """The packet's flow and direction, and the flows that ended for it, each with the reason."""
        key = packet.five_tuple
        found = self.table.find(key)
        expired = found is not None and self.table.expired(found[0], now)
        if found is not None and not expired and not _begins_anew(found[0], found[1], packet):
            return found[0], found[1], ()
        ended: list[tuple[Flow, str]] = []
        if found is not None:
            self.table.remove(found[0])
            ended.append((found[0], "timeout" if expired else "closed"))
        side = came_from if came_from is not None else self._side_of(packet)
        from_client = not _comes_from_server(packet, side)
        opener = side if from_client or side is None else side.opposite
        state = _FIRST_STATE.get(packet.proto, FlowState.OTHER)
        flow, evicted = self.table.add(key if from_client else key.reversed(), opener, now, state)
        ended.extend((gone, "evicted") for gone in evicted)
        if _is_first_syn(packet):
            flow.client_isn = packet.seq
        return flow, Direction.TO_SERVER if from_client else Direction.TO_CLIENT, ended

    def advance(self, flow: Flow, packet: Packet, direction: Direction) -> None:
        """Books the packet in the flow's state, which decides its lifetime."""
        state = flow.state
        if packet.proto == Transport.TCP:
            if packet.flags & _FIN:
                flow.fins |= 1 << direction_index(direction)
            if packet.flags & _RST or flow.fins == _BOTH_CLOSED:
                state = FlowState.CLOSING
            elif (
                state is FlowState.OPENING
                and not packet.flags & _SYN
                and (direction is Direction.TO_SERVER or packet.payload)
            ):
                state = FlowState.ESTABLISHED
        self.table.touch(flow, state)

    def _side_of(self, packet: Packet) -> Side | None:
        if not self._inside:
            return None
        return Side.INSIDE if in_networks(packet.src, self._inside) else Side.OUTSIDE


def _is_first_syn(packet: Packet) -> bool:
    return packet.proto == Transport.TCP and packet.flags & (_SYN | _ACK) == _SYN


def _begins_anew(flow: Flow, direction: Direction, packet: Packet) -> bool:
    """A SYN with a new sequence number on a flow that is over, or whose end the censor need not have seen."""
    if not _is_first_syn(packet):
        return False
    over = flow.state is FlowState.CLOSING or (flow.decision is not None and flow.decision.settled)
    if direction is Direction.TO_CLIENT:
        return over
    return flow.client_isn != packet.seq and (over or flow.client_isn is None)


def _comes_from_server(packet: Packet, side: Side | None) -> bool:
    """Only the first packet of a TCP flow whose beginning was not seen can be the server's.

    That is a guess: servers are outside, and where nothing is known of sides, they have the lower port.
    """
    if packet.proto != Transport.TCP or _is_first_syn(packet):
        return False
    if packet.flags & _SYN:
        return True
    return packet.sport < packet.dport if side is None else side is Side.OUTSIDE
