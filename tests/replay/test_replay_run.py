from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.engine.commands import Command, Hold, Inject, Report, SetTimer, SetVerdict
from gfwemu.engine.events import Event, PacketArrived, Stopping, TimerFired
from gfwemu.engine.records import EngineFault
from gfwemu.model import Side, Verdict
from gfwemu.replay.frames import CaptureError, Frame
from gfwemu.replay.run import DRAIN_SECONDS, Decided, Replay, comment_of

INSIDE = ((socket.inet_aton("192.0.2.0"), 24),)


def packet(src: str = "192.0.2.2", dst: str = "198.51.100.7") -> bytes:
    return b"\x45" + bytes(11) + socket.inet_aton(src) + socket.inet_aton(dst)


def frame(number: int, time: float, data: bytes | None = None, **members: object) -> Frame:
    data = packet() if data is None else data
    told: dict[str, object] = {"link_type": 101, "original_length": len(data), **members}
    return Frame(number, 100 * number, time, data=data, **told)  # type: ignore[arg-type]


class Scripted:
    """Stands in for the engine: remembers the events, answers as told."""

    def __init__(self, answer: Callable[[Event], list[Command]] | None = None) -> None:
        self.events: list[Event] = []
        self._answer = answer

    def handle(self, event: Event) -> list[Command]:
        self.events.append(event)
        if self._answer is not None:
            return self._answer(event)
        return [SetVerdict(event.packet_id, Verdict.ACCEPT)] if isinstance(event, PacketArrived) else []


class Kept:
    takes_packets = True

    def __init__(self) -> None:
        self.outcomes: list[Decided] = []
        self.commands: list[tuple[Command, float]] = []

    def decided(self, outcome: Decided) -> None:
        self.outcomes.append(outcome)

    def commanded(self, command: Command, now: float) -> None:
        self.commands.append((command, now))


def replayed(frames: list[Frame], engine: Scripted, inside: tuple[tuple[bytes, int], ...] = ()) -> tuple[Replay, Kept]:
    kept = Kept()
    run = Replay(engine, kept, inside=inside)
    run.run(iter(frames), "x.pcap")
    return run, kept


def test_packets_arrive_on_their_own_time_and_the_end_is_told() -> None:
    engine = Scripted()
    run, kept = replayed([frame(1, 5.0), frame(2, 7.5)], engine)
    assert engine.events == [
        PacketArrived(1, packet(), 5.0),
        PacketArrived(2, packet(), 7.5),
        Stopping(7.5 + DRAIN_SECONDS),
    ]
    assert [outcome.now for outcome in kept.outcomes] == [5.0, 7.5]
    assert (run.totals.packets, run.totals.undecided) == (2, 0)


def test_timers_fire_between_packets_at_the_wished_time() -> None:
    wishes = iter([SetTimer(6.0), SetTimer(6.5), SetTimer(None), SetTimer(100.0)])
    engine = Scripted(lambda event: [] if isinstance(event, Stopping) else [next(wishes)])
    replayed([frame(1, 5.0), frame(2, 7.5)], engine)
    assert [(type(event), event.now) for event in engine.events] == [
        (PacketArrived, 5.0),
        (TimerFired, 6.0),
        (TimerFired, 6.5),
        (PacketArrived, 7.5),
        (Stopping, 17.5),
    ]


def test_a_timer_in_the_past_fires_now_and_never_for_ever() -> None:
    engine = Scripted(lambda event: [SetTimer(0.0)] if not isinstance(event, Stopping) else [])
    replayed([frame(1, 5.0), frame(2, 6.0)], engine)
    fired = [event.now for event in engine.events if isinstance(event, TimerFired)]
    assert set(fired) <= {5.0, 6.0}
    assert len(fired) <= 3000


def test_held_packets_get_their_verdict_later() -> None:
    def answer(event: Event) -> list[Command]:
        if isinstance(event, PacketArrived):
            return [Hold(event.packet_id), SetTimer(event.now + 0.25)]
        return [SetVerdict(1, Verdict.DROP, reason="slow: lost")] if isinstance(event, TimerFired) else []

    run, kept = replayed([frame(1, 5.0)], Scripted(answer))
    (outcome,) = kept.outcomes
    assert (outcome.frame.number, outcome.now, outcome.command.verdict) == (1, 5.25, Verdict.DROP)
    assert run.totals.undecided == 0


def test_a_packet_without_a_verdict_is_counted() -> None:
    run, _ = replayed([frame(1, 5.0), frame(2, 5.0)], Scripted(lambda _: []))
    assert run.totals.undecided == 2


def test_injected_packets_after_the_last_one_are_not_lost() -> None:
    def answer(event: Event) -> list[Command]:
        return [Inject(b"rst", "r")] if isinstance(event, TimerFired) else [SetTimer(5.2)]

    _, kept = replayed([frame(1, 5.0)], Scripted(answer))
    assert (Inject(b"rst", "r"), 5.2) in kept.commands


