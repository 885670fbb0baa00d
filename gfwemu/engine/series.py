"""Several censors, one behind the other: a packet runs through their boxes in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gfwemu.engine.clock import Clock
from gfwemu.engine.commands import Command, Hold, Report, SetTimer, SetVerdict
from gfwemu.engine.engine import Engine
from gfwemu.engine.events import Event, PacketArrived, ProbeFinished, RulesReplaced, Stopping, TimerFired
from gfwemu.engine.reach import Reach
from gfwemu.engine.records import FlowEnded, MessageSeen
from gfwemu.engine.telling import Teller
from gfwemu.model import Side, Verdict
from gfwemu.rules.compiled import RuleSet
from gfwemu.wire.packet import Packet
from gfwemu.wire.parse import parse_packet


def open_engine(
    rules: RuleSet,
    *,
    time_scale: float = 1.0,
    start_time: float | None = None,
    epoch: float | None = None,
    seed: int | None = None,
    offload: bool = True,
    flow_ids: Iterator[int] | None = None,
) -> Engine | Series:
    """An engine for the rules, or a series of them where the rules stand in several boxes.

    start_time, epoch: what the censor's clock shows at first, and when that is (both real time, now by default).
    """
    clock = Clock(time_scale, start_time, epoch)
    engine = Engine(rules.split()[0], clock=clock, seed=seed, offload=offload, flow_ids=flow_ids)
    return Series(rules, engine) if rules.boxes else engine


def widened(censor: Engine | Series, rules: RuleSet) -> Engine | Series:
    """The censor, able to take these rules next: an engine becomes part of a series where they stand in boxes."""
    return Series(rules, censor) if rules.boxes and isinstance(censor, Engine) else censor


@dataclass(slots=True)
class _Transit:
    """A packet on its way through the boxes.

    offload: every box so far would let the kernel answer for the flow; bulk: or asks for nothing but headers and sizes
    of it; spare_answers: or does not look at the server's DNS answers; queue_all: one of them must see all of its
    packets. length: as of the event. messages: the protocols of
    those that each box read off the packet.
    """

    came_from: Side | None
    data: bytes
    parsed: Packet | None
    length: int
    offload: bool = True
    bulk: bool = True
    queue_all: bool = False
    spare_answers: bool = True
    changed: bool = False
    held: bool = False
    reason: str = ""
    messages: dict[str, list[str]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Box:
    """`number`: its place in the series."""

    number: int
    name: str
    engine: Engine
    reach: Reach
    wish: float | None = None


class Series:
    """Boxes in series, each an engine with its own flows, streams, decisions and residual blocks.

    - A drop by one box ends the packet; a packet that one holds goes on to the next when it is released.
    - Changed data goes on changed. Injected packets meet no box.
    - The kernel may answer for a flow where each box that its packet met would let it.
    - A box whose rules cannot concern a packet is left out.
    - A message that several boxes read off one packet, and the end of a flow, are told once.
    """

    def __init__(self, rules: RuleSet, engine: Engine) -> None:
        """engine: of one of the boxes, the others are made after it; it may have worked alone up to now."""
        self._model = engine
        self._started = False
        self._now = 0.0
        self._boxes: list[_Box] = []
        for number, own in enumerate(rules.split()):
            present = engine.box == own.box
            self._boxes.append(_Box(number, own.box, engine if present else engine.twin(own), Reach(own.rules)))
        self._on_error = Verdict(rules.on_error)
        self._transits: dict[int, _Transit] = {}
        self._orders: deque[tuple[_Box, Event | Command, int | None]] = deque()
        self._arrival: int | None = None
        self._told = Teller()
        self._timer_wish: float | None = None
        self._unsent: list[Command] = []

    @property
    def flow_count(self) -> int:
        """Of the box that remembers the most: flows that several boxes see are not told apart."""
        return max(box.engine.flow_count for box in self._boxes)

    @property
    def held_count(self) -> int:
        return len(self._transits)

    def handle(self, event: Event) -> list[Command]:
        """As `Engine.handle`: takes one event; returns what to do about it, in order.

        What a failed call left undone comes with the next one.
        """
        self._now = event.now
        if not self._started:
            # An engine's clock runs from its first event, and that of all boxes must be the same.
            self._started = True
            for box in self._boxes:
                self._run(box, TimerFired(event.now))
        self._arrival = None
        match event:
            case PacketArrived():
                self._arrival = event.packet_id
                parsed = _whole(event.packet, event.data)
                self._transits[event.packet_id] = _Transit(event.came_from, event.data, parsed, event.length)
                self._pass_on(event.packet_id, self._boxes)
            case RulesReplaced():
                self._replace(event)
            case _:
                if isinstance(event, TimerFired):
                    self._timer_wish = None
                self._orders.extend((box, event, None) for box in self._boxes)
        while self._orders:
            box, order, packet_id = self._orders.popleft()
            if isinstance(order, PacketArrived | TimerFired | RulesReplaced | Stopping | ProbeFinished):
                self._run(box, order)
            else:
                self._obey(box, order, packet_id)
        if isinstance(event, Stopping):
            self._unsent.extend(self._told.rest())
        wish = min((box.wish for box in self._boxes if box.wish is not None), default=None)
        if wish != self._timer_wish:
            self._timer_wish = wish
            self._unsent.append(SetTimer(wish))
        commands, self._unsent = self._unsent, []
        return commands

    def _run(self, box: _Box, event: Event) -> None:
        """One event for one box; what it orders is next."""
        packet_id = event.packet_id if isinstance(event, PacketArrived) else None
        if isinstance(event, TimerFired):
            box.wish = None
        try:
            orders = box.engine.handle(event)
        except Exception:
            # The caller answers for the packet that arrived; any other would be lost.
            if self._arrival is not None:
                self._transits.pop(self._arrival, None)
            if packet_id is not None and packet_id != self._arrival:
                del self._transits[packet_id]
                self._unsent.append(SetVerdict(packet_id, self._on_error, reason="on_error"))
            raise
        self._orders.extendleft((box, order, packet_id) for order in reversed(orders))

    def _obey(self, box: _Box, order: Command, packet_id: int | None) -> None:
        """One order of one box. packet_id: of the packet on whose arrival there the box gave it."""
        match order:
            case SetVerdict():
                self._answered(box, order)
            case Hold():
                transit = self._transits.get(order.packet_id)
                if transit is None or not transit.held:
                    self._unsent.append(order)
                if transit is not None:
                    transit.held = True
            case SetTimer():
                box.wish = order.at
            case Report():
                self._report(box, order.record, packet_id)
            case _:
                self._unsent.append(order)

    def _answered(self, box: _Box, order: SetVerdict) -> None:
        """The box is done with the packet, which goes on to the next one unless it is dropped."""
        transit = self._transits.get(order.packet_id)
        if transit is None:
            self._unsent.append(order)
            return
        transit.bulk = transit.bulk and (order.bulk or order.offload)
        transit.offload = transit.offload and order.offload
        transit.queue_all = transit.queue_all or order.queue_all
        transit.spare_answers = transit.spare_answers and (order.spare_answers or order.offload)
        if order.reason:
            transit.reason = f"{transit.reason}; {order.reason}" if transit.reason else order.reason
        if order.data is not None:
            transit.data, transit.length, transit.changed = order.data, 0, True
            transit.parsed = _whole(None, order.data)
        if order.verdict is Verdict.ACCEPT:
            self._pass_on(order.packet_id, self._boxes[box.number + 1 :])
        else:
            self._settle(order.packet_id, order.verdict)

    def _pass_on(self, packet_id: int, boxes: Sequence[_Box]) -> None:
        """Gives the packet to the first of these boxes that it concerns; behind the last it has its verdict."""
        transit = self._transits[packet_id]
        for box in boxes:
            if transit.parsed is None or box.reach.concerns(transit.parsed):
                parsed, side = transit.parsed, transit.came_from
                event = PacketArrived(packet_id, transit.data, self._now, side, parsed, transit.length)
                self._orders.appendleft((box, event, None))
                return
        self._settle(packet_id, Verdict.ACCEPT)

    def _settle(self, packet_id: int, verdict: Verdict) -> None:
        transit = self._transits.pop(packet_id)
        data = transit.data if transit.changed and verdict is Verdict.ACCEPT else None
        self._unsent.append(
            SetVerdict(
                packet_id,
                verdict,
                data,
                transit.offload,
                transit.reason,
                bulk=transit.bulk and not transit.offload,
                queue_all=transit.queue_all,
                spare_answers=transit.spare_answers and not transit.offload,
            )
        )

    def _report(self, box: _Box, record: Any, packet_id: int | None) -> None:
        if isinstance(record, FlowEnded):
            alive = any(one is not box and one.engine.knows(record.flow.tuple) for one in self._boxes)
            self._unsent.extend(self._told.ended(record, box.name, alive=alive))
            return
        transit = None if packet_id is None else self._transits.get(packet_id)
        if isinstance(record, MessageSeen) and transit is not None:
            read = transit.messages.setdefault(box.name, [])
            read.append(record.flow.protocol)
            count = read.count(record.flow.protocol)
            others = (read for name, read in transit.messages.items() if name != box.name)
            if any(read.count(record.flow.protocol) >= count for read in others):
                return
        self._unsent.append(self._told.named(record))

    # -- rules --------------------------------------------------------------------------------------------------

    def _replace(self, event: RulesReplaced) -> None:
        """Boxes keep what they remember by their names; what one that is gone held goes on behind the last."""
        former = {box.name: box for box in self._boxes}
        self._boxes = []
        for number, own in enumerate(event.rules.split()):
            box = former.pop(own.box, None) or _Box(number, own.box, self._model.twin(own), Reach(own.rules))
            box.number, box.reach = number, Reach(own.rules)
            self._boxes.append(box)
            self._orders.append((box, RulesReplaced(own, event.now), None))
        for box in former.values():
            box.number = len(self._boxes)
            self._orders.append((box, Stopping(event.now), None))
        self._on_error = Verdict(event.rules.on_error)


def _whole(packet: Packet | None, data: bytes) -> Packet | None:
    """The packet parsed, None where it is a fragment or cannot be read, so that each box sees for itself."""
    parsed = packet or parse_packet(data)
    return parsed if isinstance(parsed, Packet) and not parsed.is_fragment else None
