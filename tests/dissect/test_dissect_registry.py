"""The list of dissectors, and what holds for every one: three outcomes, indifference to cuts, bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from flow_kit import CAPTURES, TO_CLIENT, TO_SERVER, Event, Played, captured_flows, cut_events, play
from hypothesis import given, settings
from hypothesis import strategies as st

from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.fields import FieldKind
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import Confirm, Message, Reject
from gfwemu.dissect.registry import DISSECTORS, all_fields, dissector
from gfwemu.model import Direction, Transport

KINDS: dict[FieldKind, type] = {
    FieldKind.DOMAIN: str,
    FieldKind.TEXT: str,
    FieldKind.ENUM: str,
    FieldKind.TEXTS: tuple,
    FieldKind.NUMBER: int,
    FieldKind.FLAG: bool,
}
OPTIONS = st.builds(
    DissectOptions,
    tls_record_reassembly=st.booleans(),
    openvpn_confirm=st.sampled_from(["client_reset", "server_reset", "control"]),
    wireguard_confirm=st.sampled_from(["initiation", "response", "data"]),
    stream_limit=st.sampled_from([64, 300, 1500, 65_536]),
)

FLOWS = {
    path.stem: flow
    for path in sorted(CAPTURES.glob("*.pcap"))
    for flow in captured_flows(path)
}  # fmt: skip
OF_TRANSPORT = {
    transport: [flow.events for flow in FLOWS.values() if flow.transport == transport]
    for transport in (Transport.TCP, Transport.UDP)
}


def name_of(entry: Dissector) -> str:
    return f"{entry.name}-{'-'.join(str(int(transport)) for transport in entry.transports)}"


by_transport = {
    transport: [entry for entry in DISSECTORS if transport in entry.transports]
    for transport in (Transport.TCP, Transport.UDP)
}


def test_names_and_transports() -> None:
    assert sorted(name_of(entry) for entry in DISSECTORS) == [
        "dns-17",
        "dns-6",
        "ftp-6",
        "http-6",
        "openvpn-17",
        "openvpn-6",
        "quic-17",
        "smtp-6",
        "tls-6",
        "wireguard-17",
    ]


def test_dissectors_by_name() -> None:
    assert [name_of(entry) for entry in dissector("dns")] == ["dns-17", "dns-6"]
    with pytest.raises(KeyError, match="imap"):
        dissector("imap")


def test_fields() -> None:
    fields = all_fields()
    assert len({field.name for field in fields}) == len(fields)
    for entry in DISSECTORS:
        for field in entry.fields:
            assert field in fields
            assert field.name.startswith(f"{entry.name}.")
            assert field.description.endswith(".")
            assert field.example
            assert bool(field.choices) == (field.kind is FieldKind.ENUM)


def without_user_agent(played: Played) -> Played:
    """http.user_agent is the one fact that a cut may hide (see gfwemu.dissect.http1)."""
    messages = tuple(
        Message({name: value for name, value in message.facts.items() if name != "http.user_agent"}, message.spans)
        for message in played.messages
    )
    return Played(played.kind, messages, played.final, played.reason)


@st.composite
def damaged(draw: st.DrawFn, transport: Transport) -> list[Event]:
    """A captured flow, shortened, with bytes changed, removed and inserted, pieces repeated."""
    events = list(draw(st.sampled_from(OF_TRANSPORT[transport])))[: draw(st.integers(1, 12))]
    for _ in range(draw(st.integers(0, 3))):
        index = draw(st.integers(0, len(events) - 1))
        direction, data = events[index]
        start = draw(st.integers(0, min(len(data), 100)))
        end = start + draw(st.integers(0, 8))
        events[index] = (direction, data[:start] + draw(st.binary(max_size=8)) + data[end:])
        if draw(st.booleans()):
            events.insert(draw(st.integers(0, len(events))), events[draw(st.integers(0, len(events) - 1))])
    return events


@settings(max_examples=250)
@given(damaged(Transport.TCP), st.lists(st.integers(1, 1500), max_size=12), OPTIONS)
def test_cutting_a_stream_changes_nothing(events: list[Event], cuts: list[int], options: DissectOptions) -> None:
    for entry in by_transport[Transport.TCP]:
        whole = without_user_agent(play(entry, events, options))
        assert without_user_agent(play(entry, cut_events(events, cuts), options)) == whole, entry.name


@settings(max_examples=60)
@given(damaged(Transport.TCP), OPTIONS)
def test_byte_by_byte_changes_nothing(events: list[Event], options: DissectOptions) -> None:
    events = [(direction, data[:700]) for direction, data in events]
    for entry in by_transport[Transport.TCP]:
        pieces = cut_events(events, range(701))
        assert without_user_agent(play(entry, pieces, options)) == without_user_agent(play(entry, events, options))


@settings(max_examples=250)
@given(damaged(Transport.UDP), OPTIONS)
def test_damaged_datagrams_give_one_of_three_outcomes(events: list[Event], options: DissectOptions) -> None:
    for entry in by_transport[Transport.UDP]:
        check_kinds(entry, play(entry, events, options))


@settings(max_examples=250)
@given(
    st.lists(st.tuples(st.sampled_from(Direction), st.binary(max_size=200)), max_size=12),
    st.sampled_from([Transport.TCP, Transport.UDP]),
    OPTIONS,
)
def test_any_bytes_give_one_of_three_outcomes(
    events: list[Event], transport: Transport, options: DissectOptions
) -> None:
    for entry in by_transport[transport]:
        check_kinds(entry, play(entry, events, options))


def check_kinds(entry: Dissector, played: Played) -> None:
    kinds = {field.name: field for field in entry.fields}
    for message in played.messages:
        for name, value in message.facts.items():
            assert type(value) is KINDS[kinds[name].kind], name
            assert not kinds[name].choices or value in kinds[name].choices
        for span in message.spans.values():
            assert span.offset >= 0
            assert span.length >= 0


@pytest.mark.parametrize("name", FLOWS)
def test_kinds_of_captured_facts(name: str) -> None:
    flow = FLOWS[name]
    for entry in DISSECTORS:
        if flow.transport in entry.transports:
            check_kinds(entry, play(entry, flow.events))


# Streams that keep a dissector waiting for ever, or alive for ever.
ENDLESS: dict[str, tuple[Transport, bytes, bytes]] = {
    "request line": (Transport.TCP, b"GET /", b"a"),
    "header": (Transport.TCP, b"GET / HTTP/1.1\r\nX: ", b"a"),
    "header lines": (Transport.TCP, b"GET / HTTP/1.1\r\n", b"X: 1\r\n"),
    "header lines of a later request": (Transport.TCP, b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n", b"X: 1\r\n"),
    "body": (Transport.TCP, b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"a"),
    "chunks": (Transport.TCP, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "chunk extension": (Transport.TCP, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a"),
    "trailer": (Transport.TCP, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: 1\r\n"),
    "requests": (Transport.TCP, b"", b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"),
    "long DNS message": (Transport.TCP, b"\xff\xff\x12\x34\1\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\1", b"a"),
    "long OpenVPN packet": (
        Transport.TCP,
        b"\0\x0e\x38clientid\0\0\0\0\0" + b"\xff\xff\x20",
        b"a",
    ),
    "WireGuard initiations": (Transport.UDP, b"", b"\1\0\0\0" + bytes(144)),
    "DNS queries": (Transport.UDP, b"", b"\x12\x34\1\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\1"),
    "OpenVPN resets": (Transport.UDP, b"", b"\x38clientid\0\0\0\0\0"),
}


def endless(name: str) -> Iterator[Event]:
    transport, beginning, unit = ENDLESS[name]
    yield TO_SERVER, beginning or unit
    piece = unit if transport == Transport.UDP else unit * (1000 // len(unit))
    for _ in range(300):
        yield TO_SERVER, piece
        yield TO_CLIENT, piece


@pytest.mark.parametrize("name", ENDLESS)
def test_memory_is_bounded(name: str) -> None:
    for entry in by_transport[ENDLESS[name][0]]:
        session = entry.open(DissectOptions())
        tracemalloc.start()
        try:
            for direction, data in endless(name):
                outcome = session.feed(direction, data)
                if isinstance(outcome, Reject) or (isinstance(outcome, Confirm) and outcome.final):
                    break
            grown, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # Two directions of at most stream_limit bytes, as a buffer grows them.
        assert grown < 3 * DissectOptions().stream_limit, entry.name
