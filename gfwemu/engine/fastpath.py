"""Packets of flows that pass for good, where no kernel answers for them: they are only booked."""

from __future__ import annotations

from gfwemu.engine.clock import Clock
from gfwemu.engine.judge import Judge
from gfwemu.engine.timers import Timers
from gfwemu.flow.flow import FlowState
from gfwemu.flow.table import FlowTable
from gfwemu.wire.midflow import midflow_packet

_OPENING = FlowState.OPENING


class FastPath:
    """A way past `Engine.handle` for one engine."""

    def __init__(self, table: FlowTable, judge: Judge, clock: Clock, timers: Timers) -> None:
        self._table = table
        self._judge = judge
        self._clock = clock
        self._timers = timers

    def takes(self, data: bytes, now: float) -> bool:
        """Books an IP packet to which `handle` would have nothing to say but that it passes.

        False, and nothing is done, where `handle` has to see the packet. now: seconds since the epoch.
        """
        packet = midflow_packet(data)
        if packet is None:
            return False
        ends, size, has_payload = packet
        table = self._table
        found = table.by_ends.get(ends)
        if found is None:
            return False
        flow, direction = found
        censor_now = self._clock.censor_time(now)
        if flow.state is _OPENING or not self._judge.passes(flow):
            return False
        due = self._timers.next()
        # No flow has timed out before `sweep_at`.
        if censor_now > table.sweep_at or (due is not None and due <= now):
            return False
        flow.count(direction, size, has_payload, censor_now)
        table.touch(flow, flow.state)
        return True
