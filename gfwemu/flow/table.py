"""The flow table: bounded, least recently used out first, one lifetime for each state."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from gfwemu.flow.flow import Flow, FlowState
from gfwemu.flow.options import FlowOptions
from gfwemu.model import Direction, FiveTuple, Side
from gfwemu.wire.midflow import Ends, ends_of

_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT

Key = tuple[int, bytes, int, bytes, int]
"""The members of a FiveTuple; a plain tuple is made in a fraction of the time, and there is one for each packet."""

_SWEEP = 8
"""Expired flows that one packet may cost at most; more wait for the next."""


class FlowTable:
    """Flows by five-tuple, found from both directions. Ended flows are handed to the caller, never lost.

    sweep_at: no flow ends before that, so `sweep` has nothing to do until then. by_ends: flows that were given to
    `add_ends`, and the direction of a packet with these ends.
    """

    def __init__(self, options: FlowOptions, flow_ids: Iterator[int] | None = None) -> None:
        self._options = options
        self._by_tuple: dict[Key, Flow] = {}
        self._by_alias: dict[Key, Flow] = {}
        self.by_ends: dict[Ends, tuple[Flow, Direction]] = {}
        self._by_state: dict[FlowState, OrderedDict[int, Flow]] = {state: OrderedDict() for state in FlowState}
        self._flow_ids = itertools.count(1) if flow_ids is None else flow_ids
        self.sweep_at = 0.0
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
        self._shortest = min(self._lifetimes.values())
        self.sweep_at = 0.0

    def __len__(self) -> int:
        return len(self._by_tuple)

    def __iter__(self) -> Iterator[Flow]:
        for flows in self._by_state.values():
            yield from flows.values()

    def find(self, key: Key) -> tuple[Flow, Direction] | None:
        """The flow of a packet with that five-tuple, and the packet's direction in it.

        A flow between equal endpoints (both address and port) has but one key: it is the client's.
        """
        flow = self._by_tuple.get(key)
        if flow is not None:
            return flow, _TO_SERVER
        proto, src, sport, dst, dport = key
        flow = self._by_tuple.get((proto, dst, dport, src, sport))
        if flow is None and self._by_alias:
            flow = self._by_alias.get(key)
        return None if flow is None else (flow, _TO_CLIENT)

    def expired(self, flow: Flow, now: float) -> bool:
        return now - flow.last > self._lifetimes[flow.state]

    def add(self, key: FiveTuple, side: Side | None, now: float, state: FlowState) -> tuple[Flow, list[Flow]]:
        """A new flow, and those that had to go for it where the table was full. `key`: client to server."""
        evicted: list[Flow] = []
        while len(self) >= self._options.limit and len(evicted) < _SWEEP and (oldest := self._oldest()) is not None:
            self.remove(oldest)
            evicted.append(oldest)
        flow = Flow(next(self._flow_ids), key, side, now, state)
        self._by_tuple[key] = flow
        self._by_state[state][flow.flow_id] = flow
        return flow, evicted

    def add_alias(self, flow: Flow, key: FiveTuple) -> None:
        """Packets with the reverse of `key` also belong to the flow (its server was replaced)."""
        self._forget_alias(flow)
        flow.alias = key
        self._by_alias[key.reversed()] = flow

    def add_ends(self, flow: Flow) -> None:
        """Has the flow found in `by_ends`, too, as long as it is in the table."""
        if flow.ends is None:
            forth, back = flow.ends = ends_of(flow.tuple), ends_of(flow.tuple.reversed())
            self.by_ends[back] = flow, _TO_CLIENT
            self.by_ends[forth] = flow, _TO_SERVER

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
        if self._by_tuple.get(flow.tuple) is flow:
            del self._by_tuple[flow.tuple]
        self._forget_alias(flow)
        if flow.ends is not None:
            for ends in flow.ends:
                self.by_ends.pop(ends, None)

    def sweep(self, now: float) -> Sequence[Flow]:
        """Removes flows whose lifetime is over, a few at a time, and returns them."""
        ended: list[Flow] = []
        earliest = now + self._shortest
        for state, flows in self._by_state.items():
            lifetime = self._lifetimes[state]
            while flows:
                flow = next(iter(flows.values()))
                if now - flow.last <= lifetime or len(ended) == _SWEEP:
                    earliest = min(earliest, flow.last + lifetime)
                    break
                self.remove(flow)
                ended.append(flow)
        self.sweep_at = earliest
        return ended

    def _forget_alias(self, flow: Flow) -> None:
        if flow.alias is not None and self._by_alias.get(flow.alias.reversed()) is flow:
            del self._by_alias[flow.alias.reversed()]

    def _oldest(self) -> Flow | None:
        heads = [next(iter(flows.values())) for flows in self._by_state.values() if flows]
        return min(heads, key=lambda flow: flow.last, default=None)
