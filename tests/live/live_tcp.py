"""TCP made by hand, segment by segment, from an address of its own, so that no kernel answers for it."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Sequence

from live_nodes import Node, Sniffer, packed

from gfwemu.model import FiveTuple
from gfwemu.wire.build import build_tcp
from gfwemu.wire.packet import Packet, TcpFlags

FIN, SYN, RST, PSH, ACK = (int(getattr(TcpFlags, name)) for name in ("FIN", "SYN", "RST", "PSH", "ACK"))
HAND_V4 = "192.0.2.77"
HAND_V6 = "2001:db8:1::77"
MAXIMUM_SEGMENT = 1200
# The size of a segment, and nothing: so that a SYN can be cut behind its fixed part.
SYN_OPTIONS = b"\x02\x04\x04\xb0" + b"\x01" * 12
_ports = itertools.count(random.randint(20_000, 30_000))


class Wire:
    """The client's wire below IP: packets leave exactly as built. The hand-made addresses live here."""

    def __init__(self, client: Node, access: Node) -> None:
        self._client = client
        self._link = client.link_socket()
        own = self._link.getsockname()[4]
        self._gateway = access.link_socket("inside").getsockname()[4]
        for address in (HAND_V4, HAND_V6):
            command = ["ip", "neigh", "replace", address, "lladdr", own.hex(":"), "dev", "inside", "nud", "permanent"]
            done = client.lab.exec("access", command, timeout=10, as_root=True)
            assert done.returncode == 0, done

    def send(self, data: bytes) -> None:
        protocol = 0x86DD if data[0] >> 4 == 6 else 0x0800
        self._link.sendto(data, ("eth0", protocol, 0, 0, self._gateway))

    def sniffer(self) -> Sniffer:
        return self._client.sniffer()


class HandTcp:
    """One connection. Nothing is sent again; what comes is acknowledged, and put together where it is in order."""

    def __init__(self, wire: Wire, address: str, port: int, *, timeout: float = 5.0) -> None:
        source = HAND_V6 if ":" in address else HAND_V4
        self.tuple = FiveTuple(6, packed(source), next(_ports), packed(address), port)
        self.timeout = timeout
        self._wire = wire
        self._sniffer = wire.sniffer()
        self._taken = 0
        self.seq = random.getrandbits(32)
        self.ack = 0
        self.got = b""
        self.reset = False
        self.finished = False

    # -- sending ------------------------------------------------------------------------------------------------

    def build(self, data: bytes = b"", *, flags: int = PSH | ACK, offset: int = 0, **header: int) -> bytes:
        """A segment `offset` bytes ahead of what was sent; `header` as in `build_tcp`."""
        return build_tcp(
            self.tuple,
            seq=(self.seq + offset) % (1 << 32),
            ack=self.ack if flags & ACK else 0,
            flags=flags,
            window=0xFFFF,
            payload=data,
            **header,  # type: ignore[arg-type]
        )

    def put(self, packet: bytes) -> None:
        self._wire.send(packet)

    def connect(self, packets: Callable[[bytes], Iterable[bytes]] = lambda syn: [syn]) -> HandTcp:
        """Raises ConnectionResetError or TimeoutError. `packets`: the SYN as it is to leave."""
        syn = build_tcp(self.tuple, seq=self.seq, ack=0, flags=SYN, window=0xFFFF, options=SYN_OPTIONS)
        for packet in packets(syn):
            self.put(packet)
        self._await(lambda: self.ack)
        self.seq = (self.seq + 1) % (1 << 32)
        self.put(self.build(flags=ACK))
        return self

    def send(self, data: bytes, cuts: Iterable[int] = (), order: Sequence[int] | None = None) -> None:
        """One segment, or several: `cuts` are offsets at which a new one begins, `order` the order of sending."""
        marks = {mark for mark in (*cuts, *range(0, len(data), MAXIMUM_SEGMENT)) if 0 < mark < len(data)}
        edges = list(itertools.pairwise([0, *sorted(marks), len(data)]))
        for number in order if order is not None else range(len(edges)):
            start, end = edges[number]
            self.put(self.build(data[start:end], offset=start))
        self.seq = (self.seq + len(data)) % (1 << 32)

    sendall = send

    def close(self) -> None:
        """Tells both the server and the censor that it is over."""
        if not self.reset:
            self.put(self.build(flags=RST | ACK))
        self._sniffer.close()

    # -- receiving ----------------------------------------------------------------------------------------------

    def recv(self, _: int = 0) -> bytes:
        """What came since the last call; b"" at the end. Raises ConnectionResetError or TimeoutError."""
        self._await(lambda: self.got or self.finished)
        got, self.got = self.got, b""
        return got

    def _await(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + self.timeout
        left = 0.0
        while True:
            self._take(left)
            if condition():
                return
            if self.reset:
                raise ConnectionResetError
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError

    def _take(self, seconds: float) -> None:
        seen = self._sniffer.look(seconds)
        for one in seen[self._taken :]:
            if not one.sent and one.packet.five_tuple == self.tuple.reversed():
                self._receive(one.packet)
        self._taken = len(seen)

    def _receive(self, packet: Packet) -> None:
        if packet.flags & RST:
            self.reset = True
            return
        if packet.flags & SYN:
            self.ack = (packet.seq + 1) % (1 << 32)
            return
        if packet.seq == self.ack and (packet.payload or packet.flags & FIN):
            self.got += packet.payload
            self.finished = self.finished or bool(packet.flags & FIN)
            self.ack = (self.ack + len(packet.payload) + bool(packet.flags & FIN)) % (1 << 32)
        if packet.payload or packet.flags & FIN:
            self.put(self.build(flags=ACK))
