"""The shipped profiles in the engine: each does what its description says to what it names, and nothing else."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Sequence

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from gfwemu.engine.records import ResidualHit, RuleHit
from gfwemu.model import Side, Verdict, address_bytes
from gfwemu.rules.catalogue import find_profile
from gfwemu.rules.load import load_rules
from gfwemu.testing.playbook import Playbook, Reaction, TcpTalk, UdpTalk
from gfwemu.wire.packet import Packet, TcpFlags

BLOCKED, ALLOWED = "www.blocked.example", "www.allowed.example"
CLIENT = address_bytes("192.0.2.10")


class Censor:
    """A playbook with a shipped profile; packets go by who sends them."""

    def __init__(self, name: str) -> None:
        self.book = Playbook(load_rules([find_profile(name)]))

    def out(self, data: bytes, after: float = 0.0) -> Reaction:
        return self.book.packet(data, came_from=Side.INSIDE, after=after)

    def back(self, data: bytes, after: float = 0.0) -> Reaction:
        return self.book.packet(data, came_from=Side.OUTSIDE, after=after)

    def connect(self, talk: TcpTalk) -> None:
        syn, syn_ack, ack = talk.handshake()
        for reaction in (self.out(syn), self.back(syn_ack), self.out(ack)):
            assert reaction.verdict is Verdict.ACCEPT

    def hello(self, name: str, talk: TcpTalk) -> Reaction:
        self.connect(talk)
        return self.out(talk.to_server(client_hello(name)))


def client_hello(name: str) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    connection = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def query(name: str, qtype: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", qtype, 1)


def quic_initial(name: str) -> bytes:
    connection = QuicConnection(configuration=QuicConfiguration(server_name=name, alpn_protocols=["h3"]))
    connection.connect(("203.0.113.30", 443), now=0.0)
    return connection.datagrams_to_send(now=0.0)[0][0]


def rules_of(reaction: Reaction) -> list[str]:
    return [record.rule for record in reaction.records if isinstance(record, (RuleHit, ResidualHit))]


def to_client(packets: Sequence[Packet]) -> list[Packet]:
    return [packet for packet in packets if packet.dst == CLIENT]


def resets_at_client(reaction: Reaction) -> int:
    """Resets that reach the client: forged ones, and the server's own packet made into one."""
    own = reaction.own
    rewritten = own is not None and own.data is not None and bool(own.data[33] & TcpFlags.RST)
    return rewritten + resets(to_client(reaction.injected))


def resets(packets: Sequence[Packet]) -> int:
    return sum(bool(packet.flags & TcpFlags.RST) for packet in packets)


BY_NAME = ["sni-reset", "sni-drop", "http-blockpage", "throttle-domain", "freeze-16kb", "china", "russia", "open"]


@pytest.mark.parametrize("name", BY_NAME)
def test_what_is_not_named_passes(name: str) -> None:
    censor, talk = Censor(name), TcpTalk(server="203.0.113.20")
    assert censor.hello(ALLOWED, talk).verdict is Verdict.ACCEPT
    for _ in range(60):
        reaction = censor.back(talk.to_client(b"x" * 1200))
        assert (reaction.verdict, reaction.injected) == (Verdict.ACCEPT, [])


def test_open_passes_the_blocked_name() -> None:
    reaction = Censor("open").hello(BLOCKED, TcpTalk())
    assert (reaction.verdict, reaction.injected) == (Verdict.ACCEPT, [])


def test_sni_reset() -> None:
    reaction = Censor("sni-reset").hello(BLOCKED, TcpTalk())
    assert reaction.verdict is Verdict.DROP
    (packet,) = reaction.injected
    assert packet.dst == CLIENT
    assert packet.flags == TcpFlags.RST | TcpFlags.ACK


def test_sni_drop_and_its_residual_of_40_seconds() -> None:
    censor = Censor("sni-drop")
    reaction = censor.hello(BLOCKED, TcpTalk())
    assert (reaction.verdict, reaction.injected, rules_of(reaction)) == (Verdict.DROP, [], ["sni-drop"])
    assert censor.out(TcpTalk().syn(), after=39.0).verdict is Verdict.DROP
    assert censor.out(TcpTalk(client_port=40001).syn()).verdict is Verdict.ACCEPT
    late = TcpTalk()
    late.client_seq = 77_777_777
    assert censor.out(late.syn(), after=2.0).verdict is Verdict.ACCEPT


def test_ip_blacklist() -> None:
    censor = Censor("ip-blacklist")
    assert censor.out(TcpTalk(server="203.0.113.30").syn()).verdict is Verdict.DROP
    assert censor.out(UdpTalk(server="203.0.113.30").to_server(b"x")).verdict is Verdict.DROP
    assert censor.out(TcpTalk(server="203.0.113.31").syn()).verdict is Verdict.ACCEPT


