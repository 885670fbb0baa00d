"""Every field that rules can match on: traffic that it meets, and traffic next to that which it must not meet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hello_kit import (
    ORDINARY,
    alpn,
    client_hello,
    server_name,
    supported_versions,
)
from live_drive import ECHO_V6, ECHOES, RESOLVER_V6, SINK_PORT, V6, Drive
from live_kit import Client
from live_nodes import Node
from live_tcp import ACK, FIN, PSH, Wire

from gfwemu.rules.fields import rule_fields

pytestmark = pytest.mark.kernel

RULES = "version: 1\nrules: [{name: none, match: {ip.server: 198.51.100.1}, action: alert}]\n"
LAB = {"services": ECHOES}

URG = 32
ECH, ESNI = (0xFE0D, bytes(8)), (0xFFCE, bytes(8))
OTHER_ALPN = (server_name(b"www.example"), alpn(b"http/1.1"))
TLS12 = (server_name(b"www.example"), supported_versions(0x0303))
# Another order of the same: another JA3, the same JA4. One cipher less: both others.
TURNED = (*ORDINARY[1:], ORDINARY[0])
# Of the kit's ordinary ClientHello, put together by hand.
JA3 = hashlib.md5(b"771,4865-4866-49199,0-16-43-10-13-11,29-23,0").hexdigest()
_CIPHERS = hashlib.sha256(b"1301,1302,c02f").hexdigest()[:12]
_EXTENSIONS = hashlib.sha256(b"000a,000b,000d,002b_0403,0804").hexdigest()[:12]
JA4 = f"13d0306h2_{_CIPHERS}_{_EXTENSIONS}"
# P_CONTROL_HARD_RESET_CLIENT_V2: opcode 7, session ID, no acknowledgement, packet ID 0 (openvpn-rfc, wire format).
OPENVPN = b"\x38" + bytes(range(1, 9)) + bytes(5)
OPENVPN_KNOB = "openvpn: {confirm: client_reset}"
# Message type, three reserved bytes, and 144 bytes more (the WireGuard white paper, section 5.4.2).
WIREGUARD = b"\x01\0\0\0" + bytes(range(144))
WIREGUARD_KNOB = "wireguard: {confirm: initiation}"
CWD, EHLO = b"CWD /pub\r\n", b"EHLO me.example\r\n"

Act = Callable[[Drive], None]


@dataclass(frozen=True)
class Case:
    """Traffic that a match meets, and traffic that it does not. `engine`: knobs."""

    match: str
    hit: Act
    miss: Act
    engine: str = ""

    @property
    def fields(self) -> set[str]:
        return {name for name in rule_fields() if f"{name}:" in self.match}


CASES = [
    # The flow
    Case("{ip.client: 192.0.2.11}", lambda d: d.http(source="192.0.2.11"), lambda d: d.http()),
    Case(
        "{ip.client: '2001:db8:1::11'}",
        lambda d: d.http(address=V6, source="2001:db8:1::11"),
        lambda d: d.http(address=V6),
    ),
    Case("{ip.server: 203.0.113.8/29}", lambda d: d.http(), lambda d: d.http(address="203.0.113.24")),
    Case("{ip.server: '2001:db8:f::10'}", lambda d: d.http(address=V6), lambda d: d.http()),
    Case("{ip.any: 192.0.2.11}", lambda d: d.udp(b"x", source="192.0.2.11"), lambda d: d.udp(b"x")),
    Case("{ip.any: 203.0.113.24}", lambda d: d.http(address="203.0.113.24"), lambda d: d.http()),
    Case("{ip.version: 6}", lambda d: d.http(address=V6), lambda d: d.http()),
    Case("{port.client: 44000-44009}", lambda d: d.http(local_port=44_005), lambda d: d.http(local_port=44_010)),
    Case("{port.server: [81, 7]}", lambda d: d.udp(b"x"), lambda d: d.http()),
    Case(
        "{port.client_above_server: false, port.server: 60000}",
        lambda d: d.from_inside(60_000, local_port=1025),
        lambda d: d.from_inside(60_000, local_port=60_001),
    ),
    Case("{transport: icmp}", lambda d: d.ping(), lambda d: d.udp(b"x")),
    Case("{transport: icmpv6}", lambda d: d.ping(V6), lambda d: d.ping()),
    Case("{transport: other}", lambda d: d.other_protocol(), lambda d: d.ping()),
    Case("{transport: tcp, port.server: 7}", lambda d: d.tcp(b"x"), lambda d: d.udp(b"x")),
    Case("{initiator: outside}", lambda d: d.from_outside(8081), lambda d: d.from_inside(8081)),
    Case("{initiator: inside, port.server: 8082}", lambda d: d.from_inside(8082), lambda d: d.from_outside(8082)),
    Case("{subscriber: bob}", lambda d: d.http(source="192.0.2.11"), lambda d: d.http()),
    Case("{subscriber: bob}", lambda d: d.http(address=V6, source="2001:db8:1::11"), lambda d: d.http(address=V6)),
    Case("{subscriber.group: abroad}", lambda d: d.http(source="192.0.2.11"), lambda d: d.http()),
    Case("{subscriber.group: home, initiator: outside}", lambda d: d.from_outside(8083), lambda d: d.http()),
    # Messages
    Case("{protocol: tls}", lambda d: d.tls(), lambda d: d.http()),
    Case("{protocol: [openvpn, http]}", lambda d: d.http(address=V6), lambda d: d.tls(address=V6)),
    Case("{protocol: {not: [dns, http]}}", lambda d: d.tls(), lambda d: d.http()),
    Case("{protocol: unknown, port.server: 7}", lambda d: d.tcp(b"\xff" * 64), lambda d: d.http()),
    Case("{dns.qname: met.example}", lambda d: d.dns("a.Met.example"), lambda d: d.dns("unmet.example")),
    Case(
        "{dns.qname: met.example}",
        lambda d: d.dns("met.example", address=RESOLVER_V6),
        lambda d: d.dns("met.example.test", address=RESOLVER_V6),
    ),
    Case("{dns.qtype: [TXT, mx]}", lambda d: d.dns(qtype=15), lambda d: d.dns(qtype=28)),
    Case("{dns.qclass: CH}", lambda d: d.dns(qclass=3), lambda d: d.dns()),
    Case("{dns.rd: false}", lambda d: d.dns(rd=0), lambda d: d.dns()),
    Case(
        "{dns.response: true, dns.qname: met.example}",
        lambda d: d.dns("met.example"),
        lambda d: d.dns("met.example", silent=True),
    ),
    Case("{dns.questions: '>1'}", lambda d: d.dns(count=2), lambda d: d.dns()),
    Case("{http.host: met.example}", lambda d: d.http("www.MET.example:80"), lambda d: d.http("unmet.example")),
    Case("{http.path: {prefix: /a, not: {suffix: .png}}}", lambda d: d.http(path="/ab"), lambda d: d.http(path="/b")),
    Case("{http.path: {prefix: /a}, http.host: {not: x.example}}", lambda d: d.http(path="/a"), lambda d: d.http()),
    Case("{http.path: {regex: '^/[0-9]+$'}}", lambda d: d.http(path="/17"), lambda d: d.http(path="/17a")),
    Case("{http.method: [PUT, DELETE]}", lambda d: d.http(method="PUT"), lambda d: d.http(method="POST")),
    Case("{http.version: '1.0'}", lambda d: d.http(version="1.0"), lambda d: d.http()),
    Case("{http.user_agent: {contains: Bot}}", lambda d: d.http(agent="aBot/1"), lambda d: d.http(agent="abot/1")),
    Case("{http.keyword: met-word}", lambda d: d.http(path="/?q=met-word+x"), lambda d: d.http(path="/?q=met")),
    Case("{http.keyword: 法轮}", lambda d: d.http(path="/%E6%B3%95%E8%BD%AE"), lambda d: d.http(path="/%E6%B3%95")),
    Case("{tls.sni: met.example}", lambda d: d.tls([server_name(b"a.MET.example")]), lambda d: d.tls()),
    Case(
        "{tls.sni: {not: www.example}}",
        lambda d: d.tls([server_name(b"other.example")], address=V6),
        lambda d: d.tls(address=V6),
    ),
    Case("{tls.alpn: h2}", lambda d: d.tls(), lambda d: d.tls(OTHER_ALPN)),
    Case("{tls.version: '1.2'}", lambda d: d.tls(TLS12), lambda d: d.tls()),
    Case("{tls.legacy_version: '1.1'}", lambda d: d.tls(version=0x0302), lambda d: d.tls()),
    Case("{tls.versions: '1.3'}", lambda d: d.tls(), lambda d: d.tls(TLS12)),
    Case("{tls.ech: true}", lambda d: d.tls([*ORDINARY, ECH]), lambda d: d.tls([*ORDINARY, ESNI])),
    Case("{tls.ech: false, tls.sni: www.example}", lambda d: d.tls(), lambda d: d.tls([*ORDINARY, ECH])),
    Case("{tls.esni: true}", lambda d: d.tls([*ORDINARY, ESNI]), lambda d: d.tls([*ORDINARY, ECH])),
    Case(f"{{tls.ja3: {JA3}}}", lambda d: d.tls(), lambda d: d.tls(TURNED)),
    Case(f"{{tls.ja4: t{JA4}}}", lambda d: d.tls(TURNED), lambda d: d.tls(ciphers=(0x1301, 0x1302))),
    Case(f"{{tls.hello_length: {len(client_hello())}}}", lambda d: d.tls(), lambda d: d.tls(OTHER_ALPN)),
    Case("{tls.ciphers: 1301-c02f}", lambda d: d.tls(ciphers=(0x1301, 0xC02F)), lambda d: d.tls()),
    Case(
        "{tls.ciphers: 1302-1301}",
        lambda d: d.tls(address=V6, ciphers=(0x1A1A, 0x1302, 0x1301)),
        lambda d: d.tls(address=V6, ciphers=(0x1A1A, 0x1301, 0x1302)),
    ),
    Case("{quic.sni: met.example}", lambda d: d.quic([server_name(b"met.example")]), lambda d: d.quic()),
    Case("{quic.alpn: h2}", lambda d: d.quic(address=V6), lambda d: d.quic(OTHER_ALPN, address=V6)),
    Case("{quic.version: '2'}", lambda d: d.quic(version=0x6B3343CF), lambda d: d.quic()),
    Case(f"{{quic.ja4: q{JA4}}}", lambda d: d.quic(), lambda d: d.quic(OTHER_ALPN)),
    Case("{quic.ech: true}", lambda d: d.quic([*ORDINARY, ECH]), lambda d: d.quic()),
    Case("{quic.dcid_length: '>=16'}", lambda d: d.quic(dcid=bytes(16)), lambda d: d.quic()),
    Case("{openvpn.variant: plain}", lambda d: d.udp(OPENVPN), lambda d: d.udp(OPENVPN[1:]), OPENVPN_KNOB),
    Case("{openvpn.stage: reset}", lambda d: d.udp(OPENVPN), lambda d: d.udp(WIREGUARD), OPENVPN_KNOB),
    Case("{openvpn.opcode: 7}", lambda d: d.udp(OPENVPN), lambda d: d.udp(b"\x10" + OPENVPN[1:]), OPENVPN_KNOB),
    Case("{wireguard.stage: initiation}", lambda d: d.udp(WIREGUARD), lambda d: d.udp(WIREGUARD[1:]), WIREGUARD_KNOB),
    Case(
        "{wireguard.reserved: true}",
        lambda d: d.udp(b"\x01\xaa\xbb\xcc" + WIREGUARD[4:-16] + bytes(16)),
        lambda d: d.udp(WIREGUARD),
        WIREGUARD_KNOB,
    ),
    Case("{ftp.command: RETR}", lambda d: d.tcp(CWD, b"retr a\r\n"), lambda d: d.tcp(CWD, b"STOR RETR\r\n")),
    Case(
        "{ftp.argument: {contains: met}}",
        lambda d: d.tcp(CWD, b"RETR a-met.txt\r\n", address=ECHO_V6),
        lambda d: d.tcp(CWD, b"RETR unknown.txt\r\n", b"met\r\n", address=ECHO_V6),
    ),
    Case("{smtp.command: VRFY}", lambda d: d.tcp(EHLO, b"vrfy user\r\n"), lambda d: d.tcp(EHLO, b"HELP vrfy\r\n")),
    Case(
        "{smtp.argument: met.example}",
        lambda d: d.tcp(b"EHLO met.example\r\n", address=ECHO_V6),
        lambda d: d.tcp(EHLO, b"DATA\r\n", b"HELO met.example\r\n.\r\n", address=ECHO_V6),
    ),
    Case(
        "{smtp.mail_from: {suffix: a@met.example}}",
        lambda d: d.tcp(EHLO, b"MAIL FROM:<Tia@Met.example>\r\n"),
        lambda d: d.tcp(EHLO, b"RCPT TO:<a@met.example>\r\n"),
    ),
    Case(
        "{smtp.rcpt_to: a@met.example}",
        lambda d: d.tcp(EHLO, b"rcpt to:<A@Met.", b"example> NOTIFY=NEVER\r\n"),
        lambda d: d.tcp(EHLO, b"MAIL FROM:<a@met.example>\r\n", b"RCPT TO:<b@met.example>\r\n"),
    ),
    # Packets
    Case(
        "{direction: to_client, payload.contains: token}",
        lambda d: d.tcp(b"a token"),
        lambda d: d.tcp(b"a token", port=SINK_PORT, answers=False),
    ),
    Case("{tcp.flags: FPU}", lambda d: d.odd_flags(FIN | PSH | URG), lambda d: d.odd_flags(FIN | ACK)),
    Case("{packet.length: 333, transport: udp}", lambda d: d.udp(bytes(305)), lambda d: d.udp(bytes(306))),
    Case(
        "{packet.length: 333, ip.version: 6}",
        lambda d: d.udp(bytes(285), address=ECHO_V6),
        lambda d: d.udp(bytes(305), address=ECHO_V6),
    ),
    Case(
        "{payload.number: 2, payload.contains: token}",
        lambda d: d.tcp(b"first", b"token"),
        lambda d: d.tcp(b"token", b"second", b"token"),
    ),
    Case("{payload.length: 411-413, port.server: 7}", lambda d: d.tcp(bytes(412)), lambda d: d.tcp(bytes(414))),
    Case("{payload.length_mod16: 9, port.server: 7}", lambda d: d.udp(bytes(41)), lambda d: d.udp(bytes(42))),
    Case(
        "{payload.length_mod16: 9, port.server: 7}",
        lambda d: d.tcp(bytes(8), bytes(9), address=ECHO_V6),
        lambda d: d.tcp(bytes(8), bytes(8), address=ECHO_V6),
    ),
    Case(
        "{payload.bytes: {offset: 1, hex: '99 ?? 77'}}",
        lambda d: d.udp(b"\x01\x99\x02\x77"),
        lambda d: d.udp(b"\x99\x02\x77\x00"),
    ),
    Case("{payload.contains: {hex: ff 00 fe}}", lambda d: d.tcp(b"a\xff\0\xfeb"), lambda d: d.tcp(b"\xff\xfe\0")),
    Case("{payload.popcount: '>7.5', port.server: 7}", lambda d: d.udp(b"\xff" * 9), lambda d: d.udp(b"\x7f" * 9)),
    # Three bytes of one value and one of another: 0.811 bits a byte; two and two: 1 bit.
    Case("{payload.entropy: 0.81-0.82, port.server: 7}", lambda d: d.udp(b"aaab" * 9), lambda d: d.udp(b"aabb" * 9)),
    Case(
        "{payload.entropy: '>=7', port.server: 7}",
        lambda d: d.tcp(bytes(range(128))),
        lambda d: d.tcp(bytes(range(127)) + b"~"),
    ),
    Case("{payload.printable: '<=0.5', port.server: 7}", lambda d: d.udp(b"ab\0\1"), lambda d: d.udp(b"abc\0")),
    Case(
        "{payload.printable_run: '>20', port.server: 7}", lambda d: d.udp(b"\0" + b"a" * 21), lambda d: d.udp(b"a" * 20)
    ),
    Case(
        "{payload.printable_prefix: '<6', port.server: 7}", lambda d: d.udp(b"abcde\0fgh"), lambda d: d.udp(b"abcdef\0")
    ),
    Case("{count.packets: 6, port.server: 7}", lambda d: d.udp(b"1", b"2", b"3"), lambda d: d.udp(b"1", b"2")),
    Case(
        "{count.packets.to_server: 3, port.server: 7}", lambda d: d.udp(b"1", b"2", b"3"), lambda d: d.udp(b"1", b"2")
    ),
    Case("{count.packets.to_client: 2, port.server: 7}", lambda d: d.udp(b"1", b"2"), lambda d: d.udp(b"1")),
    Case("{count.bytes: '>=2056', port.server: 7}", lambda d: d.udp(bytes(1000)), lambda d: d.udp(bytes(999))),
    Case(
        "{count.bytes.to_server: '>=1028', port.server: 7}", lambda d: d.udp(bytes(1000)), lambda d: d.udp(bytes(999))
    ),
    Case(
        "{count.bytes.to_client: '>=1028', port.server: 7}", lambda d: d.udp(bytes(1000)), lambda d: d.udp(bytes(999))
    ),
    # Alternatives and exceptions
    Case(
        "{any: [{dns.qname: met.example}, {tls.sni: met.example}]}", lambda d: d.dns("met.example"), lambda d: d.dns()
    ),
    Case(
        "{any: [{dns.qname: met.example}, {tls.sni: met.example}]}",
        lambda d: d.tls([server_name(b"met.example")]),
        lambda d: d.http("met.example"),
    ),
    Case("{ip.server: {not: [203.0.113.10, 198.51.100.0/24]}}", lambda d: d.udp(b"x"), lambda d: d.http()),
    Case("{port.server: {not: [53, 80]}}", lambda d: d.udp(b"x"), lambda d: d.http()),
    Case(
        "{tls: {sni: met.example, ech: true}}",
        lambda d: d.tls([server_name(b"met.example"), ECH]),
        lambda d: d.tls([ECH]),
    ),
]


@pytest.fixture(scope="module")
def drive(client: Client, client_node: Node, internet_node: Node, wire: Wire) -> Drive:
    return Drive(client, client_node, internet_node, wire)


# Without `::`, which pytest-xdist takes for the end of the module's name.
@pytest.mark.parametrize("case", CASES, ids=[case.match.replace("::", ":_:") for case in CASES])
def test_a_match_meets_what_it_names_and_not_what_lies_next_to_it(drive: Drive, case: Case) -> None:
    name = f"case-{CASES.index(case)}"
    drive.client.load(
        f"""version: 1
engine: {{{case.engine}}}
subscribers:
  alice: {{addresses: [192.0.2.10, "2001:db8:1::10"], groups: [home]}}
  bob: {{addresses: [192.0.2.11/32, "2001:db8:1::11"], groups: [home, abroad]}}
rules: [{{name: {name}, match: {case.match}, action: alert}}]
"""
    )
    case.miss(drive)
    drive.flush()
    assert drive.client.hits(name) == []
    case.hit(drive)
    drive.flush()
    hits = drive.client.wait_for_hit(name)
    assert case.fields <= {evidence["field"] for hit in hits for evidence in hit["censor"]["evidence"]} | _unproven(
        case
    )


def _unproven(case: Case) -> set[str]:
    """Of alternatives, only one is evidence."""
    return case.fields if "any:" in case.match else set()


def test_every_field_has_its_case() -> None:
    covered = {field for case in CASES for field in case.fields}
    assert covered == set(rule_fields())
