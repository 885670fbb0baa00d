"""Every registered dissector over ordinary traffic: exactly the right one confirms."""

from __future__ import annotations

import hashlib
import struct

import pytest
from flow_kit import CAPTURES, TO_CLIENT, TO_SERVER, Event, captured_flows, play
from hypothesis import given, settings
from hypothesis import strategies as st

from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.registry import DISSECTORS
from gfwemu.model import Direction, Transport

DEFAULT = DissectOptions()
# Recognises at the earliest message that an option allows.
EAGER = DissectOptions(openvpn_confirm="client_reset", wireguard_confirm="initiation")

# Made with real programs; see the captures' README. "" is traffic that no dissector knows.
CAPTURED = {
    "dns-dig": {"dns"},
    "http-curl": {"http"},
    "http-download": {"http"},
    "tls-curl": {"tls"},
    "tls-node": {"tls"},
    "tls-openssl": {"tls"},
    "tls-openssl-tls12-no-sni": {"tls"},
    "tls-python": {"tls"},
    "tls-wget": {"tls"},
    "quic-v1": {"quic"},
    "quic-v2": {"quic"},
    "quic-retry": {"quic"},
    "quic-long": {"quic"},
    "ssh": {""},
    "smtp-curl": {"smtp"},
    "ftp-curl": {"ftp", ""},  # the data connection
    "ntp-chrony": {""},
    "stun-turn": {""},
    "dtls-openssl": {""},
    "bittorrent-aria2": {""},
    "wireguard": {"wireguard"},
    **{f"openvpn-{transport}-{variant}": {"openvpn"} for transport in ("udp", "tcp") for variant in (
        "plain", "tls-auth-sha1", "tls-auth-sha256", "tls-auth-sha512", "tls-crypt", "tls-crypt-v2",
    )},
}  # fmt: skip


def noise(label: str, length: int) -> bytes:
    return hashlib.shake_128(label.encode()).digest(length)


def rtp(count: int, payload_type: int, length: int) -> list[bytes]:
    """RFC 3550 section 5.1, with an encrypted payload."""
    return [
        struct.pack("!BBHII", 0x80, payload_type, 1000 + number, 160 * number, 0x11223344)
        + noise(f"rtp{number}", length)
        for number in range(count)
    ]


def stun(kind: int, attributes: bytes) -> bytes:
    """RFC 8489 section 5."""
    return struct.pack("!HHI", kind, len(attributes), 0x2112A442) + noise("transaction", 12) + attributes


def utp(kind: int, length: int) -> bytes:
    """BEP 29: type and version, extension, connection id, times, window, numbers."""
    return bytes([kind << 4 | 1, 0]) + noise(f"utp{kind}", 18) + noise("utp data", length - 20)


def to_server(*payloads: bytes) -> list[Event]:
    return [(TO_SERVER, payload) for payload in payloads]


def turns(*payloads: bytes) -> list[Event]:
    """Client and server by turns."""
    return [((TO_SERVER, TO_CLIENT)[number % 2], payload) for number, payload in enumerate(payloads)]


