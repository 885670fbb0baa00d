"""Stream reassembly against a naive model, for any segments in any order."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gfwemu.flow.stream import Stream, seq_delta

MODULUS = 1 << 32


@st.composite
def segmentations(draw: st.DrawFn) -> tuple[int, bytes, list[tuple[int, int]]]:
    """A start number, a text, and pieces (start, end) that cover it, in any order, overlapping."""
    text = draw(st.binary(min_size=1, max_size=60))
    start = draw(st.one_of(st.integers(0, MODULUS - 1), st.just(MODULUS - 5)))
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)) | {0, len(text)})
    pieces = [(left, right) for left, right in itertools.pairwise(cuts) if left < right]
    extra = draw(st.lists(st.tuples(st.integers(0, len(text)), st.integers(0, len(text))), max_size=4))
    pieces += [(min(pair), max(pair)) for pair in extra if pair[0] != pair[1]]
    return start, text, draw(st.permutations(pieces))


@given(segmentations(), st.sampled_from(["first", "last"]))
def test_any_cut_in_any_order_gives_the_text(case: tuple[int, bytes, list[tuple[int, int]]], overlap: str) -> None:
    start, text, pieces = case
    stream = Stream(start, overlap, 65_536)  # type: ignore[arg-type]
    out = b"".join(stream.push((start + left) % MODULUS, text[left:right]) for left, right in pieces)
    assert out == text
    assert stream.held == 0
    assert stream.next_seq == (start + len(text)) % MODULUS


def test_first_copy_wins_or_last_copy_wins() -> None:
    for overlap, expected in (("first", b"abBC"), ("last", b"abXY")):
        stream = Stream(0, overlap, 100)  # type: ignore[arg-type]
        assert stream.push(2, b"BC") == b""
        assert stream.push(2, b"XY") == b""
        assert stream.push(0, b"ab") == expected


def test_bytes_already_handed_out_stay() -> None:
    stream = Stream(0, "last", 100)
    assert stream.push(0, b"abc") == b"abc"
    assert stream.push(0, b"XYZd") == b"d"


def test_no_more_waits_above_a_hole_than_the_buffer_holds() -> None:
    stream = Stream(0, "first", 10)
    assert stream.push(5, b"x" * 100) == b""
    assert stream.held == 5
    assert stream.push(50, b"y") == b""
    assert stream.held == 5
    assert stream.push(0, b"abcde") == b"abcdexxxxx"


@given(
    st.lists(st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=20)), max_size=40),
    st.sampled_from(["first", "last"]),
)
def test_held_bytes_are_bounded_and_counted_right(pushes: list[tuple[int, bytes]], overlap: str) -> None:
    stream = Stream(0, overlap, 64)  # type: ignore[arg-type]
    for seq, data in pushes:
        stream.push(seq + 1, data)
        assert 0 <= stream.held <= 64
    assert stream.delivered == 0


def test_sequence_numbers_wrap() -> None:
    assert seq_delta(3, MODULUS - 2) == 5
    assert seq_delta(MODULUS - 2, 3) == -5


def test_the_bound_of_what_waits_never_cuts_what_is_in_order() -> None:
    for overlap in ("first", "last"):
        stream = Stream(0, overlap, 10)  # type: ignore[arg-type]
        assert stream.push(8, b"zz") == b""
        assert stream.push(0, b"abcdefghijklmnopqrst") in (b"abcdefghzzklmnopqrst", b"abcdefghijklmnopqrst")
        assert stream.next_seq == 20
        assert stream.held == 0


class Model:
    """The same by a dictionary of bytes."""

    def __init__(self, overlap: str, buffer: int) -> None:
        self.first = overlap == "first"
        self.buffer = buffer
        self.known: dict[int, int] = {}
        self.next = 0

    def push(self, offset: int, data: bytes) -> bytes:
        above = offset > self.next
        for place, byte in enumerate(data, offset):
            if place < self.next or (above and place >= self.next + self.buffer):
                continue
            if not (self.first and place in self.known):
                self.known[place] = byte
        out = bytearray()
        while self.next in self.known:
            out.append(self.known.pop(self.next))
            self.next += 1
        return bytes(out)


@given(
    st.lists(st.tuples(st.integers(0, 80), st.binary(max_size=25)), max_size=40),
    st.sampled_from(["first", "last"]),
    st.integers(0, 40),
    st.sampled_from([0, MODULUS - 30]),
)
def test_streams_agree_with_a_dictionary_of_bytes(
    pushes: list[tuple[int, bytes]], overlap: str, buffer: int, start: int
) -> None:
    """Segments contradict each other here, and the bound is small."""
    stream, model = Stream(start, overlap, buffer), Model(overlap, buffer)  # type: ignore[arg-type]
    for offset, data in pushes:
        assert stream.push((start + offset) % MODULUS, data) == model.push(offset, data)
        assert stream.held == len(model.known) <= buffer
