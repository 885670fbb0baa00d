"""Hellos of real programs, and what tshark and scapy read in the same bytes."""

from __future__ import annotations

import hashlib
import random
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hello_kit import (
    ORDINARY,
    alpn,
    client_hello,
    crypto,
    facts_of,
    groups,
    initial,
    point_formats,
    records,
    server_name,
    signature_algorithms,
    supported_versions,
)
from scapy.utils import PcapWriter, RawPcapReader

from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import Confirm, NeedMore, Outcome
from gfwemu.dissect.quic import QuicSession
from gfwemu.dissect.tls import TlsSession
from gfwemu.model import Direction, FiveTuple, address_bytes
from gfwemu.wire.build import build_tcp, build_udp
from gfwemu.wire.packet import Packet
from gfwemu.wire.parse import parse_packet

CAPTURES = Path(__file__).parent.parent / "data" / "captures"
OPTIONS = DissectOptions()
NAME = "www.example.test"

TLS_FACTS = {
    "tls-curl": (
        NAME,
        ("h2", "http/1.1"),
        "1.3",
        "0149f47eabf9a20d0893e2a44e5a6323",
        "t13d3112h2_e8f1e7e78f70_b26ce05bbdd6",
    ),
    "tls-node": (NAME, (), "1.3", "0cce74b0d9b7f8528fb2181588d23793", "t13d591000_a33745022dd6_1f22a2ca17c4"),
    "tls-openssl": (NAME, ("h2",), "1.3", "5a1edc7f170af1014fc65c994878e63c", "t13d3111h2_e8f1e7e78f70_1f22a2ca17c4"),
    "tls-openssl-tls12-no-sni": (
        None,
        (),
        "1.2",
        "fbe7e189e37a07ee33706f86bc746344",
        "t12i280600_d943125447b4_e7e480e5a997",
    ),
    "tls-python": (
        NAME,
        ("h2", "http/1.1"),
        "1.3",
        "304734bb1c086c3453b387400cf83f11",
        "t13d1812h2_85036bcba153_d41ae481755e",
    ),
    "tls-wget": (NAME, (), "1.3", "bb4f9fef542ff6b4b29aa653bf0c1d31", "t13d291300_723694b0fccc_899037bd0b8c"),
}
QUIC_CAPTURES = {"quic-v1": "1", "quic-v2": "2", "quic-retry": "1", "quic-long": "1"}


LINK_HEADERS = {1: 14, 101: 0, 113: 16}  # LINKTYPE_ETHERNET, LINKTYPE_RAW, LINKTYPE_LINUX_SLL


def packets(name: str) -> Iterator[Packet]:
    with RawPcapReader(str(CAPTURES / f"{name}.pcap")) as reader:
        header = LINK_HEADERS[reader.linktype]
        for frame, _ in reader:
            packet = parse_packet(frame[header:])
            assert isinstance(packet, Packet), packet
            yield packet


def from_client(name: str) -> list[bytes]:
    """Payloads of the flow's opener, in order."""
    client: FiveTuple | None = None
    payloads = []
    for packet in packets(name):
        client = client or packet.five_tuple
        if packet.five_tuple == client and packet.payload:
            payloads.append(packet.payload)
    return payloads


def decide(session: TlsSession | QuicSession, payloads: list[bytes]) -> tuple[int, Outcome]:
    """Which payload (from 1) decided, and how."""
    for number, payload in enumerate(payloads, 1):
        outcome = session.feed(Direction.TO_SERVER, payload)
        if not isinstance(outcome, NeedMore):
            return number, outcome
    raise AssertionError("never decided")


def tshark(capture: Path, *fields: str) -> list[list[str]]:
    """The fields of every packet with a ClientHello, as the installed tshark reads them."""
    wanted = [part for field in fields for part in ("-e", field)]
    result = subprocess.run(
        ["tshark", "-r", capture, "-Y", "tls.handshake.type == 1", "-T", "fields", *wanted],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split("\t") for line in result.stdout.splitlines()]


@pytest.mark.parametrize("name", TLS_FACTS)
def test_hellos_of_real_programs(name: str) -> None:
    sni, names, version, ja3, ja4 = TLS_FACTS[name]
    payloads = from_client(name)
    number, outcome = decide(TlsSession(OPTIONS), payloads)
    facts = facts_of(outcome)
    assert number == 1
    assert (facts.get("tls.sni"), facts["tls.alpn"], facts["tls.version"]) == (sni, names, version)
    assert (facts["tls.ja3"], facts["tls.ja4"]) == (ja3, ja4)
    assert (facts["tls.ech"], facts["tls.esni"]) == (False, False)
    if sni is not None:
        assert isinstance(outcome, Confirm)
        span = outcome.messages[0].spans["tls.sni"]
        assert payloads[0][span.offset : span.offset + span.length] == sni.encode()