# Shapes for which no program was at hand.
DATAGRAMS: dict[str, list[Event]] = {
    "video call": turns(
        stun(0x0001, b"\x00\x06\x00\x04user"),
        stun(0x0101, struct.pack("!HHBBHI", 0x20, 8, 0, 1, 0x1234, 0xC0000202)),
        *rtp(12, 111, 160),
        *rtp(12, 96, 1100),
    ),
    "rtp of 148 bytes": turns(*rtp(40, 0, 136)),
    "rtcp": turns(*[struct.pack("!BBHI", 0x80, 200, 6, 7) + noise(f"rtcp{number}", 20) for number in range(9)]),
    "ike": turns(
        noise("spi", 8) + bytes(8) + bytes.fromhex("2120220800000000000001c8") + noise("sa", 428),
        noise("spi", 16) + bytes.fromhex("2120222000000000000001c8") + noise("sa", 428),
    ),
    "esp in udp": turns(*[struct.pack("!II", 0xA0B0C0D, number) + noise(f"esp{number}", 96) for number in range(9)]),
    "bittorrent dht": turns(
        b"d1:ad2:id20:" + noise("id", 20) + b"6:target20:" + noise("target", 20) + b"e1:q9:find_node1:t2:aa1:y1:qe",
        b"d1:rd2:id20:" + noise("node", 20) + b"5:nodes26:" + noise("nodes", 26) + b"e1:t2:aa1:y1:re",
    ),
    "utp": turns(utp(4, 20), utp(2, 20), *[utp(0, length) for length in (148, 92, 64, 1400, 148)]),
    "game": turns(*[noise(f"game{number}", 20 + 37 * number % 300) for number in range(60)]),
    "quic short headers": turns(*[b"\x50" + noise(f"short{number}", 1200) for number in range(8)]),
    "snmp": to_server(
        bytes.fromhex("302902010104067075626c6963a01c02044e2b1d3a020100020100300e300c06082b060102010101000500")
    ),
    "syslog": to_server(b"<34>Oct 11 22:14:15 mymachine su: failed for lonvick on /dev/pts/8"),
    "ssdp": to_server(b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\n\r\n"),
    "zeros": to_server(*[bytes(length) for length in (1, 12, 17, 32, 64, 92, 148, 1200)]),
    "ones": to_server(*[b"\xff" * length for length in (1, 12, 17, 32, 64, 92, 148, 1200)]),
    "empty": to_server(b""),
}  # fmt: skip

STREAMS: dict[str, list[Event]] = {
    "pop3": [(TO_CLIENT, b"+OK ready\r\n"), *turns(b"CAPA\r\n", b"+OK\r\n.\r\n", b"QUIT\r\n")],
    "imap": [(TO_CLIENT, b"* OK ready\r\n"), *turns(b"a1 CAPABILITY\r\n", b"* CAPABILITY IMAP4rev1\r\n")],
    "irc": turns(b"NICK someone\r\nUSER someone 0 * :Someone\r\n", b":irc.example NOTICE * :*** Looking up\r\n"),
    "sip": turns(b"OPTIONS sip:someone@example.test SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.2\r\n\r\n"),
    "rtsp": turns(b"DESCRIBE rtsp://www.example.test/film RTSP/1.0\r\nCSeq: 2\r\n\r\n"),
    "http2 with prior knowledge": turns(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
    "http response alone": to_server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    "socks5": turns(b"\x05\x01\x00", b"\x05\x00", b"\x05\x01\x00\x03\x0bexample.net\x00\x50"),
    "telnet": turns(b"\xff\xfd\x18\xff\xfd\x20", b"\xff\xfb\x18", b"login\r\n"),
    "mqtt": turns(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04abcd", b"\x20\x02\x00\x00"),
    "postgresql": turns(b"\x00\x00\x00\x08\x04\xd2\x16\x2f", b"N"),
    "mysql": [(TO_CLIENT, b"\x4a\x00\x00\x00\x0a8.0.36\x00"), *turns(b"\x20\x00\x00\x01" + bytes(32))],
    "rdp": turns(bytes.fromhex("030000130ee000000000000100080003000000")),
    "redis": turns(b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n"),
    "mtproto obfuscated": turns(noise("mtproto", 105), noise("answer", 64)),
    "shadowsocks": turns(noise("salt and address", 87), noise("salt", 1460)),
    "lengths of 64 KiB announced": turns(b"\xff\xff" * 30, b"\xff\xff" * 30),
    "zeros": turns(bytes(3000), bytes(3000)),
    "pop3 with a password": [
        (TO_CLIENT, b"+OK ready\r\n"),
        *turns(b"USER me\r\n", b"+OK\r\n", b"PASS secret\r\n", b"+OK\r\n", b"RETR 1\r\n"),
    ],
    "nntp": [
        (TO_CLIENT, b"200 ready\r\n"),
        *turns(b"MODE READER\r\n", b"200 ok\r\n", b"GROUP misc.test\r\n", b"211 1 1 1\r\n", b"QUIT\r\n"),
    ],
    "irc with a password": turns(b"PASS secret\r\nNICK someone\r\nUSER someone 0 * :Someone\r\n", b":irc NOTICE\r\n"),
    "managesieve": [(TO_CLIENT, b'"IMPLEMENTATION" "sieve"\r\nOK\r\n'), *turns(b"STARTTLS\r\n", b"OK\r\n")],
    "memcached": turns(b"stats\r\n", b"STAT pid 1\r\n", b"quit\r\n"),
    "xmpp": turns(b"<?xml version='1.0'?><stream:stream to='example.test'>", b"<stream:stream>"),
    "whois": turns(b"example.com\r\n", b"No match\r\n"),
    "ident": turns(b"6193, 23\r\n", b"6193, 23 : USERID : UNIX : me\r\n"),
    "rsync": turns(b"@RSYNCD: 31.0\n", b"@RSYNCD: 31.0\n"),
    "git": turns(b"0032git-upload-pack /project.git\0host=example.test\0", b"0000"),
}  # fmt: skip

# Whatever else they say, no dissector knows these, nor can it tell so at once.
HALVES: dict[str, list[Event]] = {
    "pop3 without its server": to_server(b"USER me\r\n", b"PASS secret\r\n", b"STAT\r\n", b"LIST\r\n", b"RETR 1\r\n"),
    "gopher": turns(b"\r\n", b"iHello\t\t\t\r\n.\r\n"),
    "finger": turns(b"user\r\n", b"Login: user\r\n"),
    "redis by hand": turns(b"AUTH secret\r\n", b"+OK\r\n", b"TYPE key\r\n", b"+string\r\n", b"QUIT\r\n"),
    "220 and silence": [(TO_CLIENT, b"220 ready\r\n")],
    "220 and goodbye": [(TO_CLIENT, b"220 ready\r\n"), *turns(b"NOOP\r\n", b"250 ok\r\n", b"QUIT\r\n")],
}


def confirming(transport: int, events: list[Event], options: DissectOptions) -> set[str]:
    """Names of the dissectors that confirm; "" where none does."""
    played = {entry.name: play(entry, events, options) for entry in DISSECTORS if transport in entry.transports}
    return {name for name, result in played.items() if result.kind == "confirm"} or {""}


@pytest.mark.parametrize("options", [DEFAULT, EAGER], ids=["default", "eager"])
@pytest.mark.parametrize("name", CAPTURED)
def test_captured_flows(name: str, options: DissectOptions) -> None:
    flows = captured_flows(CAPTURES / f"{name}.pcap")
    assert flows
    found = [confirming(flow.transport, flow.events, options) for flow in flows]
    assert all(len(names) == 1 for names in found)
    assert set().union(*found) == CAPTURED[name]


def test_every_capture_is_listed() -> None:
    assert {path.stem for path in CAPTURES.glob("*.pcap")} == set(CAPTURED)


@pytest.mark.parametrize("options", [DEFAULT, EAGER], ids=["default", "eager"])
@pytest.mark.parametrize("name", DATAGRAMS)
def test_datagrams_that_no_dissector_knows(name: str, options: DissectOptions) -> None:
    assert confirming(Transport.UDP, DATAGRAMS[name], options) == {""}


@pytest.mark.parametrize("options", [DEFAULT, EAGER], ids=["default", "eager"])
@pytest.mark.parametrize("name", [*STREAMS, *HALVES])
def test_streams_that_no_dissector_knows(name: str, options: DissectOptions) -> None:
    assert confirming(Transport.TCP, (STREAMS | HALVES)[name], options) == {""}


# Protocols that speak in lines or begin with a length must be rejected at their first bytes, so that the flow can be
# called unknown while it lasts.
@pytest.mark.parametrize("name", sorted(set(STREAMS) - {"socks5"}))
def test_unknown_streams_are_given_up(name: str) -> None:
    for entry in DISSECTORS:
        if Transport.TCP in entry.transports:
            assert play(entry, STREAMS[name]).kind == "reject", entry


@pytest.mark.parametrize("name", ["ssh", "bittorrent-aria2"])
def test_unknown_captured_streams_are_given_up(name: str) -> None:
    flow = captured_flows(CAPTURES / f"{name}.pcap")[0]
    for entry in DISSECTORS:
        if Transport.TCP in entry.transports:
            assert play(entry, flow.events).kind == "reject", entry


chunks = st.lists(st.tuples(st.sampled_from(Direction), st.binary(max_size=400)), max_size=8)


@settings(max_examples=300)
@given(chunks, st.sampled_from([Transport.TCP, Transport.UDP]))
def test_random_bytes_confirm_nothing(events: list[Event], transport: Transport) -> None:
    assert confirming(transport, events, DEFAULT) == {""}