@pytest.mark.parametrize(("name", "answers", "verdict"), [
    ("dns-poison", 1, Verdict.ACCEPT), ("dns-nxdomain", 1, Verdict.DROP), ("china", 2, Verdict.ACCEPT),
])  # fmt: skip
def test_forged_dns_answers(name: str, answers: int, verdict: Verdict) -> None:
    censor, talk = Censor(name), UdpTalk()
    reaction = censor.out(talk.to_server(query(BLOCKED)))
    assert reaction.verdict is verdict
    forged = [*reaction.injected, *censor.book.wait(0.01).injected]
    assert len(to_client(forged)) == answers
    for packet in forged:
        flags = struct.unpack(">H", packet.payload[2:4])[0]
        assert packet.payload[:2] == b"\x00\x07"
        assert flags & 0x8000
        assert flags & 0xF == (3 if name == "dns-nxdomain" else 0)
        assert (b"\xcb\x00\x71" in packet.payload) == (name != "dns-nxdomain")
    again = censor.out(UdpTalk(client_port=50001).to_server(query(ALLOWED)))
    assert (again.verdict, again.injected) == (Verdict.ACCEPT, [])


def test_http_blockpage() -> None:
    censor, talk = Censor("http-blockpage"), TcpTalk(port=80)
    censor.connect(talk)
    reaction = censor.out(talk.to_server(f"GET / HTTP/1.1\r\nHost: {BLOCKED}\r\n\r\n".encode()))
    assert reaction.verdict is Verdict.DROP
    page = b"".join(packet.payload for packet in to_client(reaction.injected))
    assert page.startswith(b"HTTP/1.1 403 ")
    assert b"This site is blocked" in page


def test_http_keyword_reset_and_its_residual_of_90_seconds() -> None:
    censor, talk = Censor("http-keyword-reset"), TcpTalk(port=80)
    censor.connect(talk)
    reaction = censor.out(talk.to_server(b"GET /?q=ultrasurf HTTP/1.1\r\nHost: www.example\r\n\r\n"))
    assert reaction.verdict is Verdict.ACCEPT
    assert (resets(to_client(reaction.injected)), resets(reaction.injected)) == (3, 6)
    again = censor.out(TcpTalk(port=80, client_port=40001).syn(), after=89.0)
    assert rules_of(again) == ["http-keyword-reset"]
    assert resets(to_client(again.injected)) == 3
    assert censor.out(TcpTalk(port=80, client_port=40002).syn(), after=2.0).injected == []


@pytest.mark.parametrize("name", ["quic-sni-drop", "china"])
def test_quic_sni_drop_after_a_while_for_three_minutes(name: str) -> None:
    censor = Censor(name)
    talk = UdpTalk(server="203.0.113.30", port=443)
    assert censor.out(talk.to_server(quic_initial(BLOCKED))).verdict is Verdict.ACCEPT
    assert censor.out(talk.to_server(b"\x40" + bytes(30)), after=0.07).verdict is Verdict.ACCEPT
    assert censor.out(talk.to_server(b"\x40" + bytes(30)), after=0.5).verdict is Verdict.DROP
    assert censor.back(talk.to_client(b"\x40" + bytes(30))).verdict is Verdict.ACCEPT
    other = UdpTalk(server="203.0.113.30", port=443, client_port=50001)
    assert censor.out(other.to_server(quic_initial(ALLOWED))).verdict is Verdict.DROP
    late = UdpTalk(server="203.0.113.30", port=443, client_port=50002)
    assert censor.out(late.to_server(quic_initial(ALLOWED)), after=181.0).verdict is Verdict.ACCEPT


def test_quic_of_a_low_client_port_is_not_looked_at() -> None:
    censor, talk = Censor("china"), UdpTalk(server="203.0.113.30", port=443, client_port=400)
    assert censor.out(talk.to_server(quic_initial(BLOCKED))).verdict is Verdict.ACCEPT
    assert censor.out(talk.to_server(b"\x40" + bytes(30)), after=1.0).verdict is Verdict.ACCEPT


def test_throttle_domain_drops_what_exceeds_the_rate() -> None:
    censor, talk = Censor("throttle-domain"), TcpTalk(server="203.0.113.30")
    assert censor.hello(BLOCKED, talk).verdict is Verdict.ACCEPT
    passed = 0
    for _ in range(1000):
        packet = talk.to_client(b"x" * 1200)
        if censor.back(packet, after=0.01).verdict is Verdict.ACCEPT:
            passed += len(packet)
    assert 130_000 < passed * 8 / 10 < 155_000


def test_openvpn_block() -> None:
    censor, talk = Censor("openvpn-block"), UdpTalk(server="203.0.113.90", port=1194)
    client_reset = b"\x38" + b"CLIENTID" + b"\0" + bytes(4)
    server_reset = b"\x40" + b"SERVERID" + b"\x01" + bytes(4) + b"CLIENTID" + bytes(4)
    assert censor.out(talk.to_server(client_reset)).verdict is Verdict.ACCEPT
    assert censor.back(talk.to_client(server_reset)).verdict is Verdict.DROP
    assert censor.out(talk.to_server(client_reset)).verdict is Verdict.DROP


