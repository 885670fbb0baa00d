"""ClientHellos over TCP: cut, split, odd and broken."""

from __future__ import annotations

import hashlib

import pytest
from hello_kit import (
    NOT_TLS,
    ORDINARY,
    alpn,
    client_hello,
    cut,
    facts_of,
    feed_all,
    numbers,
    reason_of,
    records,
    server_name,
    supported_versions,
    vector,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gfwemu.dissect.fields import FieldKind
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import Confirm, NeedMore, Outcome, Reject
from gfwemu.dissect.tls import FIELDS, TLS, TlsSession
from gfwemu.model import Direction

TOGETHER = DissectOptions(tls_record_reassembly=True)
APART = DissectOptions(tls_record_reassembly=False)
both_options = st.sampled_from([TOGETHER, APART])
many_cuts = st.lists(st.integers(0, 400), max_size=8)


def dissect(data: bytes, options: DissectOptions = APART) -> Outcome:
    return TlsSession(options).feed(Direction.TO_SERVER, data)


def short(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:12]


def sni_of(name: bytes) -> object:
    return facts_of(dissect(records(client_hello([server_name(name)])))).get("tls.sni")


def test_every_fact_of_an_ordinary_hello() -> None:
    message = client_hello()
    outcome = dissect(records(message))
    facts = facts_of(outcome)
    assert facts == {
        "tls.sni": "www.example",
        "tls.alpn": ("h2", "http/1.1"),
        "tls.version": "1.3",
        "tls.legacy_version": "1.2",
        "tls.versions": ("1.3", "1.2"),
        "tls.ech": False,
        "tls.esni": False,
        "tls.ciphers": "1301-1302-c02f",
        "tls.ja3": hashlib.md5(b"771,4865-4866-49199,0-16-43-10-13-11,29-23,0").hexdigest(),
        "tls.ja4": f"t13d0306h2_{short(b'1301,1302,c02f')}_{short(b'000a,000b,000d,002b_0403,0804')}",
        "tls.hello_length": len(message),
    }
    assert set(facts) == {field.name for field in FIELDS}


def test_the_span_is_where_the_name_stands() -> None:
    data = records(client_hello())
    outcome = dissect(data + b"more")
    assert isinstance(outcome, Confirm)
    span = outcome.messages[0].spans["tls.sni"]
    assert data[span.offset : span.offset + span.length] == b"www.example"


def test_facts_have_the_kinds_that_the_fields_say() -> None:
    kinds = {FieldKind.DOMAIN: str, FieldKind.TEXT: str, FieldKind.ENUM: str, FieldKind.TEXTS: tuple}
    kinds |= {FieldKind.FLAG: bool, FieldKind.NUMBER: int}
    facts = facts_of(dissect(records(client_hello(version=0x7F1C))))
    for field in TLS.fields:
        assert type(facts[field.name]) is kinds[field.kind]
        assert not field.choices or facts[field.name] in field.choices


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        (b"WWW.Example", "www.example"),
        (b"www.example.", "www.example"),
        (b"xn--e1afmkfd.xn--e1afmkfd", "xn--e1afmkfd.xn--e1afmkfd"),
        (b"192.0.2.1", "192.0.2.1"),
        (b"b\xc3\xbccher.example", "b\\xc3\\xbccher.example"),
        (b"", None),
    ],
)
def test_names_as_rules_see_them(name: bytes, seen: str | None) -> None:
    assert sni_of(name) == seen


def test_server_name_lists() -> None:
    def sni(*names: tuple[int, bytes]) -> object:
        listed = b"".join(bytes([kind]) + vector(2, name) for kind, name in names)
        return facts_of(dissect(records(client_hello([(0, vector(2, listed))])))).get("tls.sni")

    assert sni((0, b"first.example"), (0, b"second.example")) == "first.example"
    assert sni((7, b"other"), (0, b"host.example")) == "host.example"
    assert sni((7, b"other")) is None
    assert sni() is None
    # An empty extension is what servers answer with.
    assert "tls.sni" not in facts_of(dissect(records(client_hello([(0, b"")]))))


def test_a_second_extension_of_a_kind_changes_nothing() -> None:
    facts = facts_of(dissect(records(client_hello([server_name(b"a.example"), server_name(b"b.example")]))))
    assert facts["tls.sni"] == "a.example"
    assert str(facts["tls.ja4"]).startswith("t12d0302")
    assert facts_of(dissect(records(client_hello([alpn(b"h2"), alpn(b"h3")]))))["tls.alpn"] == ("h2",)


