"""QUIC Initials: the RFCs' vectors, and ClientHellos in pieces."""

from __future__ import annotations

import os

import pytest
from hello_kit import DCID, NOT_QUIC, ORDINARY, client_hello, crypto, cut, facts_of, initial, reason_of
from hypothesis import given
from hypothesis import strategies as st

from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import Confirm, NeedMore, Outcome, Reject
from gfwemu.dissect.quic import FIELDS, CryptoStream, QuicSession
from gfwemu.dissect.quic_initial import VERSION_1, VERSION_2
from gfwemu.dissect.reader import MalformedBytes
from gfwemu.model import Direction

OPTIONS = DissectOptions()
HELLO = client_hello()
PING, PADDING = b"\x01", bytes(5)
ACK = b"\x02\x05\x00\x01\x02\x00\x01"
ACK_ECN = b"\x03\x05\x00\x00\x02\x08\x09\x0a"

# RFC 9001 appendix A.2 and RFC 9369 appendix A.2 seal the same frames.
RFC_FRAMES = bytes.fromhex(
    "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69484c000004130113"
    "02010000c000000010000e00000b6578616d706c652e636f6dff01000100000a00080006001d00170018001000070005"
    "04616c706e000500050100000000003300260024001d00209370b2c9caa47fbabaf4559fedba753de171fa71f50f1ce1"
    "5d43e994ec74d748002b0003020304000d0010000e0403050306030203080408050806002d00020101001c0002400100"
    "3900320408ffffffffffffffff05048000ffff07048000ffff0801100104800075300901100f088394c8f03e51570806"
    "048000ffff"
).ljust(1162, b"\0")
# Appendix A.3 of both: the server's answer.
RFC_SERVER_PACKETS = {
    VERSION_1: "cf000000010008f067a5502a4262b5004075c0d95a482cd0991cd25b0aac406a5816b6394100f37a1c69797554780bb3"
    "8cc5a99f5ede4cf73c3ec2493a1839b3dbcba3f6ea46c5b7684df3548e7ddeb9c3bf9c73cc3f3bded74b562bfb19fb84022f8ef4cdd9"
    "3795d77d06edbb7aaf2f58891850abbdca3d20398c276456cbc42158407dd074ee",
    VERSION_2: "dc6b3343cf0008f067a5502a4262b5004075d92faaf16f05d8a4398c47089698baeea26b91eb761d9b89237bbf872630"
    "17915358230035f7fd3945d88965cf17f9af6e16886c61bfc703106fbaf3cb4cfa52382dd16a393e42757507698075b2c984c707f0a0"
    "812d8cd5a6881eaf21ceda98f4bd23f6fe1a3e2c43edd9ce7ca84bed8521e2e140",
}


def dissect(data: bytes, options: DissectOptions = OPTIONS) -> Outcome:
    return QuicSession(options).feed(Direction.TO_SERVER, data)


def sni(outcome: Outcome) -> object:
    return facts_of(outcome)["quic.sni"]


@pytest.mark.parametrize(
    ("version", "name", "beginning", "tag"),
    [
        (
            VERSION_1,
            "1",
            "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11",
            "e221af44860018ab0856972e194cd934",
        ),
        (
            VERSION_2,
            "2",
            "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485",
            "a18b2faa745b6fe189cf772a9f84cbfc",
        ),
    ],
)
def test_the_clients_initial_of_the_rfcs(version: int, name: str, beginning: str, tag: str) -> None:
    packet = initial(RFC_FRAMES, version=version, number=2, number_length=4)
    # The tag covers every byte, so that this is the packet of the RFC.
    assert packet.startswith(bytes.fromhex(beginning))
    assert packet.endswith(bytes.fromhex(tag))
    outcome = dissect(packet)
    facts = facts_of(outcome)
    assert facts["quic.sni"] == "example.com"
    assert facts["quic.alpn"] == ("alpn",)
    assert facts["quic.version"] == name
    assert facts["quic.dcid_length"] == 8
    assert facts["quic.ech"] is False
    assert str(facts["quic.ja4"]).startswith("q13d0211an_")
    assert set(facts) == {field.name for field in FIELDS}
    assert isinstance(outcome, Confirm)
    span = outcome.messages[0].spans["quic.sni"]
    # Encryption keeps positions: 22 header bytes before the frames.
    assert RFC_FRAMES[span.offset - 22 :][: span.length] == b"example.com"


