"""Which flow a packet belongs to, who opened it, and when a new one begins."""

from __future__ import annotations

from gfwemu.engine.facts import in_networks
from gfwemu.flow.flow import Flow, FlowState
from gfwemu.flow.table import FlowTable
from gfwemu.model import Direction, Side, Transport
from gfwemu.rules.compiled import RuleSet
from gfwemu.wire.packet import Packet, TcpFlags

_SYN, _ACK, _CLOSES = int(TcpFlags.SYN), int(TcpFlags.ACK), int(TcpFlags.FIN | TcpFlags.RST)
_FIRST_STATE = {int(Transport.TCP): FlowState.OPENING, int(Transport.UDP): FlowState.UDP}


class FlowKeeper:
    """Finds or makes the flow of each packet. Times are the censor's clock."""

    def __init__(self, rules: RuleSet) -> None:
        self.table = FlowTable(rules.options.flows)
        self._inside = rules.inside

    def load(self, rules: RuleSet) -> None:
        self.table.resize(rules.options.flows)
        self._inside = rules.inside

    def find(
        self, packet: Packet, now: float, came_from: Side | None
    ) -> tuple[Flow, Direction, list[tuple[Flow, str]]]:
        """The packet's flow and direction, and the flows that ended for it, each with the reason."""
        key = packet.five_tuple
        ended: list[tuple[Flow, str]] = []
        found = self.table.find(key)
        if found is not None:
            flow, direction = found
            expired = self.table.expired(flow, now)
            if not expired and not _begins_anew(flow, direction, packet):
                return flow, direction, ended
            self.table.remove(flow)
            ended.append((flow, "timeout" if expired else "closed"))
        side = came_from if came_from is not None else self._side_of(packet)
        from_client = not _comes_from_server(packet, side)
        opener = side if from_client or side is None else side.opposite
        state = _FIRST_STATE.get(packet.proto, FlowState.OTHER)
        flow, evicted = self.table.add(key if from_client else key.reversed(), opener, now, state)
        if evicted is not None:
            ended.append((evicted, "evicted"))
        if _is_first_syn(packet):
            flow.client_isn = packet.seq
        return flow, Direction.TO_SERVER if from_client else Direction.TO_CLIENT, ended

    def advance(self, flow: Flow, packet: Packet, direction: Direction) -> None:
        """Books the packet in the flow's state, which decides its lifetime."""
        state = flow.state
        if packet.proto == Transport.TCP:
            if packet.flags & _CLOSES:
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
    """A SYN with a new sequence number on a flow that is over, or whose end the censor could not see."""
    if direction is not Direction.TO_SERVER or not _is_first_syn(packet) or flow.client_isn == packet.seq:
        return False
    offloaded = flow.decision is not None and flow.decision.offloaded
    return flow.client_isn is None or flow.state is FlowState.CLOSING or offloaded


def _comes_from_server(packet: Packet, side: Side | None) -> bool:
    """Only the first packet of a TCP flow whose beginning was not seen can be the server's."""
    if packet.proto != Transport.TCP or _is_first_syn(packet):
        return False
    return bool(packet.flags & _SYN) or side is Side.OUTSIDE
