from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.utils import PcapNgReader

from gfwemu.model import Side
from gfwemu.report.pcapng import PcapngWriter

V4 = bytes(IP(src="192.0.2.1", dst="198.51.100.1") / TCP(sport=40000, dport=443, flags="S"))
V6 = bytes(IPv6(src="2001:db8::1", dst="2001:db8:1::1") / TCP(sport=443, dport=40000, flags="R"))
START = 1_767_323_045.25

FIELDS = [
    "frame.time_epoch",
    "frame.interface_name",
    "frame.interface_description",
    "frame.comment",
    "frame.packet_flags",
]


def sample(path: Path) -> None:
    with path.open("wb") as stream:
        writer = PcapngWriter(stream)
        writer.write(V4, START, came_from=Side.INSIDE)
        writer.write(V4, START + 0.000001, came_from=Side.OUTSIDE, comment="dropped by sni-news")
        writer.write(V6, START + 1, came_from=None, comment="sni-news: reset to the client", injected=True)
        writer.write(V6[:-1], START + 2, came_from=None, comment="ü ✓")


def tshark(path: Path, *fields: str) -> list[list[str]]:
    wanted = [part for field in fields for part in ("-e", field)]
    done = subprocess.run(
        ["tshark", "-n", "-r", str(path), "-T", "fields", *wanted], capture_output=True, text=True, check=True
    )
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.mark.needs("tshark")
def test_tshark_reads_everything_back(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    sample(path)
    rows = tshark(path, *FIELDS)
    inside, outside, injected, unknown = rows
    assert inside == [
        "1767323045.250000000",
        "inside",
        "the firewall's side where the subscribers are",
        "",
        "0x00000001",
    ]
    assert outside[:2] == ["1767323045.250001000", "outside"]
    assert outside[3:] == ["dropped by sni-news", "0x00000001"]
    assert injected[1:] == [
        "injected",
        "packets that the emulated censor forged",
        "sni-news: reset to the client",
        "0x00000002",
    ]
    assert unknown[1] == "unknown"
    assert unknown[3:] == ["ü ✓", ""]
    assert [row[0] for row in tshark(path, "tcp.dstport")] == ["443", "443", "40000", "40000"]


def test_scapy_reads_the_packets_back(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    sample(path)
    with PcapNgReader(str(path)) as reader:
        packets = list(reader)
    assert [bytes(packet) for packet in packets] == [V4, V4, V6, V6[:-1]]
    assert [packet.sniffed_on for packet in packets] == ["inside", "outside", "injected", "unknown"]
    assert packets[1].comments == [b"dropped by sni-news"]
    assert float(packets[1].time) == pytest.approx(START + 0.000001, abs=1e-7)


class Torn(io.BytesIO):
    """Remembers what had reached the disk at each flush, and how much was written in one go."""

    def __init__(self) -> None:
        super().__init__()
        self.whole: list[int] = []

    def flush(self) -> None:
        self.whole.append(len(self.getvalue()))


def test_every_write_leaves_a_valid_file(tmp_path: Path) -> None:
    stream = Torn()
    writer = PcapngWriter(stream)
    for count in range(5):
        writer.write(V4, START + count, came_from=Side.INSIDE, comment="x" * count)
        assert stream.whole[-1] == len(stream.getvalue())
    path = tmp_path / "x.pcapng"
    for count, length in enumerate(stream.whole):
        path.write_bytes(stream.getvalue()[:length])
        with PcapNgReader(str(path)) as reader:
            assert [bytes(packet) for packet in reader] == [V4] * count


def test_a_comment_longer_than_an_option_is_cut_between_characters(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    with path.open("wb") as stream:
        PcapngWriter(stream).write(V4, START, came_from=None, comment="ü" * 40_000)
    with PcapNgReader(str(path)) as reader:
        (packet,) = list(reader)
    assert packet.comments == [("ü" * 32_767).encode()]


@given(st.binary(max_size=100), st.text(max_size=40), st.booleans())
def test_blocks_are_whole_words_long(data: bytes, comment: str, injected: bool) -> None:
    stream = io.BytesIO()
    writer = PcapngWriter(stream)
    before = len(stream.getvalue())
    writer.write(data, START, came_from=Side.INSIDE, comment=comment, injected=injected)
    block = stream.getvalue()[before:]
    assert len(block) % 4 == 0
    assert block[4:8] == block[-4:] == len(block).to_bytes(4, "little")
    assert block[28 : 28 + len(data)] == data


def test_packets_that_may_wait_go_out_together() -> None:
    at_once, together = io.BytesIO(), io.BytesIO()
    writers = PcapngWriter(at_once), PcapngWriter(together, each=False)
    for number in range(5):
        for writer in writers:
            writer.write(bytes([0x45, number]), 1.0, came_from=None)
    assert together.getvalue() == b""
    writers[1].flush()
    assert together.getvalue() == at_once.getvalue()