@pytest.mark.parametrize("name", QUIC_CAPTURES)
def test_quic_hellos_of_a_real_program(name: str) -> None:
    number, outcome = decide(QuicSession(OPTIONS), from_client(name))
    facts = facts_of(outcome)
    assert number == (3 if name == "quic-long" else 1)
    assert (facts["quic.sni"], facts["quic.version"]) == (NAME, QUIC_CAPTURES[name])
    assert facts["quic.alpn"][0] == "h3"  # type: ignore[index]
    assert len(facts["quic.alpn"]) == (91 if name == "quic-long" else 1)  # type: ignore[arg-type]
    assert facts["quic.ech"] is False


JA4_FIELDS = (
    "tls.handshake.ciphersuite",
    "tls.handshake.extension.type",
    "tls.handshake.sig_hash_alg",
    "tls.handshake.extensions.supported_version",
)


def ja4_of_fields(protocol: str, sni: str, names: str, lists: list[str]) -> str:
    """JA4 out of what tshark lists; none of these programs sends GREASE. Where no versions are listed it is TLS 1.2."""
    ciphers, extensions, algorithms, versions = ([int(n, 0) for n in text.split(",") if n] for text in lists)
    first = names.split(",")[0]
    counts = f"{len(ciphers):02}{len(extensions):02}"
    hashed = [f"{kind:04x}" for kind in sorted(extensions) if kind not in (0, 16)]
    text = ",".join(hashed) + "_" + ",".join(f"{number:04x}" for number in algorithms)
    return "_".join(
        (
            protocol + ("13" if 0x0304 in versions else "12") + ("d" if sni else "i") + counts,
            hashlib.sha256(",".join(f"{c:04x}" for c in sorted(ciphers)).encode()).hexdigest()[:12],
            hashlib.sha256(text.encode()).hexdigest()[:12],
        )
    ).replace(counts, counts + (first[:1] + first[-1:] or "00"), 1)


@pytest.mark.needs("tshark")
@pytest.mark.parametrize("name", [*TLS_FACTS, *QUIC_CAPTURES])
def test_tshark_reads_the_same_in_the_captures(name: str) -> None:
    rows = tshark(
        CAPTURES / f"{name}.pcap",
        "tls.handshake.extensions_server_name",
        "tls.handshake.extensions_alpn_str",
        "tls.handshake.ja3",
        *JA4_FIELDS,
    )
    sni, names, ja3, *lists = rows[0]
    protocol, session = ("tls", TlsSession(OPTIONS)) if name in TLS_FACTS else ("quic", QuicSession(OPTIONS))
    facts = facts_of(decide(session, from_client(name))[1])
    assert facts.get(f"{protocol}.sni", "") == sni
    assert ",".join(facts[f"{protocol}.alpn"]) == names  # type: ignore[arg-type]
    assert facts[f"{protocol}.ja4"] == ja4_of_fields(protocol[0], sni, names, lists)
    if protocol == "tls":
        assert facts["tls.ja3"] == ja3


def random_hello(chance: random.Random) -> bytes:
    """A hello with some of everything that is read, in some order."""
    grease = [0x0A0A + 0x1010 * n for n in range(16)]

    def some(values: list[int]) -> list[int]:
        return chance.sample([*values, chance.choice(grease)], chance.randint(1, len(values)))

    possible = [
        server_name(bytes(chance.choices(b"abcdefghijklmnop0123456789-", k=chance.randint(1, 60))) + b".example"),
        alpn(*chance.sample([b"h2", b"http/1.1", b"h3", b"dot", b"imap"], chance.randint(1, 5))),
        supported_versions(*some([0x0304, 0x0303, 0x0302])),
        groups(*some([29, 23, 24, 25, 0x11EC])),
        signature_algorithms(*chance.sample([0x0403, 0x0804, 0x0401, 0x0503, 0x0805], chance.randint(1, 5))),
        point_formats(*chance.sample([0, 1, 2], chance.randint(1, 3))),
        (0xFF01, b"\0"),
        (23, b""),
        (35, b""),
        (chance.choice(grease), b""),
        (21, bytes(chance.randint(0, 300))),
    ]
    return client_hello(
        chance.sample(possible, chance.randint(0, len(possible))),
        version=chance.choice([0x0301, 0x0302, 0x0303]),
        ciphers=some([0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F, 0x002F, 0x0035]),
        session_id=bytes(chance.choice([0, 32])),
    )


def write_capture(path: Path, raw_packets: list[bytes]) -> None:
    with PcapWriter(str(path), linktype=101) as writer:  # LINKTYPE_RAW
        writer.write_header(None)
        for raw in raw_packets:
            writer.write_packet(raw)


def flow(proto: int, number: int) -> FiveTuple:
    return FiveTuple(proto, address_bytes("192.0.2.1"), 20000 + number, address_bytes("198.51.100.2"), 443)