def test_wireguard_block() -> None:
    censor, talk = Censor("wireguard-block"), UdpTalk(server="203.0.113.91", port=51820)
    initiation = b"\x01\0\0\0" + b"ABCD" + bytes(140)
    response = b"\x02\0\0\0" + b"EFGH" + b"ABCD" + bytes(80)
    data_out = b"\x04\0\0\0" + b"EFGH" + bytes(8) + bytes(32)
    data_back = b"\x04\0\0\0" + b"ABCD" + bytes(8) + bytes(32)
    assert censor.out(talk.to_server(initiation)).verdict is Verdict.ACCEPT
    assert censor.back(talk.to_client(response)).verdict is Verdict.ACCEPT
    censor.out(talk.to_server(data_out))
    assert censor.back(talk.to_client(data_back)).verdict is Verdict.DROP
    assert censor.out(talk.to_server(data_out)).verdict is Verdict.DROP


@pytest.mark.parametrize(("name", "server", "low", "high"), [
    ("freeze-16kb", "203.0.113.30", 15_000, 21_500), ("russia", "203.0.113.40", 18_000, 30_000),
])  # fmt: skip
def test_freeze(name: str, server: str, low: int, high: int) -> None:
    censor, talk = Censor(name), TcpTalk(server=server)
    assert censor.hello("anything.example", talk).verdict is Verdict.ACCEPT
    passed = 0
    for _ in range(60):
        packet = talk.to_client(b"x" * 1200)
        if censor.back(packet).verdict is Verdict.ACCEPT:
            passed += len(packet)
    assert low <= passed <= high


def test_china_resets_a_tls_name_by_three_injectors_and_for_three_minutes() -> None:
    censor, talk = Censor("china"), TcpTalk()
    reaction = censor.hello(BLOCKED, talk)
    assert (reaction.verdict, rules_of(reaction)) == (Verdict.ACCEPT, ["china-tls-sni"])
    forged = to_client(censor.book.wait(0.05).injected)
    assert sorted((packet.flags, packet.dont_fragment) for packet in forged) == [
        (TcpFlags.RST, False),
        (TcpFlags.RST | TcpFlags.ACK, False),
        *[(TcpFlags.RST | TcpFlags.ACK, True)] * 3,
    ]
    assert {packet.ttl for packet in forged if packet.flags != TcpFlags.RST and not packet.dont_fragment} == {255}
    again = censor.out(TcpTalk(client_port=40001).syn(), after=179.0)
    assert rules_of(again) == ["china-tls-sni"]
    assert censor.out(TcpTalk(client_port=40002).syn(), after=2.0).records == []


def test_china_resets_an_http_host() -> None:
    censor, talk = Censor("china"), TcpTalk(port=80)
    censor.connect(talk)
    reaction = censor.out(talk.to_server(f"GET / HTTP/1.1\r\nHost: {BLOCKED}\r\n\r\n".encode()))
    assert (reaction.verdict, rules_of(reaction)) == (Verdict.ACCEPT, ["china-http-host"])
    assert resets(to_client(reaction.injected)) == 4


def test_russia_turns_the_servers_packets_into_resets() -> None:
    censor, talk = Censor("russia"), TcpTalk(server="203.0.113.30")
    assert censor.hello(BLOCKED, talk).verdict is Verdict.ACCEPT
    assert resets_at_client(censor.back(talk.to_client(b"server hello"))) == 1
    inbound = TcpTalk(client="203.0.113.30", server="192.0.2.10")
    for data, side in ((inbound.syn(), "back"), (inbound.syn_ack(), "out"), (inbound.to_server(), "back")):
        assert getattr(censor, side)(data).verdict is Verdict.ACCEPT
    assert rules_of(censor.back(inbound.to_server(client_hello(BLOCKED)))) == []


def test_russia_blocks_addresses_from_inside_only() -> None:
    censor = Censor("russia")
    assert censor.out(TcpTalk(server="203.0.113.41").syn()).verdict is Verdict.DROP
    assert censor.back(TcpTalk(client="203.0.113.41", server="192.0.2.10").syn()).verdict is Verdict.ACCEPT


def test_russia_freezes_some_names_after_a_few_packets() -> None:
    censor, talk = Censor("russia"), TcpTalk()
    assert censor.hello("www.delayed.example", talk).verdict is Verdict.ACCEPT
    verdicts = [censor.back(talk.to_client(b"x")).verdict for _ in range(12)]
    assert 5 <= verdicts.index(Verdict.DROP) <= 8
    assert set(verdicts[8:]) == {Verdict.DROP}