@pytest.mark.parametrize("version", RFC_SERVER_PACKETS)
def test_the_servers_initial_of_the_rfcs_is_not_a_clients(version: int) -> None:
    packet = bytes.fromhex(RFC_SERVER_PACKETS[version])
    assert reason_of(dissect(packet)) == "QUIC Initial does not open with the client's keys"
    own = initial(crypto(0, HELLO), version=version, is_client=False)
    assert reason_of(dissect(own)) == "QUIC Initial does not open with the client's keys"
    session = QuicSession(OPTIONS)
    assert isinstance(session.feed(Direction.TO_CLIENT, packet), NeedMore)
    assert sni(session.feed(Direction.TO_SERVER, initial(crypto(0, HELLO), version=version))) == "www.example"


@pytest.mark.parametrize("version", [VERSION_1, VERSION_2])
@pytest.mark.parametrize("number_length", [1, 2, 3, 4])
def test_packet_numbers_tokens_and_connection_ids(version: int, number_length: int) -> None:
    for dcid, scid, token in [(b"", b"", b""), (bytes(20), bytes(20), b""), (DCID, b"", bytes(300))]:
        packet = initial(
            crypto(0, HELLO),
            version=version,
            dcid=dcid,
            scid=scid,
            token=token,
            number=255**number_length,
            number_length=number_length,
        )
        facts = facts_of(dissect(packet))
        assert (facts["quic.sni"], facts["quic.dcid_length"]) == ("www.example", len(dcid))


def test_facts_of_the_hello_are_those_of_tls() -> None:
    hello = client_hello([*ORDINARY, (0xFE0D, bytes(30)), (0x39, b"")])
    facts = facts_of(dissect(initial(crypto(0, hello))))
    assert facts["quic.ech"] is True
    assert facts["quic.alpn"] == ("h2", "http/1.1")


