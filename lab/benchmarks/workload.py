"""What the censor is loaded with and what the client sends: lists, rule files, ClientHellos, queries, a capture.

All names are made up, under the top-level names that RFC 2606 keeps free, and the same in every run.
"""

from __future__ import annotations

import random
import ssl
import string
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

FORBIDDEN = "www.forbidden.example"
"""The name that resets are measured with; it is in every list of names."""

ALLOWED_SERVER = "203.0.113.1"
"""No rule of the big profile lists it."""

FROZEN_SERVER = "198.51.100.1"
"""A rule counts all of its TCP packets, for ever."""

UNSETTLED_PORT = 4000
"""A rule counts all UDP packets to this port, for ever."""

_SEED = 20
_TOP_LEVELS = ("example", "test", "invalid")

# The bounds of the two freezes are never reached: they keep flows in the queue.
_BIG_PROFILE = f"""\
version: 1
description: A large censor, for measuring.
lists:
  names: {{file: names.txt}}
  networks: {{file: networks.txt, format: cidr}}
inside: [192.0.2.0/25]
rules:
  - {{name: address, match: {{ip.server: "@networks"}}, action: drop}}
  - name: dns
    match: {{dns.qname: "@names", dns.response: false, transport: udp, port.server: 53}}
    action: poison
    placement: on-path
    with: {{a: [203.0.113.250]}}
  - name: counted-tcp
    match: {{transport: tcp, ip.server: {FROZEN_SERVER}}}
    action: freeze
    with: {{packets: 1000000000}}
  - name: counted-udp
    match: {{transport: udp, port.server: {UNSETTLED_PORT}}}
    action: freeze
    with: {{packets: 1000000000}}
  - {{name: tls, match: {{tls.sni: "@names"}}, action: reset}}
  - {{name: quic, match: {{quic.sni: "@names"}}, action: drop}}
  - {{name: http, match: {{http.host: "@names"}}, action: reset}}
  - {{name: openvpn, match: {{protocol: openvpn}}, action: drop}}
  - {{name: wireguard, match: {{protocol: wireguard}}, action: drop}}
"""


def write_profile(directory: Path, names: int, networks: int) -> Path:
    """The big profile with lists of that many entries. Returns the rule file."""
    directory.mkdir(parents=True)
    (directory / "names.txt").write_text("\n".join([FORBIDDEN, *listed_names(names - 1)]) + "\n", encoding="ascii")
    (directory / "networks.txt").write_text("\n".join(listed_networks(networks)) + "\n", encoding="ascii")
    path = directory / "rules.yaml"
    path.write_text(_BIG_PROFILE, encoding="ascii")
    return path


def listed_names(count: int) -> Iterator[str]:
    """Different names of two labels and different lengths."""
    chooser = random.Random(_SEED)
    letters = string.ascii_lowercase
    for number in range(count):
        word = "".join(chooser.choices(letters, k=chooser.randrange(3, 15)))
        yield f"{word}{number}.{_TOP_LEVELS[number % len(_TOP_LEVELS)]}"


def listed_networks(count: int) -> Iterator[str]:
    """Different /24 networks of 240.0.0.0/4, which nobody uses (RFC 1112), none beside the other."""
    base = int(IPv4Network("240.0.0.0/4").network_address)
    for number in range(count):
        yield str(IPv4Network((base + number * 512, 24)))


def allowed_name(number: int) -> str:
    """A name that no list has."""
    return f"www{number}.allowed.example"


def client_hello(name: str) -> bytes:
    """What OpenSSL sends first for the name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a server")


def write_hellos(path: Path, count: int) -> None:
    """One ClientHello a line, in hex, each with an allowed name of its own."""
    lines = (client_hello(allowed_name(number)).hex() for number in range(count))
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def write_queries(path: Path, names: int) -> None:
    """A file for dnsperf: listed and allowed names in turn."""
    lines = []
    for number, name in enumerate(listed_names(names - 1)):
        lines += [f"{name} A", f"{allowed_name(number)} A"]
    random.Random(_SEED).shuffle(lines)
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
