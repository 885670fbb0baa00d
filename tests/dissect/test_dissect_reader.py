"""The two meanings of running out of bytes."""

from __future__ import annotations

import pytest

from gfwemu.dissect.reader import MalformedBytes, OutOfBytes, Reader


def test_numbers_are_big_endian() -> None:
    reader = Reader(bytes(range(1, 20)), "test")
    assert (reader.u8(), reader.u16(), reader.u24(), reader.u32()) == (0x01, 0x0203, 0x040506, 0x0708090A)
    assert reader.number(5) == 0x0B0C0D0E0F
    assert (reader.position, reader.remaining) == (15, 4)
    assert reader.peek(2) == b"\x10\x11"
    assert reader.rest() == b"\x10\x11\x12\x13"
    assert reader.rest() == b""


@pytest.mark.parametrize(
    ("data", "value"),
    [  # RFC 9000 appendix A.1
        ("c2197c5eff14e88c", 151_288_809_941_952_652),
        ("9d7f3e7d", 494_878_333),
        ("7bbd", 15_293),
        ("25", 37),
        ("4025", 37),
    ],
)
def test_variable_length_integers(data: str, value: int) -> None:
    reader = Reader(bytes.fromhex(data), "test")
    assert reader.varint() == value
    assert reader.remaining == 0


def test_the_open_end_waits_and_says_for_how_much() -> None:
    reader = Reader(b"\x01\x00\x09abc", "test", open_end=True)
    assert reader.u8() == 1
    for read, wanted in [
        (lambda: reader.vector(2, "field"), 12),
        (lambda: reader.take(7), 8),
        (lambda: reader.skip(9), 10),
        (lambda: reader.number(6), 7),
    ]:
        with pytest.raises(OutOfBytes) as caught:
            read()
        assert caught.value.wanted == wanted
        assert reader.position == 1, "what could not be read stays unread"


def test_an_announced_field_that_is_too_short_is_malformed() -> None:
    whole = Reader(b"\x03abc-rest", "message", open_end=True)
    field = whole.vector(1, "field")
    assert (field.what, field.remaining, whole.position) == ("field", 3, 4)
    with pytest.raises(MalformedBytes, match=r"^field: 4 bytes wanted, 3 left$"):
        field.u32()
    with pytest.raises(MalformedBytes, match=r"^field: 98 bytes wanted, 3 left$"):
        field.vector(1, "inner")
    assert field.position == 1, "what could not be read stays unread"
    with pytest.raises(MalformedBytes, match=r"^field: 3 bytes too many$"):
        field.end()
    assert field.take(3) == b"abc"
    field.end()


def test_positions_count_from_the_start_of_the_data_in_fields_too() -> None:
    inner = Reader(b"..\x05\x03abc.", "message", start=2).vector(1, "outer").vector(1, "inner")
    assert (inner.position, inner.rest()) == (4, b"abc")


@pytest.mark.parametrize("zeros", [0, 1, 255, 256, 257, 1000])
def test_zeros_are_skipped_up_to_the_end_of_the_field(zeros: int) -> None:
    reader = Reader(bytes(zeros) + b"\x01\x00", "test")
    reader.skip_zeros()
    assert reader.rest() == b"\x01\x00"
    closed = Reader(bytes(zeros + 9), "test", end=zeros)
    closed.skip_zeros()
    assert (closed.position, closed.remaining) == (zeros, 0)
