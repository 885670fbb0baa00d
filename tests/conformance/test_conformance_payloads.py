"""What the scripts send: read back by the emulator's own dissectors, which are tested against others' traffic."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.conformance.payloads import build_payload
from gfwemu.conformance.specs import Payload
from gfwemu.dissect.quic_initial import InitialKeys, read_long_header
from gfwemu.dissect.reader import Reader


def build(spec: dict[str, Any], *, stream: bool = True) -> bytes:
    return build_payload(Payload.model_validate(spec), stream=stream)


def test_a_client_hello_is_one_record_with_the_name() -> None:
    data = build({"tls": {"sni": "www.blocked.example"}})
    kind, version, length = struct.unpack_from("!BHH", data)
    assert (kind, version, length) == (22, 0x0301, len(data) - 5)
    assert data[5] == 1
    assert int.from_bytes(data[6:9], "big") == len(data) - 9
    assert b"\x00\x00\x00\x18\x00\x16\x00\x00\x13www.blocked.example" in data


@pytest.mark.parametrize(("records", "sizes"), [([5], [5, None]), ([5, 20], [5, 20, None]), ([5000], [None])])
def test_records_are_cut_as_told(records: list[int], sizes: list[int | None]) -> None:
    whole = build({"tls": {"sni": "www.blocked.example"}})[5:]
    data, found, message = build({"tls": {"sni": "www.blocked.example", "records": records}}), [], b""
    while data:
        length = struct.unpack_from("!H", data, 3)[0]
        found.append(length)
        message += data[5 : 5 + length]
        data = data[5 + length :]
    assert message == whole
    assert [size if size is not None else found[-1] for size in sizes] == found


def test_a_cut_through_the_name_leaves_it_in_no_record() -> None:
    assert b"www.blocked.example" not in build({"tls": {"sni": "www.blocked.example", "records": "sni"}})


@pytest.mark.parametrize("extra", [{"esni": True}, {"esni": True, "esni_type": 0xFF02}, {"ech": True}, {"pad": 1500}])
def test_extensions_stand_in_the_hello(extra: dict[str, Any]) -> None:
    data = build({"tls": extra})
    number = {"esni": extra.get("esni_type", 0xFFCE), "ech": 0xFE0D, "pad": 21}[next(iter(extra))]
    assert struct.pack("!H", number) in data
    assert b"\x00\x00\x00\x18" not in data


def frames_of(datagram: bytes, version: int = 1) -> bytes:
    header = read_long_header(Reader(datagram, "QUIC datagram"), (version,))
    opened = InitialKeys(header.version, header.dcid).open(datagram, header)
    assert opened is not None
    return opened[1]


@pytest.mark.parametrize("version", [1, 0x6B3343CF])
def test_an_initial_can_be_opened(version: int) -> None:
    data = build({"quic": {"sni": "www.blocked.example", "version": version}}, stream=False)
    assert len(data) >= 1150
    frames = frames_of(data, version)
    assert frames[0] == 6
    assert b"www.blocked.example" in frames


@pytest.mark.parametrize(
    ("spec", "first"), [({"first": "padding"}, 0), ({"first": "ping"}, 1), ({"first": "crypto"}, 6)]
)
def test_frames_begin_as_told(spec: dict[str, str], first: int) -> None:
    assert frames_of(build({"quic": {"sni": "www.blocked.example", **spec}}, stream=False))[0] == first


def test_a_split_hello_holds_the_name_in_no_frame() -> None:
    assert b"www.blocked.example" not in frames_of(build({"quic": {"sni": "www.blocked.example", "split": "sni"}}))


@pytest.mark.parametrize("spec", [{"cut": 1}, {"bad_tag": True}, {"keys": 0x6B3343CF}])
def test_broken_initials_do_not_open(spec: dict[str, int]) -> None:
    with pytest.raises((AssertionError, Exception)):
        frames_of(build({"quic": {"sni": "www.blocked.example", **spec}}, stream=False))


def test_dns_has_its_length_over_tcp_only() -> None:
    message = build({"dns": {"name": "www.blocked.example"}}, stream=False)
    assert build({"dns": {"name": "www.blocked.example"}}) == struct.pack("!H", len(message)) + message
    assert message[12:] == b"\x03www\x07blocked\x07example\x00\x00\x01\x00\x01"


def test_a_pointer_leads_to_the_rest_of_the_name() -> None:
    message = build({"dns": {"name": "www.blocked.example", "pointer": True}}, stream=False)
    at = struct.unpack_from("!H", message, 16)[0]
    assert at >> 14 == 3
    assert message[at & 0x3FFF :] == b"\x07blocked\x07example\x00"


def test_http_as_written() -> None:
    spec = {"http": {"host": "a.example", "path": "/x", "headers": ["X: 1"], "after": ["Y: 2"]}}
    assert build(spec) == b"GET /x HTTP/1.1\r\nX: 1\r\nHost: a.example\r\nY: 2\r\n\r\n"
    assert build({"http": {"host": "a.example", "end": False}}).endswith(b"a.example\r\n")


@given(st.integers(30, 400), st.floats(2.5, 5.5), st.integers(1, 5))
def test_random_bytes_have_the_asked_one_bits(length: int, popcount: float, seed: int) -> None:
    data = build({"random": {"length": length, "popcount": popcount, "seed": seed}})
    assert len(data) == length
    assert abs(sum(byte.bit_count() for byte in data) - popcount * length) <= 0.5
    assert not any(0x20 <= byte <= 0x7E for byte in data)


@given(st.integers(40, 400), st.floats(0.0, 0.5), st.integers(1, 5))
def test_random_bytes_have_the_asked_printable_share(length: int, share: float, seed: int) -> None:
    data = build({"random": {"length": length, "printable": share, "seed": seed}})
    assert abs(sum(0x20 <= byte <= 0x7E for byte in data) - share * length) <= 0.5


@pytest.mark.parametrize("run", [5, 20, 21])
def test_a_run_of_printable_bytes_stands_inside(run: int) -> None:
    data = build({"random": {"length": 120, "run": run, "popcount": 4.0}})
    runs, longest = 0, 0
    for byte in data:
        runs = runs + 1 if 0x20 <= byte <= 0x7E else 0
        longest = max(longest, runs)
    assert longest == run
    assert not 0x20 <= data[0] <= 0x7E


def test_impossible_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no such bytes: 400 one-bits in 50 bytes, 25 of them printable"):
        build({"random": {"length": 50, "popcount": 8, "printable": 0.5}})