@st.composite
def crypto_pieces(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Pieces that cover the hello, in any order, some of them overlapping."""
    pieces = []
    offset = 0
    for piece in cut(HELLO, draw(st.lists(st.integers(0, len(HELLO)), max_size=6))):
        more = draw(st.integers(0, 30))
        start = max(0, offset - draw(st.integers(0, 30)))
        pieces.append((start, HELLO[start : offset + len(piece) + more]))
        offset += len(piece)
    return draw(st.permutations(pieces))


@given(
    pieces=crypto_pieces(),
    between=st.lists(st.sampled_from([PING, PADDING, ACK, ACK_ECN, crypto(3, b"")]), min_size=8, max_size=8),
    datagrams=st.lists(st.booleans(), min_size=8, max_size=8),
    version=st.sampled_from([VERSION_1, VERSION_2]),
)
def test_crypto_frames_in_any_order_and_any_datagrams(
    pieces: list[tuple[int, bytes]], between: list[bytes], datagrams: list[bool], version: int
) -> None:
    groups = [b""]
    for (offset, data), other, new in zip(pieces, between, datagrams, strict=False):
        if new and groups[-1]:
            groups.append(b"")
        groups[-1] += other + crypto(offset, data)
    session = QuicSession(OPTIONS)
    outcomes = [
        session.feed(Direction.TO_SERVER, initial(frames, version=version, number=number))
        for number, frames in enumerate(groups)
    ]
    decided = next(outcome for outcome in outcomes if not isinstance(outcome, NeedMore))
    assert facts_of(decided) == facts_of(dissect(initial(crypto(0, HELLO), version=version)))


def test_a_hello_over_two_datagrams_waits_for_both_in_any_order() -> None:
    long = client_hello([*ORDINARY, (51, bytes(1200))])
    halves = [initial(crypto(0, long[:900]), number=0), initial(crypto(900, long[900:]), number=1)]
    for datagrams in (halves, halves[::-1]):
        session = QuicSession(OPTIONS)
        assert isinstance(session.feed(Direction.TO_SERVER, datagrams[0]), NeedMore)
        outcome = session.feed(Direction.TO_SERVER, datagrams[1])
        assert sni(outcome) == "www.example"
    # The name stands in the first half: it is pointed out only where it is in the datagram that decided.
    assert isinstance(outcome, Confirm)
    assert outcome.messages[0].spans.keys() == {"quic.sni"}
    session = QuicSession(OPTIONS)
    session.feed(Direction.TO_SERVER, halves[0])
    outcome = session.feed(Direction.TO_SERVER, halves[1])
    assert isinstance(outcome, Confirm)
    assert outcome.messages[0].spans == {}


def test_the_first_bytes_win_where_crypto_frames_disagree() -> None:
    other = HELLO.replace(b"www.example", b"xyz.example")
    frames = crypto(0, HELLO[:180]) + crypto(0, other)
    assert sni(dissect(initial(frames))) == "www.example"
    assert sni(dissect(initial(crypto(90, other[90:]) + crypto(0, HELLO)))) == "xyz.example"


def test_coalesced_packets() -> None:
    def with_type(kind: int) -> bytes:
        # 0-RTT and Handshake packets: no token, and nobody here has their keys.
        return bytes([0xC0 | kind << 4]) + b"\0\0\0\1\x08" + DCID + b"\0\x40\x64" + os.urandom(100)

    first, second = initial(crypto(0, HELLO[:100])), initial(crypto(100, HELLO[100:]), number=1)
    other = initial(crypto(100, HELLO[100:]), dcid=b"elsewhere", key_dcid=DCID)
    for datagram in (
        first + second,
        first + with_type(1) + second,
        with_type(1) + first + second,
        first + second + with_type(2),
        first + second + b"\x40short header",
        first + second + bytes(500),
    ):
        assert sni(dissect(datagram)) == "www.example"
    assert isinstance(dissect(first + other), NeedMore), "another connection's packet is passed over"
    assert isinstance(dissect(first + b"\xc0junk"), NeedMore)
    for nothing in (with_type(2), with_type(1) + b"\x40short header"):
        assert reason_of(dissect(nothing)) == "no QUIC Initial packet"


def test_a_retry_brings_new_keys_and_a_new_start() -> None:
    session = QuicSession(OPTIONS)
    long = client_hello([*ORDINARY, (51, bytes(1200))])
    assert isinstance(session.feed(Direction.TO_SERVER, initial(crypto(0, long[:900]))), NeedMore)
    new = {"dcid": b"chosen by server", "token": b"token"}
    assert isinstance(session.feed(Direction.TO_SERVER, initial(crypto(900, long[900:]), **new)), NeedMore)
    assert sni(session.feed(Direction.TO_SERVER, initial(crypto(0, long[:900]), **new))) == "www.example"


def test_later_initials_use_the_first_ones_keys() -> None:
    # After the server has answered, the client sends to the server's connection ID under the old keys.
    session = QuicSession(OPTIONS)
    assert isinstance(session.feed(Direction.TO_SERVER, initial(crypto(0, HELLO[:100]))), NeedMore)
    later = initial(ACK + crypto(100, HELLO[100:]), dcid=b"the server's", key_dcid=DCID, number=1)
    assert sni(session.feed(Direction.TO_SERVER, later)) == "www.example"


def test_later_datagrams_that_do_not_open_are_passed_over() -> None:
    session = QuicSession(OPTIONS)
    assert isinstance(session.feed(Direction.TO_SERVER, initial(crypto(0, HELLO[:100]))), NeedMore)
    broken = bytearray(initial(crypto(100, HELLO[100:]), number=1))
    broken[-1] ^= 1
    for junk in (*NOT_QUIC.values(), bytes(broken)):
        if session._datagrams < OPTIONS.quic_datagrams - 1:
            assert isinstance(session.feed(Direction.TO_SERVER, junk), NeedMore)
    assert sni(session.feed(Direction.TO_SERVER, initial(crypto(100, HELLO[100:]), number=1))) == "www.example"


def test_the_datagram_limit_ends_the_wait() -> None:
    session = QuicSession(DissectOptions(quic_datagrams=3))
    half = initial(crypto(0, HELLO[:100]))
    assert isinstance(session.feed(Direction.TO_SERVER, half), NeedMore)
    assert isinstance(session.feed(Direction.TO_SERVER, half), NeedMore)
    assert reason_of(session.feed(Direction.TO_SERVER, half)) == "no whole ClientHello in 3 datagrams"


def test_crypto_bytes_beyond_the_limit_reject() -> None:
    options = DissectOptions(stream_limit=1000)
    assert isinstance(dissect(initial(crypto(900, bytes(100))), options), NeedMore)
    assert reason_of(dissect(initial(crypto(901, bytes(100))), options)) == "CRYPTO bytes beyond 1000"
    assert reason_of(dissect(initial(crypto(1 << 29, b"x")))) == "CRYPTO bytes beyond 65536"


def test_without_reassembly_the_first_crypto_frame_has_to_hold_the_hello() -> None:
    options = DissectOptions(quic_reassembly=False)
    assert sni(dissect(initial(crypto(0, HELLO)), options)) == "www.example"
    split = "ClientHello is split over CRYPTO frames"
    assert reason_of(dissect(initial(crypto(0, HELLO[:-1])), options)) == split
    assert reason_of(dissect(initial(crypto(0, HELLO[:90]) + crypto(90, HELLO[90:])), options)) == split
    assert reason_of(dissect(initial(crypto(90, HELLO[90:]) + crypto(0, HELLO)), options)) == split


def test_only_the_versions_of_the_options_are_read() -> None:
    second = initial(crypto(0, HELLO), version=VERSION_2)
    assert sni(dissect(second)) == "www.example"
    only_first = DissectOptions(quic_versions=(VERSION_1,))
    assert reason_of(dissect(second, only_first)) == "QUIC version 0x6b3343cf is not read"
    none = DissectOptions(quic_versions=(0xFF00001D,))
    draft = b"\xc0\xff\x00\x00\x1d" + second[5:]
    assert reason_of(dissect(draft, none)) == "QUIC version 0xff00001d is not read"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x40" + bytes(40), "not a QUIC long header"),
        (b"\x80\0\0\0\1" + bytes(40), "QUIC fixed bit is 0"),
        (b"\xc0\0\0\0\1\xff" + bytes(300), "QUIC connection ID of 255 bytes"),
        (b"\xc0\0\0\0\1\x15" + bytes(300), "QUIC connection ID of 21 bytes"),
        (b"\xf0\0\0\0\1\0\0" + bytes(40), "QUIC Retry comes from servers only"),
        (b"\xc0\0\0\0\1\0\0\0\x05abc", "QUIC datagram: 5 bytes wanted, 3 left"),
        (b"\xc0\0\0\0\1\0\0\0\x00", "QUIC Initial does not open with the client's keys"),
        (b"\xc0\0\0\0\1\0\0\0\x13" + bytes(19), "QUIC Initial does not open with the client's keys"),
        (initial(crypto(0, HELLO))[:-1], "QUIC datagram: 182 bytes wanted, 181 left"),
        (initial(b"\x08\0\0\0"), "QUIC frame type 0x8 in an Initial packet"),
        (initial(b"\x06\x00\x40\x60abc"), "QUIC frames: 96 bytes wanted, 3 left"),
        (initial(b"\x02\x05\x00\x3f\x02\x00\x01"), "QUIC frames: 1 bytes wanted, 0 left"),
        (initial(crypto(0, b"\x02\0\0\0")), "handshake message is not a ClientHello"),
        (initial(crypto(0, b"\x01\0\0\1\x03")), "ClientHello: 2 bytes wanted, 1 left"),
    ],
)
def test_what_is_no_readable_initial_says_why(data: bytes, reason: str) -> None:
    assert reason_of(dissect(data)) == reason


def test_a_client_that_gives_up_is_waited_for_no_further_than_the_limit() -> None:
    close = b"\x1c\x0a\x06\x03bye"
    assert isinstance(dissect(initial(close + PING)), NeedMore)


@pytest.mark.parametrize("name", NOT_QUIC)
def test_other_protocols_are_rejected_at_once(name: str) -> None:
    assert reason_of(dissect(NOT_QUIC[name]))


@given(
    st.binary(max_size=400), st.sampled_from([b"", b"\xc0\0\0\0\1\x08" + DCID + b"\0\0", b"\xd0\x6b\x33\x43\xcf\0\0\0"])
)
def test_any_datagram_has_one_of_three_outcomes(data: bytes, start: bytes) -> None:
    assert isinstance(dissect(start + data), NeedMore | Reject | Confirm)


@given(st.binary(max_size=200), st.booleans())
def test_any_frames_have_one_of_three_outcomes(frames: bytes, reassembly: bool) -> None:
    options = DissectOptions(quic_reassembly=reassembly)
    assert isinstance(dissect(initial(frames), options), NeedMore | Reject | Confirm)


@given(st.integers(0, 10_000))
def test_every_flipped_bit_is_noticed(bit: int) -> None:
    packet = bytearray(initial(crypto(0, HELLO)))
    packet[bit // 8 % len(packet)] ^= 1 << bit % 8
    assert reason_of(dissect(bytes(packet)))


@given(st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=20)), max_size=12))
def test_crypto_streams_keep_the_first_byte_of_each_position(pieces: list[tuple[int, bytes]]) -> None:
    stream = CryptoStream(100)
    model: dict[int, int] = {}
    for offset, piece in pieces:
        stream.add(offset, piece)
        for position, byte in enumerate(piece, offset):
            model.setdefault(position, byte)
        length = next(n for n in range(101) if n not in model)
        assert stream.prefix() == bytes(model[position] for position in range(length))
        assert len(stream._data) <= 100
    with pytest.raises(MalformedBytes):
        stream.add(90, bytes(11))
