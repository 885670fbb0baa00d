"""Forged packets on the wire exactly as ordered, seen at the client, at the server and in the daemon's capture."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from dnslib import DNSRecord
from live_kit import Client, wait_for
from live_nodes import Node, Seen, Sniffer
from live_tcp import HandTcp, Wire
from live_tls import Hello, outcome, read_until
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet
from scapy.utils import RawPcapNgReader

pytestmark = pytest.mark.kernel

RULES = """version: 1
defaults: {seed: 3}
rules:
  - name: shapes
    match: {http.host: shapes.example}
    action: reset
    placement: on-path
    with:
      injectors:
        - {name: I, flags: R, ttl: 55-118, ip_id: 0, window: 11, towards: client}
        - {name: II, flags: RA, count: 3, df: true, ttl: 200, ip_id: 4660, window: 22, towards: client}
        - {name: III, flags: RA, seq_offsets: [0, 1460, 4380], ttl: mirror, ip_id: 0, df: true, window: 33}
        - {name: IV, flags: R, ttl: 99, payload: 62 79 65, window: 44, towards: server}
        - {name: V, flags: FPA, ttl: 77, window: mirror, towards: client}
  - {name: passing, match: {http.host: passing.example}, action: reset, placement: on-path, with: {towards: client}}
  - {name: both, match: {http.host: both.example}, action: reset, placement: on-path}
  - {name: cut, match: {http.host: cut.example}, action: reset}
  - {name: cut-server, match: {http.host: cut-server.example}, action: reset, with: {towards: server}}
  - {name: fin, match: {http.host: fin.example}, action: fin}
  - name: counted
    match: {http.host: counted.example}
    action: reset
    with: {injectors: [{ttl: increment, window: increment, ip_id: increment}], towards: client}
  - name: late
    match: {http.host: late.example}
    action: reset
    with:
      towards: client
      injectors: [{delay: {quantiles: {p5: 40ms, p50: 60ms, p95: 120ms}}}]
  - name: sometimes
    match: {http.host: sometimes.example}
    action: reset
    placement: on-path
    with: {towards: client, injectors: [{probability: 0.5}]}
  - {name: page, match: {http.host: page.example}, action: blockpage, with: {body: "No.\\n"}}
  - {name: alert, match: {tls.sni: alert.example}, action: tls_alert, with: {description: 80}}
  - name: poison
    match: {dns.qname: poison.example, dns.response: false}
    action: poison
    placement: on-path
    with:
      a: [203.0.113.250, 203.0.113.251]
      aaaa: ["2001:db8:bad::1"]
      injectors:
        - {ttl: 64, ip_id: 0, df: true, authoritative: true, answer_ttl: 123}
        - {ttl: 32-40, answer_ttl: 61-300, count: 2}
  - name: answered
    match: {dns.qname: answered.example, dns.response: false}
    action: poison
    with: {a: [203.0.113.9]}