def test_the_clock_never_runs_back() -> None:
    engine = Scripted()
    run, _ = replayed([frame(1, 5.0), frame(2, 4.0), frame(3, 6.0)], engine)
    assert [event.now for event in engine.events[:3]] == [5.0, 5.0, 6.0]
    assert run.totals.backwards == 1


def test_sides_come_from_the_networks_of_the_inside() -> None:
    engine = Scripted()
    frames = [frame(1, 1.0), frame(2, 2.0, packet("198.51.100.7", "192.0.2.2"))]
    _, kept = replayed(frames, engine, INSIDE)
    assert [outcome.came_from for outcome in kept.outcomes] == [Side.INSIDE, Side.OUTSIDE]
    assert isinstance(engine.events[1], PacketArrived)
    assert engine.events[1].came_from is Side.OUTSIDE


def test_an_own_capture_knows_its_sides_and_its_forgeries_are_left_out() -> None:
    engine = Scripted()
    own = {"application": "gfwemu 0.1.0"}
    frames = [
        frame(1, 1.0, interface="outside", **own),
        frame(2, 2.0, interface="injected", **own),
        frame(3, 3.0, interface="unknown", **own),
        frame(4, 4.0, interface="injected"),
    ]
    run, kept = replayed(frames, engine)
    assert [(out.frame.number, out.came_from) for out in kept.outcomes] == [(1, Side.OUTSIDE), (3, None), (4, None)]
    assert run.totals.own_forgeries == 1


def test_frames_without_ip_and_shortened_ones_are_counted() -> None:
    run, kept = replayed([frame(1, 1.0, b"\x00"), frame(2, 1.0, original_length=900), frame(3, 1.0)], Scripted())
    assert [outcome.frame.number for outcome in kept.outcomes] == [2, 3]
    assert (run.totals.frames, run.totals.other, run.totals.cut) == (3, 1, 1)


def test_what_came_before_the_damage_is_told() -> None:
    def frames() -> Iterator[Frame]:
        yield frame(1, 1.0)
        raise CaptureError("x.pcap", 77, "damaged")

    engine, kept = Scripted(), Kept()
    with pytest.raises(CaptureError, match="at byte 77: damaged"):
        Replay(engine, kept).run(frames(), "x.pcap")
    assert [outcome.frame.number for outcome in kept.outcomes] == [1]
    assert isinstance(engine.events[-1], Stopping)


def test_an_unknown_link_type_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"^x.pcap: at byte 100: link type 105 is not supported \(these are: BSD"):
        replayed([frame(1, 1.0, link_type=105)], Scripted())


@pytest.mark.parametrize("on_error", list(Verdict))
def test_an_engines_bug_is_told_and_the_packet_fares_as_the_rules_say(on_error: Verdict) -> None:
    def answer(event: Event) -> list[Command]:
        if isinstance(event, PacketArrived) and event.packet_id == 1:
            raise ZeroDivisionError("oh")
        return [SetVerdict(2, Verdict.ACCEPT)] if isinstance(event, PacketArrived) else []

    kept = Kept()
    Replay(Scripted(answer), kept, on_error=on_error).run([frame(1, 1.0), frame(2, 2.0)], "x.pcap")
    assert [outcome.command.verdict for outcome in kept.outcomes] == [on_error, Verdict.ACCEPT]
    assert (Report(EngineFault(1.0, "ZeroDivisionError: oh")), 1.0) in kept.commands


@pytest.mark.parametrize(
    ("command", "comment"),
    [
        (SetVerdict(1, Verdict.ACCEPT), ""),
        (SetVerdict(1, Verdict.ACCEPT, reason="looked at"), ""),
        (SetVerdict(1, Verdict.DROP), "dropped"),
        (SetVerdict(1, Verdict.DROP, reason="sni-news: flow blocked"), "dropped (sni-news: flow blocked)"),
        (SetVerdict(1, Verdict.ACCEPT, data=b"x", reason="r"), "rewritten (r)"),
    ],
)
def test_comments(command: SetVerdict, comment: str) -> None:
    assert comment_of(command) == comment


@given(st.lists(st.floats(min_value=0, max_value=100), max_size=8), st.floats(min_value=0.1, max_value=30))
def test_time_only_moves_forward_and_every_packet_arrives(times: list[float], period: float) -> None:
    engine = Scripted(lambda event: [SetTimer(event.now + period)] if not isinstance(event, Stopping) else [])
    replayed([frame(number, time) for number, time in enumerate(times, 1)], engine)
    moments = [event.now for event in engine.events]
    assert moments == sorted(moments)
    assert sum(isinstance(event, PacketArrived) for event in engine.events) == len(times)
