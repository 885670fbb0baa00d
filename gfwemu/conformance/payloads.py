"""What a case sends, as bytes. The same for both runners."""

from __future__ import annotations

import random
import struct
from functools import cache

from gfwemu.conformance.hello import tls_records
from gfwemu.conformance.initial import quic_datagrams
from gfwemu.conformance.specs import Dns, Http, Payload, Random

_TYPES = {
    "A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "HTTPS": 65,
    "ANY": 255,
}  # fmt: skip
_PRINTABLE = range(0x20, 0x7F)


def build_payload(spec: Payload, *, stream: bool) -> bytes:
    """stream: over TCP, where DNS messages have their length in front (RFC 1035 section 4.2.2)."""
    if spec.tls is not None:
        return tls_records(spec.tls)
    if spec.http is not None:
        return _http(spec.http)
    if spec.dns is not None:
        message = dns_query(spec.dns)
        length = len(message) if spec.dns.length is None else spec.dns.length
        return struct.pack("!H", length) + message if stream else message
    if spec.quic is not None:
        return quic_datagrams(spec.quic)[0]
    if spec.random is not None:
        return random_bytes(spec.random)
    if spec.fill is not None:
        return (spec.fill.byte.encode() * spec.fill.length)[: spec.fill.length]
    if spec.join is not None:
        return b"".join(build_payload(one, stream=stream) for one in spec.join)
    if spec.hex is not None:
        return bytes.fromhex(spec.hex)
    if spec.lines is not None:
        return b"".join(line.encode() + b"\r\n" for line in spec.lines)
    if spec.line is not None:
        return spec.line.encode() + b"\r\n"
    return (spec.text or "").encode()


def name_in(spec: Payload) -> str:
    """The name that `cut: name` cuts through."""
    for part in (spec.tls, spec.quic):
        if part is not None and part.sni is not None:
            return part.sni
    if spec.http is not None:
        return spec.http.host or ""
    if spec.dns is not None:
        return spec.dns.name.split(".")[-2] if "." in spec.dns.name else spec.dns.name
    return ""


def _http(spec: Http) -> bytes:
    lines = [f"{spec.method} {spec.path} HTTP/{spec.version}", *spec.headers]
    if spec.host is not None:
        lines.append(f"{spec.host_header}: {spec.host}")
    lines += spec.after
    if spec.body:
        lines.append(f"Content-Length: {len(spec.body.encode())}")
    text = "".join(f"{line}\r\n" for line in lines)
    return (text + "\r\n" + spec.body if spec.end else text).encode()


def dns_query(spec: Dns) -> bytes:
    """The message (RFC 1035 section 4). Its identifier is always 0x1f2e."""
    flags = spec.response << 15 | spec.rd << 8
    head = struct.pack("!HHHHHH", 0x1F2E, flags, spec.qdcount, 0, 0, spec.edns)
    name = b""
    tail = b"\0"
    question = struct.pack("!HH", _TYPES.get(spec.type, 0) or int(spec.type.removeprefix("TYPE")), spec.qclass)
    labels = [label.encode() for label in spec.name.strip(".").split(".")]
    if spec.pointer:
        # The first label, and a pointer to the others, which stand behind the question.
        name, rest = _labels(labels[:1]), _labels(labels[1:]) + b"\0"
        behind = 12 + len(name) + 2 + 4
        return head + name + struct.pack("!H", 0xC000 | behind) + question + rest + bytes.fromhex(spec.trailing)
    name = _labels(labels)
    message = head + name + tail + question
    if spec.edns:
        message += b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)
    return message + bytes.fromhex(spec.trailing)


def _labels(labels: list[bytes]) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels)


@cache
def random_bytes(spec: Random) -> bytes:
    """Bytes with the asked one-bits and printable ones.

    Raises ValueError where that cannot be (too few bytes that are not printable have so many one-bits).
    """
    rng = random.Random(spec.seed)
    prefix = (spec.text_prefix or "").encode() + bytes.fromhex(spec.prefix or "")
    length = spec.length - len(prefix)
    printable = round(spec.length * spec.printable) - _count(prefix) if spec.printable is not None else None
    if printable is None:
        printable = 0 if spec.popcount is not None or spec.run is not None else -1
    if printable < 0 and spec.printable is None:
        return prefix + rng.randbytes(length)
    where = set(range(min(spec.run, length))) if spec.run else set()
    kinds = [at in where for at in range(length)]
    # Spread, so that no run of printable bytes comes about by itself.
    free = [at for at in range(length - 1, -1, -1) if not kinds[at]]
    rng.shuffle(free)
    free.sort(key=lambda at: at % 2)
    for at in free[: max(0, printable - sum(kinds))]:
        kinds[at] = True
    pools = {
        True: list(_PRINTABLE),
        False: [value for value in range(256) if value not in _PRINTABLE],
    }
    body = [rng.choice(pools[kind]) for kind in kinds]
    if spec.popcount is not None:
        _steer(body, kinds, pools, round(spec.popcount * spec.length) - _ones(prefix), rng)
    if spec.run is not None and spec.run < length:
        # The run goes into the middle: at the start it would be a printable prefix.
        middle = length // 3
        body = body[spec.run : spec.run + middle] + body[: spec.run] + body[spec.run + middle :]
    return prefix + bytes(body)


def _steer(body: list[int], kinds: list[bool], pools: dict[bool, list[int]], ones: int, rng: random.Random) -> None:
    """Exchange bytes for others of their kind until the body has that many one-bits."""
    for _ in range(200 * len(body)):
        missing = ones - _ones(bytes(body))
        if not missing:
            return
        at = rng.randrange(len(body))
        now = body[at].bit_count()
        step = [
            one for one in pools[kinds[at]] if 0 < (one.bit_count() - now) * (1 if missing > 0 else -1) <= abs(missing)
        ]
        if step:
            body[at] = rng.choice(step)
    raise ValueError(f"no such bytes: {ones} one-bits in {len(body)} bytes, {sum(kinds)} of them printable")


def _ones(data: bytes) -> int:
    return int.from_bytes(data, "big").bit_count()


def _count(data: bytes) -> int:
    return sum(byte in _PRINTABLE for byte in data)
