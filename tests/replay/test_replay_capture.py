from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest
from captures import Record, block, enhanced, frames, interface, pcap, section, simple
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import RawPcapWriter

from gfwemu.replay.frames import CaptureError, Frame

TIMES = st.integers(min_value=0, max_value=4_000_000_000_000_000).map(lambda us: us / 1_000_000)
RECORDS = st.lists(st.tuples(TIMES, st.binary(max_size=80)), max_size=5)


def told(data: bytes) -> list[Record]:
    return [(frame.time, frame.data) for frame in frames(data)]


@given(RECORDS, st.sampled_from("<>"), st.booleans())
def test_pcap_in_both_byte_orders_and_resolutions(records: list[Record], order: str, nano: bool) -> None:
    read = frames(pcap(records, order=order, nano=nano, link=113))
    assert [frame.data for frame in read] == [data for _, data in records]
    assert [frame.time for frame in read] == pytest.approx([time for time, _ in records], abs=1e-6)
    assert [frame.number for frame in read] == list(range(1, len(records) + 1))
    assert all(frame.link_type == 113 for frame in read)


@given(RECORDS, st.sampled_from("<>"))
def test_pcapng_in_both_byte_orders(records: list[Record], order: str) -> None:
    data = section(order) + interface(1, order)
    data += b"".join(enhanced(round(time * 1_000_000), packet, order) for time, packet in records)
    read = frames(data)
    assert [frame.data for frame in read] == [packet for _, packet in records]
    assert [frame.time for frame in read] == pytest.approx([time for time, _ in records], abs=1e-6)


def test_offsets_point_at_the_records() -> None:
    data = pcap([(1.0, b"abc"), (2.0, b"defgh")])
    assert [frame.offset for frame in frames(data)] == [24, 24 + 16 + 3]


@pytest.mark.parametrize(
    ("resolution", "offset", "ticks", "expected"),
    [
        (None, None, 1_500_000, 1.5),
        (9, None, 1_500_000_000, 1.5),
        (3, 1000, 1500, 1001.5),
        (0x80 | 10, None, 1536, 1.5),
        (6, -1, 1_500_000, 0.5),
    ],
)
def test_timestamp_resolution_and_offset(
    resolution: int | None, offset: int | None, ticks: int, expected: float
) -> None:
    data = section() + interface(resolution=resolution, offset=offset) + enhanced(ticks, b"x")
    assert told(data) == [(expected, b"x")]


def test_interfaces_sections_and_foreign_blocks() -> None:
    data = section(application="dumpcap") + interface(1, name="eth0") + interface(113, name="any")
    data += block(4, b"name resolution") + block(0x0BAD, b"custom") + block(5, b"statistics!!")
    data += enhanced(2_000_000, b"two", number=1) + simple(b"three")
    data += section(">", "gfwemu 0.1.0") + interface(101, ">", name="inside") + enhanced(4_000_000, b"four", ">")
    read = frames(data)
    assert [(frame.link_type, frame.interface, frame.application) for frame in read] == [
        (113, "any", "dumpcap"),
        (1, "eth0", "dumpcap"),
        (101, "inside", "gfwemu 0.1.0"),
    ]
    assert [(frame.time, frame.data) for frame in read] == [(2.0, b"two"), (2.0, b"three"), (4.0, b"four")]


def test_frames_that_the_snap_length_cut_tell_so() -> None:
    (frame,) = frames(pcap([(1.0, b"abcdef")], cut=2))
    assert (frame.data, frame.original_length) == (b"abcd", 6)


@pytest.mark.needs("editcap")
def test_what_scapy_writes_and_what_editcap_makes_of_it(tmp_path: Path) -> None:
    records = [(1_700_000_000.000001, b"\x45" + bytes(30)), (1_700_000_001.5, b"\x60" + bytes(60))]
    original = tmp_path / "x.pcap"
    with RawPcapWriter(str(original), linktype=101) as writer:
        writer.write_header(b"")
        for time, data in records:
            seconds = int(time)
            writer.write_packet(data, sec=seconds, usec=round((time - seconds) * 1_000_000))
    assert [data for _, data in told(original.read_bytes())] == [data for _, data in records]
    for form in ("pcap", "nsecpcap", "pcapng"):
        other = tmp_path / form
        subprocess.run(["editcap", "-F", form, str(original), str(other)], check=True, capture_output=True)
        assert [data for _, data in told(other.read_bytes())] == [data for _, data in records]
        assert [time for time, _ in told(other.read_bytes())] == pytest.approx([time for time, _ in records])