@pytest.mark.needs("tshark")
def test_tshark_reads_the_same_in_random_hellos(tmp_path: Path) -> None:
    chance = random.Random(20261121)
    hellos = [random_hello(chance) for _ in range(200)]
    raw = [
        build_tcp(flow(6, number), seq=1, ack=1, flags=0x18, window=500, payload=records(hello))
        for number, hello in enumerate(hellos)
    ]
    write_capture(tmp_path / "hellos.pcap", raw)
    fields = [
        "tcp.srcport",
        "tls.handshake.extensions_server_name",
        "tls.handshake.extensions_alpn_str",
        "tls.handshake.ja3",
        "tls.handshake.length",
    ]
    # The dissector learned JA4 in Wireshark 4.2.
    with_ja4 = has_ja4()
    rows = tshark(tmp_path / "hellos.pcap", *fields, *(["tls.handshake.ja4"] if with_ja4 else []))
    assert len(rows) == len(hellos)
    for number, (hello, row) in enumerate(zip(hellos, rows, strict=True)):
        facts = facts_of(TlsSession(OPTIONS).feed(Direction.TO_SERVER, records(hello)))
        ours = [
            str(20000 + number),
            str(facts.get("tls.sni", "")),
            ",".join(facts["tls.alpn"]),  # type: ignore[arg-type]
            facts["tls.ja3"],
            str(facts["tls.hello_length"] - 4),  # type: ignore[operator]
        ]
        if with_ja4:
            # Before its issue 20066 was mended, Wireshark hashed an empty list of extensions.
            ours.append(str(facts["tls.ja4"]))
            row[-1] = row[-1].replace(HASH_OF_NOTHING, "000000000000")
        assert row == ours


HASH_OF_NOTHING = hashlib.sha256(b"").hexdigest()[:12]


def has_ja4() -> bool:
    glossary = subprocess.run(["tshark", "-G", "fields"], capture_output=True, text=True, check=True).stdout
    return "tls.handshake.ja4\t" in glossary


@pytest.mark.needs("tshark")
def test_tshark_reads_the_same_in_initials(tmp_path: Path) -> None:
    chance = random.Random(20261121)
    raw, expected = [], []
    for number in range(40):
        name = f"host{number}.example".encode()
        hello = client_hello([server_name(name), *ORDINARY[1:]])
        middle = chance.randint(1, len(hello) - 1)
        frames = [crypto(0, hello[:middle]), crypto(middle, hello[middle:])]
        chance.shuffle(frames)
        dcid = chance.randbytes(chance.randint(8, 20))
        version = chance.choice([0x00000001, 0x6B3343CF])
        datagram = initial(
            b"\x01".join(frames) + bytes(900), dcid=dcid, version=version, number_length=chance.randint(1, 4)
        )
        facts = facts_of(QuicSession(OPTIONS).feed(Direction.TO_SERVER, datagram))
        assert facts["quic.sni"] == name.decode()
        raw.append(build_udp(flow(17, number), datagram))
        expected.append([name.decode(), f"{version:#010x}", str(len(dcid))])
    write_capture(tmp_path / "initials.pcap", raw)
    rows = tshark(tmp_path / "initials.pcap", "tls.handshake.extensions_server_name", "quic.version", "quic.dcil")
    assert rows == expected


def test_scapy_reads_the_same_hello() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from scapy.layers.tls.extensions import TLS_Ext_ALPN, TLS_Ext_ServerName, TLS_Ext_SupportedVersion_CH
        from scapy.layers.tls.handshake import TLSClientHello

    for name in TLS_FACTS:
        payload = from_client(name)[0]
        theirs = TLSClientHello(payload[5:])
        facts = facts_of(TlsSession(OPTIONS).feed(Direction.TO_SERVER, payload))
        extensions = {type(extension): extension for extension in theirs.ext}
        assert facts["tls.hello_length"] == theirs.msglen + 4
        sni = extensions.get(TLS_Ext_ServerName)
        assert facts.get("tls.sni") == (sni.servernames[0].servername.decode() if sni else None)
        protocols = extensions.get(TLS_Ext_ALPN)
        assert facts["tls.alpn"] == (tuple(p.protocol.decode() for p in protocols.protocols) if protocols else ())
        versions = extensions.get(TLS_Ext_SupportedVersion_CH)
        assert len(facts["tls.versions"]) == (len(versions.versions) if versions else 1)  # type: ignore[arg-type]


def test_other_protocols_in_captures_are_neither() -> None:
    checked = 0
    for path in sorted(CAPTURES.glob("*.pcap")):
        if path.stem in TLS_FACTS or path.stem in QUIC_CAPTURES:
            continue
        tls: dict[FiveTuple, TlsSession] = {}
        for packet in packets(path.stem):
            if not packet.payload:
                continue
            if packet.proto == 17:
                outcome = QuicSession(OPTIONS).feed(Direction.TO_SERVER, packet.payload)
                assert not isinstance(outcome, Confirm | NeedMore), path.name
            elif packet.proto == 6:
                session = tls.setdefault(packet.five_tuple, TlsSession(OPTIONS))
                outcome = session.feed(Direction.TO_SERVER, packet.payload)
                assert not isinstance(outcome, Confirm), path.name
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("name", TLS_FACTS)
def test_what_servers_send_is_no_client_hello(name: str) -> None:
    from_server = [packet.payload for packet in packets(name) if packet.sport == 443 and packet.payload]
    outcome = decide(TlsSession(OPTIONS), from_server)[1]
    assert not isinstance(outcome, Confirm)