"""
LAB = {"capture": True}
SERVERS = {4: "203.0.113.10", 6: "2001:db8:f::10"}
LONELY = {4: "203.0.113.62", 6: "2001:db8:f::62"}
RESOLVERS = {4: "198.51.100.53", 6: "2001:db8:53::53"}
VERSIONS = pytest.mark.parametrize("version", [4, 6])
# Routers that take one from a TTL: behind the censor the access router, before it the access router and the censor,
# towards the internet the transit router.
TO_CLIENT, TO_CENSOR, TO_SERVER = 1, 2, 1


@dataclass(frozen=True)
class Forged:
    """A segment as scapy reads it."""

    ttl: int
    flags: str
    window: int
    seq: int
    ack: int
    payload: bytes
    ip_id: int | None
    df: bool | None
    at: float

    @classmethod
    def of(cls, seen: Seen) -> Forged:
        ip: Packet = IPv6(seen.data) if seen.data[0] >> 4 == 6 else IP(seen.data)
        tcp = ip[TCP]
        v6 = ip.version == 6
        assert (ip.chksum if not v6 else 0) == (IP(bytes(rebuilt(ip)))[IP].chksum if not v6 else 0)
        assert tcp.chksum == rebuilt(ip)[TCP].chksum
        return cls(
            ip.hlim if v6 else ip.ttl,
            str(tcp.flags),
            tcp.window,
            tcp.seq,
            tcp.ack,
            bytes(tcp.payload),
            None if v6 else ip.id,
            None if v6 else "DF" in ip.flags,
            seen.at,
        )


def rebuilt(ip: Packet) -> Packet:
    """The same with the checksums that scapy computes."""
    copy = ip.copy()
    del copy[TCP].chksum
    if copy.version == 4:
        del copy[IP].chksum
    return type(ip)(bytes(copy))


@dataclass
class Trial:
    """One request that sets a rule off, and what both ends saw of its connection."""

    tcp: Any
    at_client: Sniffer
    at_server: Sniffer
    port: int
    request: Forged

    def to_client(self) -> list[Forged]:
        return [Forged.of(seen) for seen in self.at_client.segments(dport=self.port, sent=False)]

    def to_server(self) -> list[Forged]:
        return [Forged.of(seen) for seen in self.at_server.segments(sport=self.port, sent=False)]

    def wait(self, condition: Callable[[], object]) -> None:
        wait_for(condition)


def of(packets: list[Forged], **wanted: object) -> list[Forged]:
    return [one for one in packets if all(getattr(one, name) == value for name, value in wanted.items())]


@contextmanager
def trial(client_node: Node, internet_node: Node, name: str, address: str, port: int = 80) -> Iterator[Trial]:
    with (
        client_node.sniffer() as at_client,
        internet_node.sniffer() as at_server,
        client_node.connect(address, port) as tcp,
    ):
        own = tcp.getsockname()[1]
        tcp.sendall(f"GET / HTTP/1.1\r\nHost: {name}.example\r\n\r\n".encode())
        sent = at_client.wait(lambda: [s for s in at_client.segments(sport=own, sent=True) if s.packet.payload])
        yield Trial(tcp, at_client, at_server, own, Forged.of(sent[0]))


@VERSIONS
def test_every_field_is_as_ordered(client_node: Node, internet_node: Node, version: int) -> None:
    with trial(client_node, internet_node, "shapes", SERVERS[version]) as one:
        one.wait(lambda: len(of(one.to_client(), window=33)) == 3 and of(one.to_server(), window=44))
        request, after = one.request, one.request.seq + len(one.request.payload)
        first = of(one.to_client(), window=11)
        assert [(i.flags, i.seq, i.ack, i.payload) for i in first] == [("R", request.ack, 0, b"")]
        assert 55 <= first[0].ttl + TO_CLIENT <= 118
        second = of(one.to_client(), window=22)
        assert [(i.flags, i.ttl + TO_CLIENT, i.seq, i.ack) for i in second] == [("RA", 200, request.ack, after)] * 3
        third = of(one.to_client(), window=33)
        assert [i.seq - request.ack for i in third] == [0, 1460, 4380]
        assert {(i.flags, i.ttl, i.ack) for i in third} == {("RA", 64 - TO_CENSOR - TO_CLIENT, after)}
        # Towards the server: beyond the request, which has passed.
        third_up = of(one.to_server(), window=33)
        assert [i.seq - after for i in third_up] == [0, 1460, 4380]
        assert {(i.flags, i.ttl, i.ack) for i in third_up} == {("RA", 64 - TO_CENSOR - TO_SERVER, request.ack)}
        fourth = of(one.to_server(), window=44)
        assert [(i.flags, i.ttl, i.seq, i.payload) for i in fourth] == [("R", 99 - TO_SERVER, after, b"bye")]
        fifth = of(one.to_client(), flags="FPA", ttl=77 - TO_CLIENT)
        assert [(i.window, i.seq, i.ack) for i in fifth] == [(request.window, request.ack, after)]
        assert not of(one.to_server(), window=11) + of(one.to_server(), window=22) + of(one.to_client(), window=44)
        if version == 4:
            assert {(i.ip_id, i.df) for i in first} == {(0, False)}
            assert {(i.ip_id, i.df) for i in second} == {(4660, True)}
            assert {(i.ip_id, i.df) for i in (*third, *third_up)} == {(0, True)}
            # Without an order, the IP ID is random.
            assert {(i.df, i.ip_id in (0, 4660)) for i in fifth} == {(False, False)}


@VERSIONS
def test_on_path_the_trigger_passes_and_the_real_answer_still_comes(
    wire: Wire, internet_node: Node, version: int
) -> None:
    """A real kernel would end the connection at the server, too, before the answer is out."""
    request = b"GET / HTTP/1.1\r\nHost: passing.example\r\n\r\n"
    with internet_node.sniffer() as at_server, wire.sniffer() as at_client:
        tcp = HandTcp(wire, SERVERS[version], 80).connect()
        port = tcp.tuple.sport
        tcp.send(request)

        def to_client() -> list[Forged]:
            return [Forged.of(seen) for seen in at_client.segments(dport=port, sent=False)]

        wait_for(lambda: [one for one in to_client() if b"200" in one.payload])
        tcp.close()
        assert request in [seen.packet.payload for seen in at_server.segments(sport=port)]
        reset, answer = of(to_client(), flags="RA")[0], next(one for one in to_client() if one.payload)
        assert reset.at < answer.at
        assert reset.seq == answer.seq


@VERSIONS
def test_in_path_the_trigger_does_not_pass(client_node: Node, internet_node: Node, version: int) -> None:
    with trial(client_node, internet_node, "cut", SERVERS[version]) as one:
        assert outcome(lambda: read_until(one.tcp, b"never")) == "reset"
        one.wait(lambda: of(one.to_server(), flags="RA"))
        assert [(i.seq, i.ack) for i in of(one.to_server(), flags="RA")] == [(one.request.seq, one.request.ack)]
        assert not [i for i in (*one.to_server(), *one.to_client()) if i.payload]


@VERSIONS
@pytest.mark.parametrize(
    ("name", "client_meets", "server_meets"),
    [
        ("both", "reset", "reset"),
        ("cut", "reset", "reset"),
        ("cut-server", "timeout", "reset"),
        ("fin", "closed", "closed"),
    ],
)
def test_real_kernels_at_both_ends_take_the_forgeries_for_real(
    client_node: Node, internet_node: Node, version: int, name: str, client_meets: str, server_meets: str
) -> None:
    with (
        internet_node.listen(LONELY[version], 8080) as listener,
        trial(client_node, internet_node, name, LONELY[version], 8080) as one,
    ):
        served, _ = listener.accept()
        with served:
            for end, meets in ((one.tcp, client_meets), (served, server_meets)):
                end.settimeout(0.5)
                assert outcome(lambda end=end: read_until(end, b"never")) == meets  # type: ignore[misc]


@VERSIONS
def test_headers_that_count_up(client_node: Node, internet_node: Node, version: int) -> None:
    seen = []
    for _ in range(4):
        with trial(client_node, internet_node, "counted", SERVERS[version]) as one:
            one.wait(lambda one=one: of(one.to_client(), flags="RA"))  # type: ignore[misc]
            (reset,) = of(one.to_client(), flags="RA")
            seen.append((reset.ttl + TO_CLIENT, reset.window, reset.ip_id or 0))
    for before, now in pairwise(seen):
        assert (now[0] - before[0]) % 256 == 1
        assert (now[1] - before[1]) % 65_536 == 1
        assert version == 6 or (now[2] - before[2]) % 65_536 == 1


def test_delays_are_spread_as_measured(client_node: Node, internet_node: Node) -> None:
    delays = []
    for number in range(24):
        with trial(client_node, internet_node, "late", SERVERS[6 if number % 2 else 4]) as one:
            one.wait(lambda one=one: of(one.to_client(), flags="RA"))  # type: ignore[misc]
            delays.append(of(one.to_client(), flags="RA")[0].at - one.request.at)
    # The quantiles go from 40 to 120 ms, the median lies at 60; the way takes a few milliseconds more.
    assert min(delays) >= 0.040
    assert statistics.quantiles(delays, n=10)[-1] < 0.150
    assert 0.045 < statistics.median(delays) < 0.085
    assert statistics.stdev(delays) > 0.008


def test_an_injector_that_acts_sometimes(client: Client, client_node: Node) -> None:
    seen = []
    for _ in range(20):
        with client_node.connect(SERVERS[4], 80) as tcp:
            tcp.sendall(b"GET / HTTP/1.1\r\nHost: sometimes.example\r\n\r\n")
            seen.append(outcome(lambda tcp=tcp: read_until(tcp, b"hello from sometimes")))  # type: ignore[misc]
    assert set(seen) == {"ok", "reset"}
    assert len(client.wait_for_hit("sometimes")) == 20


@VERSIONS
def test_a_block_page_and_its_ends(client_node: Node, internet_node: Node, version: int) -> None:
    with trial(client_node, internet_node, "page", SERVERS[version]) as one:
        page = b""
        while more := one.tcp.recv(4096):
            page += more
        assert page.startswith(b"HTTP/1.1 451 ")
        assert page.endswith(b"\r\n\r\nNo.\n")
        one.wait(lambda: of(one.to_server(), flags="RA"))
        assert not [i for i in one.to_server() if i.payload]


@VERSIONS
def test_a_tls_alert(client: Client, client_node: Node, version: int) -> None:
    with client_node.connect(SERVERS[version], 443) as tcp:
        tcp.sendall(Hello(client.lab, "alert.example").record)
        got = b""
        while more := tcp.recv(4096):
            got += more
    # A fatal internal_error (80) in a record of TLS 1.2 (RFC 8446 sections 5.1 and 6).
    assert got == bytes.fromhex("15 03 03 00 02 02 50")


@VERSIONS
def test_forged_answers_race_the_real_one(client_node: Node, version: int) -> None:
    with client_node.sniffer() as sniffer, client_node.datagrams(RESOLVERS[version], 53) as udp:
        query = DNSRecord.question("poison.example")
        udp.send(bytes(query.pack()))
        port = udp.getsockname()[1]

        def answers() -> list[tuple[Packet, DNSRecord]]:
            found = [seen for seen in sniffer.look() if seen.packet.five_tuple.dport == port]
            read = [(IPv6 if version == 6 else IP)(seen.data) for seen in found]
            return [(ip, DNSRecord.parse(seen.packet.payload)) for ip, seen in zip(read, found, strict=True)]

        assert sniffer.wait(lambda: len(answers()) == 4)
        (one, first), (two, second), (three, third), (_, real) = answers()
        assert {answer.header.id for _, answer in answers()} == {query.header.id}
        assert [(answer.header.aa, answer.rr[0].ttl) for answer in (first,)] == [(1, 123)]
        assert [str(answer.rr[0].rdata) for answer in (first, second)] == ["203.0.113.250", "203.0.113.251"]
        assert str(real.rr[0].rdata) == "203.0.113.10"
        assert all(61 <= answer.rr[0].ttl <= 300 and not answer.header.aa for answer in (second, third))
        assert bytes(second.pack()) == bytes(third.pack())
        ttls = [(ip.hlim if version == 6 else ip.ttl) + TO_CLIENT for ip in (one, two, three)]
        assert ttls[0] == 64
        assert all(32 <= ttl <= 40 for ttl in ttls[1:])
        if version == 4:
            assert (one.id, str(one.flags)) == (0, "DF")


@VERSIONS
def test_in_path_the_forged_answer_comes_alone(client_node: Node, internet_node: Node, version: int) -> None:
    with (
        internet_node.sniffer() as at_server,
        client_node.sniffer() as at_client,
        client_node.datagrams(RESOLVERS[version], 53) as udp,
    ):
        port = udp.getsockname()[1]
        udp.send(bytes(DNSRecord.question("answered.example").pack()))
        assert str(DNSRecord.parse(udp.recv(4096)).rr[0].rdata) == "203.0.113.9"
        udp.send(bytes(DNSRecord.question("www.allowed.example").pack()))
        assert str(DNSRecord.parse(udp.recv(4096)).rr[0].rdata) == "203.0.113.10"
        arrived = [seen for seen in at_server.look() if seen.packet.five_tuple.sport == port]
        assert len(arrived) == 1
        assert len([seen for seen in at_client.look() if seen.packet.five_tuple.dport == port]) == 2


def test_the_capture_shows_what_was_forged_and_why(client: Client, client_node: Node, internet_node: Node) -> None:
    with trial(client_node, internet_node, "cut", SERVERS[4]) as one:
        assert outcome(lambda: read_until(one.tcp, b"never")) == "reset"
        port, seq = one.port, one.request.seq
    path = client.directory / "capture.pcapng"

    def packets() -> list[tuple[Packet, list[str]]]:
        with RawPcapNgReader(str(path)) as reader:
            read = [(IP(data), [c.decode() for c in meta.comments or []]) for data, meta in reader if data[0] >> 4 == 4]
        return [(ip, said) for ip, said in read if TCP in ip and port in (ip.sport, ip.dport)]

    wait_for(lambda: len(packets()) >= 6)
    seen = packets()
    commented = [(str(ip[TCP].flags), ip.dport == port, said) for ip, said in seen if said]
    assert commented[:3] == [
        ("PA", False, ["dropped (cut: reset sent; cut: dropped)"]),
        ("RA", True, ["cut: injected towards the client"]),
        ("RA", False, ["cut: injected towards the server"]),
    ]
    assert [str(ip[TCP].flags) for ip, said in seen if not said][:3] == ["S", "SA", "A"]
    assert next(ip[TCP].seq for ip, said in seen if said) == seq


@pytest.mark.needs("tshark")
def test_wireshark_reads_the_capture(client: Client, client_node: Node, internet_node: Node) -> None:
    with trial(client_node, internet_node, "cut", SERVERS[6]) as one:
        assert outcome(lambda: read_until(one.tcp, b"never")) == "reset"
        port = one.port
    fields = [part for name in ("frame.interface_name", "frame.comment", "tcp.flags.str") for part in ("-e", name)]
    command = ["tshark", "-r", str(client.directory / "capture.pcapng"), "-Y", f"tcp.port == {port}", "-T", "fields"]
    done = subprocess.run([*command, *fields], capture_output=True, text=True, timeout=60, check=True)
    lines = [line.split("\t")[:2] for line in done.stdout.splitlines()]
    assert lines[:6] == [
        ["inside", ""],
        ["outside", ""],
        ["inside", ""],
        ["inside", "dropped (cut: reset sent; cut: dropped)"],
        ["injected", "cut: injected towards the client"],
        ["injected", "cut: injected towards the server"],
    ]