@pytest.mark.parametrize(
    ("version", "offered", "highest", "legacy", "versions"),
    [
        (0x0303, [supported_versions(0x5A5A, 0x0304, 0x0303)], "1.3", "1.2", ("1.3", "1.2")),
        (0x0303, [], "1.2", "1.2", ("1.2",)),
        (0x0301, [], "1.0", "1.0", ("1.0",)),
        (0x0300, [], "ssl3", "ssl3", ("ssl3",)),
        (0x0305, [], "other", "other", ("other",)),
        (0x0303, [supported_versions(0x7F1C, 0x0303)], "other", "1.2", ("other", "1.2")),
    ],
)
def test_versions(
    version: int, offered: list[tuple[int, bytes]], highest: str, legacy: str, versions: tuple[str, ...]
) -> None:
    facts = facts_of(dissect(records(client_hello(offered, version=version))))
    assert (facts["tls.version"], facts["tls.legacy_version"], facts["tls.versions"]) == (highest, legacy, versions)


def test_encrypted_hellos_show() -> None:
    ech = facts_of(dissect(records(client_hello([*ORDINARY, (0xFE0D, bytes(40))]))))
    assert (ech["tls.ech"], ech["tls.esni"], ech["tls.sni"]) == (True, False, "www.example")
    esni = facts_of(dissect(records(client_hello([(0xFFCE, bytes(40))]))))
    assert (esni["tls.ech"], esni["tls.esni"]) == (False, True)
    # The firewall of China did not mind the numbers next to ESNI's (esni20).
    near = facts_of(dissect(records(client_hello([(0xFF02, b""), (0xFF03, b""), (0xFF04, b"")]))))
    assert (near["tls.ech"], near["tls.esni"]) == (False, False)


@given(cuts=many_cuts, record_cuts=st.lists(st.integers(1, 200), max_size=5), options=both_options)
def test_cutting_the_stream_changes_nothing(cuts: list[int], record_cuts: list[int], options: DissectOptions) -> None:
    data = records(client_hello(), *record_cuts) + b"\x17\x03\x03\x00\x01x"
    pieces = cut(data, cuts)
    assert feed_all(TlsSession(options), pieces) == dissect(data, options)


@given(cuts=many_cuts, flip=st.integers(0, 2000), options=both_options, limit=st.integers(1, 400))
def test_cutting_a_damaged_stream_changes_nothing(
    cuts: list[int], flip: int, options: DissectOptions, limit: int
) -> None:
    data = bytearray(records(client_hello(), 20, 100))
    data[flip // 8 % len(data)] ^= 1 << flip % 8
    options = DissectOptions(tls_record_reassembly=options.tls_record_reassembly, stream_limit=limit)
    assert feed_all(TlsSession(options), cut(bytes(data), cuts)) == dissect(bytes(data), options)


@given(
    data=st.binary(max_size=300), start=st.sampled_from([b"", b"\x16\x03\x01", b"\x16\x03\x01\x00\x80\x01\x00\x00\x7c"])
)
def test_any_bytes_have_one_of_three_outcomes(data: bytes, start: bytes) -> None:
    for options in (TOGETHER, APART):
        assert isinstance(dissect(start + data, options), NeedMore | Reject | Confirm)


@given(st.binary(max_size=200))
def test_any_hello_body_confirms_or_rejects(body: bytes) -> None:
    # Nothing is left to wait for once the message is whole.
    assert isinstance(dissect(records(b"\x01" + vector(3, body))), Reject | Confirm)


def test_every_beginning_of_a_hello_waits() -> None:
    data = records(client_hello())
    session = TlsSession(APART)
    for byte in data[:-1]:
        assert isinstance(session.feed(Direction.TO_SERVER, bytes([byte])), NeedMore)
    assert facts_of(session.feed(Direction.TO_SERVER, data[-1:]))["tls.sni"] == "www.example"


@given(record_cuts=st.lists(st.integers(1, 200), min_size=1, max_size=6))
def test_a_hello_over_several_records(record_cuts: list[int]) -> None:
    message = client_hello()
    assert len(message) < 201
    data = records(message, *record_cuts)
    split = data != records(message)
    whole = dissect(data, TOGETHER)
    assert facts_of(whole) == facts_of(dissect(records(message)))
    assert isinstance(whole, Confirm)
    span = whole.messages[0].spans["tls.sni"]
    inside = data[span.offset : span.offset + span.length]
    assert inside[:1] == b"w"
    assert inside[-1:] == b"e"
    if split:
        assert reason_of(dissect(data, APART)) == "ClientHello is split over TLS records"


def test_a_hello_in_records_of_one_byte() -> None:
    message = client_hello()
    data = records(message, *range(len(message)))
    assert facts_of(dissect(data, TOGETHER))["tls.sni"] == "www.example"
    assert reason_of(dissect(data[:6], APART)) == "ClientHello is split over TLS records"


def test_a_record_may_hold_more_than_the_hello() -> None:
    assert facts_of(dissect(records(client_hello() + b"\x0b\0\0\0")))["tls.sni"] == "www.example"


@pytest.mark.parametrize("name", NOT_TLS)
def test_other_protocols_are_rejected_at_once(name: str) -> None:
    assert reason_of(dissect(NOT_TLS[name]))
    assert reason_of(dissect(NOT_TLS[name], TOGETHER))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x14", "not a handshake record"),
        (b"\x16\x04", "record version is not SSL 3 or TLS"),
        (b"\x16\x03\x01\x00\x00", "record length 0"),
        (b"\x16\x03\x01\x40\x01", "record length 16385"),
        (b"\x16\x03\x01\x00\x05\x02", "handshake message is not a ClientHello"),
        (records(client_hello())[:80] + b"\x16\x03", None),
        (records(b"\x01\0\0\0"), "ClientHello: 2 bytes wanted, 0 left"),
        (records(b"\x01" + vector(3, bytes(34) + b"\x05abc")), "ClientHello: 6 bytes wanted, 4 left"),
        (records(b"\x01" + vector(3, bytes(34) + b"\0\0\3abc\0")), "cipher suites: odd length 3"),
        (records(client_hello() + b"x")[:-1], None),
        (records(b"\x01" + vector(3, client_hello()[4:] + b"x")), "ClientHello: 1 bytes too many"),
        (records(client_hello([(0, b"\0\5\0\0\3ab")])), "server name list: 5 bytes wanted, 4 left"),
        (records(client_hello([(16, b"\0\3\x05h2")])), "ALPN list: 6 bytes wanted, 3 left"),
        (records(client_hello([(43, b"\x03\3\4\3")])), "supported versions: odd length 3"),
        (records(client_hello([(10, b"\0\1\0")])), "supported groups: odd length 1"),
        (records(client_hello([(13, b"\0\7")])), "extension: 9 bytes wanted, 2 left"),
        (records(client_hello([(11, b"")])), "extension: 1 bytes wanted, 0 left"),
    ],
)
def test_broken_hellos_say_why(data: bytes, reason: str | None) -> None:
    outcome = dissect(data)
    if reason is None:
        assert isinstance(outcome, NeedMore)
    else:
        assert reason_of(outcome) == reason