GOOD = pcap([(1.0, b"abc"), (2.0, b"defgh")])
GOOD_NG = section() + interface() + enhanced(1_000_000, b"abcd") + enhanced(2_000_000, b"efgh")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x.pcap: at byte 0: the file ends inside the file's first four bytes: 4 bytes wanted, 0 left"),
        (b"GIF89a..", "x.pcap: at byte 0: neither pcap nor pcapng (it begins with 47 49 46 38)"),
        (gzip.compress(GOOD, mtime=0), "x.pcap: at byte 0: the file is compressed; unpack it first (gunzip)"),
        (GOOD[:20], "x.pcap: at byte 4: the file ends inside the file header: 20 bytes wanted, 16 left"),
        (GOOD[:4] + b"\x09\0\x04\0" + GOOD[8:], "x.pcap: at byte 4: pcap version 9.4 is not known; version 2 is"),
        (GOOD[:50], "x.pcap: at byte 43: the file ends inside the header of frame 2: 16 bytes wanted, 7 left"),
        (GOOD[:-2], "x.pcap: at byte 59: the file ends inside frame 2: 5 bytes wanted, 3 left"),
        (
            GOOD[:32] + b"\xff\xff\xff\xff" + GOOD[36:],
            "x.pcap: at byte 24: frame 1 claims 4294967295 bytes; the file is damaged here",
        ),
        (GOOD_NG[:10], "x.pcap: at byte 4: the file ends inside a section header: 8 bytes wanted, 6 left"),
        (GOOD_NG[:4] + bytes(24), "x.pcap: at byte 0: a section header without a byte-order mark"),
        (section(major=2), "x.pcap: at byte 0: pcapng version 2.0 is not known; version 1 is"),
        (GOOD_NG[:-6], "x.pcap: at byte 92: the file ends inside a block: 24 bytes wanted, 22 left"),
        (
            GOOD_NG[:-4] + b"\x20\0\0\0",
            "x.pcap: at byte 84: a block is 36 bytes at its head and 32 at its end; damaged here",
        ),
        (
            section() + block(6, bytes(20))[:4] + b"\x0d\0\0\0" + bytes(30),
            "x.pcap: at byte 28: a block claims 13 bytes; the file is damaged here",
        ),
        (
            section() + enhanced(1, b"x"),
            "x.pcap: at byte 28: a packet of interface 0, which the file does not describe",
        ),
        (
            section() + interface() + block(6, b"short"),
            "x.pcap: at byte 48: a block is shorter than what it must hold; the file is damaged here",
        ),
        (
            section() + interface(resolution=0) + enhanced(1 << 60, b"x"),
            "x.pcap: at byte 60: the timestamp of frame 1 is out of range",
        ),
        (
            section() + interface(offset=-9) + enhanced(1, b"x"),
            "x.pcap: at byte 64: the timestamp of frame 1 is out of range",
        ),
    ],
)
def test_damage_is_told_with_its_place(data: bytes, message: str) -> None:
    with pytest.raises(CaptureError) as caught:
        frames(data)
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


MUTATIONS = st.lists(st.tuples(st.integers(min_value=0, max_value=200), st.integers(min_value=0, max_value=255)))


@given(st.sampled_from([GOOD, GOOD_NG]), MUTATIONS, st.integers(min_value=0, max_value=200), st.binary(max_size=40))
def test_any_bytes_are_frames_or_one_clear_error(
    good: bytes, mutations: list[tuple[int, int]], end: int, rubbish: bytes
) -> None:
    data = bytearray(good)
    for at, value in mutations:
        data[at % len(data)] = value
    for spoilt in (bytes(data), good[:end], good + rubbish, rubbish):
        told_of: list[CaptureError] = []
        read: list[Frame] = []
        try:
            read = frames(spoilt)
        except CaptureError as error:
            told_of.append(error)
        assert sum(len(frame.data) for frame in read) <= len(spoilt)
        assert all("at byte" in str(error) and 0 <= error.offset <= len(spoilt) for error in told_of)
