"""What the rules of features.yaml look like from the client, whoever decides: the engine or the kernel."""

from __future__ import annotations

from live_nodes import Node, Seen

# name, curl's exit codes: what the interference looks like from the client.
BLOCKED = [
    ("https://endpoint-drop.example/", {28}),
    ("https://endpoint-reset.example/", {7}),
    ("https://sni-drop.example/", {28}),
    ("https://www.sni-drop.example/", {28}),
    ("https://SNI-Drop.Example/", {28}),
    ("https://sni-reset.example/", {35}),
    ("https://sni-fin.example/", {35}),
    ("https://sni-rewrite.example/", {35}),
    ("https://sni-alert.example/", {35}),
    ("http://www.allowed.example/ForbiddenString", {28}),
    ("http://www.allowed.example/ResetString", {56}),
    ("http://www.allowed.example/FinString", {52}),
]

# Names close to the blocked ones, and innocent failures, which look like themselves and fire no rule.
INNOCENT = [
    ("https://www.allowed.example/", 0, "hello from www.allowed.example"),
    ("https://not-sni-drop.example/", 0, "hello from"),
    ("https://sni-drop.example.test/", 0, "hello from"),
    ("https://shielded.sni-drop.example/", 0, "hello from"),
    ("https://sni-notice.example/", 0, "hello from"),
    ("https://sni-outside-only.example/", 0, "hello from"),
    ("https://sni-night.example/", 0, "hello from"),
    ("http://unreachable.example/", 0, "hello from"),
    ("http://www.allowed.example/forbidden-string", 0, "hello from"),
    ("https://expired.example/", 60, ""),
    ("https://mismatch.example/", 60, ""),
    ("https://close.example/", 52, ""),
    ("http://refused.example/", 7, ""),
    ("http://absent.example/", 6, ""),
]

# IP version, port, and the code of the answer (RFC 792, RFC 1122 section 3.2.2.1, RFC 1812; RFC 4443 section 3.1).
ICMP_ERRORS = [
    (4, 8001, 0),
    (4, 8002, 1),
    (4, 8003, 3),
    (4, 8004, 13),
    (6, 8001, 0),
    (6, 8002, 3),
    (6, 8003, 4),
    (6, 8004, 1),
]


def icmp_error(client_node: Node, version: int, port: int) -> int:
    """The code of the ICMP destination unreachable that a datagram meets; it quotes the datagram."""
    address = "2001:db8:f::23" if version == 6 else "203.0.113.23"
    with client_node.sniffer() as sniffer, client_node.datagrams(address, port) as udp:
        own = udp.getsockname()[1]
        udp.send(b"anybody there?")

        def errors() -> list[Seen]:
            return [seen for seen in sniffer.look() if not seen.sent and seen.packet.proto in (1, 58)]

        (error,) = sniffer.wait(errors)
    message = error.data[40 if version == 6 else 20 :]
    quoted = message[8:]
    header = 40 if version == 6 else 20
    assert message[0] == (1 if version == 6 else 3)
    assert quoted[0] >> 4 == version
    assert quoted[header : header + 4] == own.to_bytes(2, "big") + port.to_bytes(2, "big")
    return message[1]
