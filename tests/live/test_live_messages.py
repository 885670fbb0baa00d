"""HTTP requests and DNS queries as they stand in a stream: the second of a connection, pipelined, cut, spelt oddly."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from dnslib import RCODE, DNSHeader, DNSQuestion, DNSRecord
from live_kit import Client
from live_nodes import Node
from live_tls import outcome, read_until

pytestmark = pytest.mark.kernel

RULES = """version: 1
rules:
  - {name: host, match: {http.host: blocked.example}, action: reset}
  - {name: word, match: {http.keyword: forbidden}, action: reset}
  - {name: post, match: {http.method: POST, http.path: {prefix: /upload}}, action: reset}
  - {name: name, match: {dns.qname: blocked.example, dns.response: false}, action: poison, with: {rcode: refused}}
"""
V4, V6 = "203.0.113.10", "2001:db8:f::10"
ADDRESSES = pytest.mark.parametrize("address", [V4, V6])
RESOLVERS = pytest.mark.parametrize("address", ["198.51.100.53", "2001:db8:53::53"])
HEAD = "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"


def request(host: str, path: str = "/") -> bytes:
    return HEAD.format(host=host, path=path).encode()


def post(header: str, body: bytes) -> bytes:
    return f"POST / HTTP/1.1\r\nHost: www.allowed.example\r\n{header}\r\n\r\n".encode() + body


def talk(node: Node, address: str, *pieces: bytes, expect: bytes = b"hello from www.allowed.example") -> str:
    """Sends each piece as a segment; the server has to answer with that text."""

    def work() -> None:
        with node.connect(address, 80) as tcp:
            for piece in pieces:
                tcp.sendall(piece)
            read_until(tcp, expect)

    return outcome(work)


INNOCENT = request("www.allowed.example")


@ADDRESSES
@pytest.mark.parametrize(
    "asked",
    [
        [request("www.blocked.example")],
        [request("WWW.BLOCKED.Example")],
        [request("www.blocked.example.")],
        [request("blocked.example:80")],
        [b"GET http://www.blocked.example/ HTTP/1.0\r\n\r\n"],
        [b"GET / HTTP/1.1\r\nX-First: 1\r\nhost:\t www.blocked.example \r\n\r\n"],
        [b"GET / HTTP/1.1\r\nHost: www.blo", b"cked.example\r\n\r\n"],
        [bytes([byte]) for byte in request("www.blocked.example")],
        [INNOCENT + request("www.blocked.example")],
        [
            b"POST / HTTP/1.1\r\nHost: www.allowed.example\r\nContent-Length: 5\r\n\r\nhello"
            + request("blocked.example")
        ],
        # The first body ends in the second segment: an answer to it, on its way before, would make the reset too old.
        [post("Transfer-Encoding: chunked", b"5\r\nhel"), b"lo\r\n0\r\n\r\n" + request("blocked.example")],
        [request("www.allowed.example", "/?q=forbidden")],
        [request("www.allowed.example", "/?q=%66orbidden")],
        [request("www.allowed.example", "/a/forbidden/b")],
        [b"POST /upload HTTP/1.1\r\nHost: www.allowed.example\r\nContent-Length: 0\r\n\r\n"],
    ],
)
def test_requests_that_are_met(client_node: Node, address: str, asked: Iterable[bytes]) -> None:
    assert talk(client_node, address, *asked, expect=b"never") == "reset"


@ADDRESSES
@pytest.mark.parametrize(
    "asked",
    [
        [INNOCENT],
        [INNOCENT, INNOCENT],
        [bytes([byte]) for byte in INNOCENT],
        [b"GET / HTTP/1.1\r\nHost: www.allowed.example\r\nReferer: http://www.blocked.example/forbidden\r\n\r\n"],
        [post(f"Content-Length: {len(request('blocked.example'))}", request("blocked.example")), INNOCENT],
        [request("www.allowed.example", "/?q=Forbidden")],
        [b"GET /uploads HTTP/1.1\r\nHost: www.allowed.example\r\n\r\n"],
    ],
)
def test_requests_that_pass(client_node: Node, address: str, asked: Iterable[bytes]) -> None:
    assert talk(client_node, address, *asked) == "ok"


@ADDRESSES
def test_the_second_request_of_a_connection(client_node: Node, address: str) -> None:
    with client_node.connect(address, 80) as tcp:
        for path in ("/", "/other"):
            tcp.sendall(request("www.allowed.example", path))
            read_until(tcp, b"hello from www.allowed.example")
        tcp.sendall(request("www.blocked.example"))
        assert outcome(lambda: read_until(tcp, b"hello from")) == "reset"


def message(name: str, ident: int) -> bytes:
    query = DNSRecord(DNSHeader(id=ident, rd=1), q=DNSQuestion(name))
    packed = bytes(query.pack())
    return len(packed).to_bytes(2, "big") + packed


def answers(tcp: object, count: int) -> dict[int, int]:
    """Response codes by ID, until the end of the stream or so many answers."""
    got, found = b"", {}
    while len(found) < count:
        while len(got) >= 2 and len(got) >= 2 + int.from_bytes(got[:2], "big"):
            end = 2 + int.from_bytes(got[:2], "big")
            answer = DNSRecord.parse(got[2:end])
            found[answer.header.id] = answer.header.rcode
            got = got[end:]
        if len(found) == count:
            break
        more = tcp.recv(65_536)  # type: ignore[attr-defined]
        if not more:
            break
        got += more
    return found


@RESOLVERS
def test_two_queries_in_one_stream(client: Client, client_node: Node, address: str) -> None:
    with client_node.connect(address, 53) as tcp:
        tcp.sendall(message("www.allowed.example", 1) + message("other.allowed.example", 2))
        assert answers(tcp, 2) == {1: RCODE.NOERROR, 2: RCODE.NOERROR}
        for byte in message("third.allowed.example", 3):
            tcp.sendall(bytes([byte]))
        assert answers(tcp, 1) == {3: RCODE.NOERROR}
        tcp.sendall(message("www.BLOCKED.example", 4))
        assert answers(tcp, 1) == {4: RCODE.REFUSED}
    with client_node.connect(address, 53) as tcp:
        tcp.sendall(message("www.allowed.example", 5) + message("www.blocked.example", 6))
        assert answers(tcp, 2)[6] == RCODE.REFUSED
    assert {hit["censor"]["facts"]["dns.qname"] for hit in client.wait_for_hit("name")} == {"www.blocked.example"}


@RESOLVERS
@pytest.mark.parametrize(
    ("name", "rcode"),
    [
        ("blocked.example", RCODE.REFUSED),
        ("WwW.bLoCkEd.ExAmPlE", RCODE.REFUSED),
        ("notblocked.example", RCODE.NOERROR),
        ("blocked.example.test", RCODE.NOERROR),
        ("blocked-example.test", RCODE.NOERROR),
    ],
)
def test_queries_over_udp(client_node: Node, address: str, name: str, rcode: int) -> None:
    with client_node.datagrams(address, 53) as udp:
        udp.send(bytes(DNSRecord.question(name).pack()))
        assert DNSRecord.parse(udp.recv(4096)).header.rcode == rcode
