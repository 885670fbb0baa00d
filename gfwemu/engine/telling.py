"""What several boxes have to tell of one flow, told as of one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gfwemu.engine.commands import Command, Report
from gfwemu.engine.records import FlowEnded, FlowRef
from gfwemu.model import FiveTuple

_STATES = ("new", "established", "closed")


class Teller:
    """Gives a flow one ID in all boxes, and one end: when the last box that remembers it forgets it."""

    def __init__(self) -> None:
        self._ids: dict[FiveTuple, int] = {}
        self._ends: dict[FiveTuple, list[tuple[str, FlowEnded]]] = {}

    def named(self, record: Any) -> Report:
        """The record under the flow's common ID."""
        flow: FlowRef | None = getattr(record, "flow", None)
        if flow is None:
            return Report(record)
        known = self._ids.setdefault(flow.tuple, flow.flow_id)
        return Report(record if known == flow.flow_id else replace(record, flow=replace(flow, flow_id=known)))

    def ended(self, record: FlowEnded, box: str, *, alive: bool) -> list[Command]:
        """The flow is over in one box. alive: another one still remembers it."""
        key = record.flow.tuple
        self._ends.setdefault(key, []).append((box, record))
        return [] if alive else [self._end(key)]

    def rest(self) -> list[Command]:
        """The ends that were not told yet."""
        return [self._end(key) for key in tuple(self._ends)]

    def _end(self, key: FiveTuple) -> Report:
        report = self.named(_joined(self._ends.pop(key)))
        self._ids.pop(key, None)
        return report


def _joined(ends: list[tuple[str, FlowEnded]]) -> FlowEnded:
    """One record: packets as of the box that saw most of them, what was done to them of all boxes."""
    by_box: dict[str, list[FlowEnded]] = {}
    for box, record in ends:
        by_box.setdefault(box, []).append(record)
    records = [record for _, record in ends]
    if len(records) == 1:
        return records[0]

    def most(field: str) -> int:
        return max(int(sum(getattr(record, field) for record in own)) for own in by_box.values())

    protocols = [record.flow for record in records if record.flow.protocol]
    return replace(
        records[-1],
        flow=protocols[0] if protocols else records[0].flow,
        start=min(record.start for record in records),
        last=max(record.last for record in records),
        packets_to_server=most("packets_to_server"),
        packets_to_client=most("packets_to_client"),
        bytes_to_server=most("bytes_to_server"),
        bytes_to_client=most("bytes_to_client"),
        dropped=sum(record.dropped for record in records),
        injected=sum(record.injected for record in records),
        state=max((record.state for record in records), key=_STATES.index),
        rules=tuple(dict.fromkeys(name for record in records for name in record.rules)),
        facts={name: value for record in reversed(records) for name, value in record.facts.items()},
    )
