"""IP fragments by the censor's policy."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gfwemu.flow.fragments import Complete, Fragments, Refused
from gfwemu.flow.options import FragmentOptions
from gfwemu.model import address_bytes
from gfwemu.wire.packet import Packet

SRC, DST = address_bytes("192.0.2.10"), address_bytes("203.0.113.80")


def fragment(offset: int, data: bytes, more: bool, ip_id: int = 7) -> Packet:
    return Packet(data, 4, SRC, DST, 17, 64, 0, ip_id, False, more, offset, 0)


@given(st.data())
def test_fragments_in_any_order_give_the_datagram(data: st.DataObject) -> None:
    whole = data.draw(st.binary(min_size=9, max_size=80))
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, (len(whole) - 1) // 8), min_size=1)))]
    starts = [cut * 8 for cut in cuts]
    pieces = [
        fragment(start, whole[start:end], end < len(whole))
        for start, end in zip(starts, [*starts[1:], len(whole)], strict=True)
    ]
    fragments = Fragments(FragmentOptions())
    order = data.draw(st.permutations(range(len(pieces))))
    answers = [fragments.add(index, pieces[index], 0.0) for index in order]
    assert answers[:-1] == [None] * (len(pieces) - 1)
    last = answers[-1]
    assert isinstance(last, Complete)
    assert last.payload == whole
    assert last.packet_ids == tuple(order)
    assert len(fragments) == 0


def test_overlap_policies() -> None:
    for policy, expected in (("first", b"AAAAAAAABBBBBBBBDDDDDDDD"), ("last", b"AAAAAAAACCCCCCCCDDDDDDDD")):
        fragments = Fragments(FragmentOptions(on_overlap=policy))  # type: ignore[arg-type]
        assert fragments.add(1, fragment(0, b"A" * 8, True), 0.0) is None
        assert fragments.add(2, fragment(8, b"B" * 8, True), 0.0) is None
        assert fragments.add(3, fragment(8, b"C" * 8, True), 0.0) is None
        answer = fragments.add(4, fragment(16, b"D" * 8, False), 0.0)
        assert isinstance(answer, Complete)
        assert answer.payload == expected
    fragments = Fragments(FragmentOptions(on_overlap="drop"))
    fragments.add(1, fragment(0, b"A" * 8, True), 0.0)
    assert fragments.add(2, fragment(0, b"A" * 8, True), 0.0) == Refused((1, 2))
    assert len(fragments) == 0


def test_the_limit_refuses_all_fragments_of_the_datagram() -> None:
    fragments = Fragments(FragmentOptions(limit=45))
    for index in range(45):
        assert fragments.add(index, fragment(index * 8, b"x" * 8, True), 0.0) is None
    assert fragments.add(45, fragment(45 * 8, b"x" * 8, True), 0.0) == Refused(tuple(range(46)))


def test_time_out_and_bound() -> None:
    fragments = Fragments(FragmentOptions(timeout=5.0, datagrams=2))
    fragments.add(1, fragment(0, b"x" * 8, True, ip_id=1), 0.0)
    fragments.add(2, fragment(0, b"x" * 8, True, ip_id=2), 1.0)
    assert fragments.next_expiry() == 5.0
    assert fragments.expire(4.9) == []
    assert fragments.expire(5.0) == [1]
    fragments.add(3, fragment(0, b"x" * 8, True, ip_id=3), 1.0)
    fragments.add(4, fragment(0, b"x" * 8, True, ip_id=4), 1.0)
    assert fragments.overflow() == [2]
    assert sorted(fragments.drain()) == [3, 4]
    assert fragments.next_expiry() is None


def test_ends_that_contradict_each_other_are_an_overlap() -> None:
    first, short, long = fragment(0, b"A" * 16, True), fragment(8, b"B" * 8, False), fragment(16, b"C" * 8, False)
    beyond = fragment(24, b"D" * 8, True)
    for pieces in ((first, short), (long, fragment(8, b"B" * 4, False)), (long, beyond), (beyond, long)):
        fragments = Fragments(FragmentOptions())
        answers = [fragments.add(number, piece, 0.0) for number, piece in enumerate(pieces)]
        assert isinstance(answers[-1], Refused), pieces
    for policy, expected in (("first", b"A" * 16 + b"C" * 8), ("last", b"A" * 8)):
        fragments = Fragments(FragmentOptions(on_overlap=policy))  # type: ignore[arg-type]
        assert fragments.add(1, long, 0.0) is None
        assert fragments.add(2, fragment(8, b"", False), 0.0) is None
        answer = fragments.add(3, first, 0.0)
        assert isinstance(answer, Complete)
        assert answer.payload == expected


def test_a_datagram_larger_than_any_packet_is_refused() -> None:
    for version, room in ((4, 65_515), (6, 65_535)):
        fragments = Fragments(FragmentOptions())
        fits = fragment(room // 8 * 8, b"x" * (room % 8), False)
        beyond = fragment(room // 8 * 8, b"x" * (room % 8 + 1), False)
        fits.version = beyond.version = version
        assert fragments.add(1, fits, 0.0) is None
        fragments = Fragments(FragmentOptions())
        assert fragments.add(1, beyond, 0.0) == Refused((1,))