def test_other_records_before_the_end_of_the_hello_reject() -> None:
    ccs = b"\x14\x03\x03\x00\x01\x01"
    message = client_hello()
    assert reason_of(dissect(ccs + records(message), TOGETHER)) == "not a handshake record"
    split = records(message, 50)
    assert reason_of(dissect(split[:55] + ccs + split[55:], TOGETHER)) == "not a handshake record"


def test_what_the_server_says_does_not_matter() -> None:
    session = TlsSession(APART)
    data = records(client_hello())
    assert isinstance(session.feed(Direction.TO_CLIENT, b"220 mail.example ready\r\n"), NeedMore)
    assert isinstance(session.feed(Direction.TO_SERVER, data[:50]), NeedMore)
    assert isinstance(session.feed(Direction.TO_CLIENT, b"\x16\x03\x03\x00\x04\x02"), NeedMore)
    assert facts_of(session.feed(Direction.TO_SERVER, data[50:]))["tls.sni"] == "www.example"


def test_the_stream_limit_ends_the_wait() -> None:
    long = client_hello([*ORDINARY, (21, bytes(3000))])
    assert facts_of(dissect(records(long), DissectOptions(stream_limit=5 + len(long))))
    short = DissectOptions(stream_limit=4 + len(long))
    assert reason_of(dissect(records(long), short)) == f"no whole ClientHello in {4 + len(long)} bytes"
    # The first record's header already tells.
    assert reason_of(dissect(records(long)[:6], short)) == f"no whole ClientHello in {4 + len(long)} bytes"


def test_a_session_holds_no_more_than_the_limit() -> None:
    session = TlsSession(DissectOptions(tls_record_reassembly=True, stream_limit=2000))
    held = 0
    data = records(b"\x01\xff\xff\xff" + bytes(5000), *range(0, 5000, 7))
    outcome: Outcome = NeedMore()
    for start in range(0, len(data), 100):
        outcome = session.feed(Direction.TO_SERVER, data[start : start + 100])
        held = max(held, len(session._pending) + len(session._message))
        if isinstance(outcome, Reject):
            break
    assert reason_of(outcome) == "no whole ClientHello in 2000 bytes"
    assert 1000 < held <= 2000


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 0xFFFF).filter(lambda kind: kind not in (0, 10, 11, 13, 16, 43)), st.binary(max_size=9)
        )
    )
)
def test_unknown_extensions_are_passed_over(extensions: list[tuple[int, bytes]]) -> None:
    facts = facts_of(dissect(records(client_hello([*extensions, server_name(b"last.example"), alpn(b"h2")]))))
    assert facts["tls.sni"] == "last.example"
    assert facts["tls.ech"] == any(kind == 0xFE0D for kind, _ in extensions)


def test_very_many_extensions_stay_cheap() -> None:
    body = b"".join(numbers([kind]) + b"\0\0" for kind in range(1000, 5000))
    hello = client_hello(None)
    message = b"\x01" + vector(3, hello[4:] + vector(2, body))
    assert str(facts_of(dissect(records(message)[: 5 + len(message)]))["tls.ja4"]).startswith("t12i0399")
