"""Links by name, and the clock of a pipe."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.errors import UsageError
from gfwemu.netlab.links import LINKS, Link, Pipe, find_link
from gfwemu.netlab.shaper import PipeClock

# sitespeed.io's throttle: down, up (kbit/s), round trip (ms).
PUBLISHED = """
3g 1600/768/150 · 3gfast 1600/768/75 · 3gslow 400/400/200 · 2g 280/256/400 · 4g 9000/9000/85 · lte 12000/12000/35 ·
edge 240/200/420 · cable 5000/1000/14 · dsl 1500/384/25 · dial 49/30/60 · fois 20000/5000/2
"""


def test_the_table_is_the_published_one() -> None:
    published = dict(entry.split() for entry in PUBLISHED.split("·"))
    assert {name: f"{link.down_kbit}/{link.up_kbit}/{link.rtt_ms}" for name, link in LINKS.items()} == published


def test_a_link_is_named_or_given_in_figures() -> None:
    assert find_link("3g") is LINKS["3g"]
    assert find_link("2000/500/80") == Link(2000, 500, 80)
    assert find_link("2000/500/80/2.5%") == Link(2000, 500, 80, 0.025)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3gg", "There is no link '3gg'; did you mean '3g'?"),
        ("modem", "There is no link 'modem'; the names are 3g, 3gfast"),
        ("0/500/80", "carries nothing"),
        ("1/5/80/100%", "carries nothing"),
        ("", "There is no link ''"),
    ],
)
def test_an_unknown_link_is_refused(text: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_link(text)
    assert expected in str(caught.value)


def test_half_the_round_trip_each_way() -> None:
    assert LINKS["3g"].pipe("up", down=False) == Pipe("up", rate=96_000, delay=0.075)
    assert LINKS["3g"].pipe("down", down=True) == Pipe("down", rate=200_000, delay=0.075)


def test_a_packet_takes_its_transmission_time_and_the_delay() -> None:
    clock = PipeClock(Pipe("p", rate=1000, delay=0.5), random.Random(1))
    assert clock.leaves_at(100, 10.0) == pytest.approx(10.6)
    assert clock.leaves_at(100, 10.0) == pytest.approx(10.7)
    assert clock.leaves_at(100, 20.0) == pytest.approx(20.6)


def test_the_tail_is_dropped_when_the_buffer_is_full() -> None:
    clock = PipeClock(Pipe("p", rate=1000, buffer=2.05), random.Random(1))
    kept = [clock.leaves_at(100, 0.0) is not None for _ in range(100)]
    # Those that start within two seconds, at ten a second.
    assert kept == [True] * 21 + [False] * 79


def test_ten_packets_may_always_wait_behind_the_one_under_way() -> None:
    clock = PipeClock(Pipe("p", rate=10, buffer=0.1), random.Random(1))
    assert sum(clock.leaves_at(1500, 0.0) is not None for _ in range(50)) == 11


def test_loss_is_as_frequent_as_asked() -> None:
    clock = PipeClock(Pipe("p", loss=0.1), random.Random(7))
    assert sum(clock.leaves_at(100, 0.0) is None for _ in range(10_000)) == pytest.approx(1000, abs=120)


@given(
    rate=st.none() | st.floats(10, 1e7),
    delay=st.floats(0, 1),
    packets=st.lists(st.tuples(st.integers(20, 1500), st.floats(0, 2)), max_size=60),
)
def test_order_is_kept_and_the_rate_never_exceeded(
    rate: float | None, delay: float, packets: list[tuple[int, float]]
) -> None:
    clock = PipeClock(Pipe("p", rate=rate, delay=delay), random.Random(0))
    now, left = 0.0, []
    for length, pause in packets:
        now += pause
        when = clock.leaves_at(length, now)
        if when is not None:
            assert when >= now + delay
            left.append((length, when))
    for (_, earlier), (length, later) in itertools.pairwise(left):
        assert later >= earlier + (length / rate if rate else 0.0) - 1e-6
