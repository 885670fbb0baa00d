"""The flow table: bounded, least recently used out first, one lifetime for each state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from gfwemu.flow.flow import Flow, FlowState
from gfwemu.flow.options import FlowOptions
from gfwemu.model import Direction, FiveTuple, Side

_SWEEP = 8
"""Expired flows that one packet may cost at most; more wait for the next."""


class FlowTable:
    """Flows by five-tuple, found from both directions. Ended flows are handed to the caller, never lost."""

    def __init__(self, options: FlowOptions) -> None:
        self._options = options
        self._by_tuple: dict[FiveTuple, Flow] = {}
        self._by_state: dict[FlowState, OrderedDict[int, Flow]] = {state: OrderedDict() for state in FlowState}
        self._next_id = 1
        self.resize(options)

    def resize(self, options: FlowOptions) -> None:
        """Takes new bounds and lifetimes; they hold from the next packet on."""
        self._options = options
        self._lifetimes = {
            FlowState.OPENING: options.tcp_opening,
            FlowState.ESTABLISHED: options.tcp_established,
            FlowState.CLOSING: options.tcp_closing,
            FlowState.UDP: options.udp,
            FlowState.OTHER: options.other,
        }

    def __len__(self) -> int:
        return sum(len(flows) for flows in self._by_state.values())

    def __iter__(self) -> Iterator[Flow]:
        for flows in self._by_state.values():
            yield from flows.values()

    def find(self, key: FiveTuple) -> tuple[Flow, Direction] | None:
        """The flow of a packet with that five-tuple, and the packet's direction in it."""
        flow = self._by_tuple.get(key)
        if flow is None:
            return None
        return flow, Direction.TO_SERVER if key == flow.tuple else Direction.TO_CLIENT

    def expired(self, flow: Flow, now: float) -> bool:
        return now - flow.last > self._lifetimes[flow.state]

    def add(self, key: FiveTuple, side: Side | None, now: float, state: FlowState) -> tuple[Flow, Flow | None]:
        """A new flow, and the one that had to go for it where the table was full. `key`: client to server."""
        evicted = self._oldest() if len(self) >= self._options.limit else None
        if evicted is not None:
            self.remove(evicted)
        flow = Flow(self._next_id, key, side, now, state)
        self._next_id += 1
        self._by_tuple[key] = flow
        self._by_tuple[key.reversed()] = flow
        self._by_state[state][flow.flow_id] = flow
        return flow, evicted

    def add_alias(self, flow: Flow, key: FiveTuple) -> None:
        """Packets with the reverse of `key` also belong to the flow (its server was replaced)."""
        flow.alias = key
        self._by_tuple[key.reversed()] = flow

    def touch(self, flow: Flow, state: FlowState) -> None:
        """Marks the flow as just used, in that state."""
        flows = self._by_state[state]
        if state is flow.state:
            flows.move_to_end(flow.flow_id)
            return
        del self._by_state[flow.state][flow.flow_id]
        flow.state = state
        flows[flow.flow_id] = flow

    def remove(self, flow: Flow) -> None:
        del self._by_state[flow.state][flow.flow_id]
        keys = [flow.tuple, flow.tuple.reversed()]
        if flow.alias is not None:
            keys.append(flow.alias.reversed())
        for key in keys:
            if self._by_tuple.get(key) is flow:
                del self._by_tuple[key]

    def sweep(self, now: float) -> list[Flow]:
        """Removes flows whose lifetime is over, a few at a time, and returns them."""
        ended: list[Flow] = []
        for state, flows in self._by_state.items():
            lifetime = self._lifetimes[state]
            while flows and len(ended) < _SWEEP:
                flow = next(iter(flows.values()))
                if now - flow.last <= lifetime:
                    break
                self.remove(flow)
                ended.append(flow)
        return ended

    def _oldest(self) -> Flow | None:
        heads = [next(iter(flows.values())) for flows in self._by_state.values() if flows]
        return min(heads, key=lambda flow: flow.last, default=None)
