"""A client made by hand: its TCP and its datagrams, packet by packet, right or wrong on purpose."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

from gfwemu.conformance.language import Connect, Step
from gfwemu.conformance.stage import Stage
from gfwemu.conformance.trace import Seen
from gfwemu.model import FiveTuple, Side, Transport
from gfwemu.wire.build import build_ip, build_tcp, build_udp
from gfwemu.wire.packet import Packet, TcpFlags
from gfwemu.wire.parse import parse_packet

FLAGS = {letter: int(flag) for letter, flag in zip(
    "FSRPAUEC", (TcpFlags.FIN, TcpFlags.SYN, TcpFlags.RST, TcpFlags.PSH, TcpFlags.ACK, TcpFlags.URG, TcpFlags.ECE,
                 TcpFlags.CWR), strict=True)}  # fmt: skip
_SPACE = 1 << 32
_SEGMENT = 1200
_SYN_OPTIONS = b"\x02\x04\x05\xb4"  # a maximum segment size of 1460
_MD5 = b"\x13\x12" + bytes(range(16))  # RFC 2385
_OLD, _NEW = 1_000, 5_000_000
_WRONG_ACK = 0x10000000


class Channel:
    """One five-tuple, seen from the client that plays it."""

    def __init__(self, stage: Stage, flow: FiveTuple, side: Side, spec: Connect, seq: int) -> None:
        self.stage = stage
        self.flow = flow
        self.side = side
        self.spec = spec
        self.isn = seq
        self.seq = seq
        self.ack = 0
        self.stream = b""
        self.outcome = ""
        self._taken = len(stage.trace.packets)
        self._clock = itertools.count(_NEW)
        self.answered = False
        self._server_isn = 0
        if spec.server == "hand":
            self._server_isn = (seq * 48_271 + 11) % _SPACE
            self.ack = (self._server_isn + 1) % _SPACE

    @property
    def is_tcp(self) -> bool:
        return self.flow.proto == Transport.TCP

    # -- sending ----------------------------------------------------------------------------------------------------

    def syn(self) -> None:
        ttl = self._ttl(self.spec.syn_ttl)
        options = _SYN_OPTIONS + (self._stamp(None) if self.spec.timestamps else b"")
        self.emit(self._segment(self.seq, 0, "S", b"", options=options, ttl=ttl))

    def handshake_done(self) -> None:
        self.seq = (self.isn + 1) % _SPACE

    def acknowledge(self) -> None:
        self.emit(self._segment(self.seq, self.ack, "A", b""))

    def send(self, data: bytes, step: Step, cuts: Sequence[int], *, advance: bool) -> list[bytes]:
        """The packets that carry the data, in the order of sending. Nothing is sent yet; `advance` counts the data."""
        edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
        pieces = list(itertools.pairwise(edges))
        if self.is_tcp and not cuts:
            pieces = [(at, min(at + _SEGMENT, len(data))) for at in range(0, len(data), _SEGMENT)] or [(0, 0)]
        if step.order:
            pieces = [pieces[number - 1] for number in step.order if number <= len(pieces)]
        packets = []
        for start, end in pieces:
            start = max(0, start - step.overlap) if start else 0
            packets += self._fragmented(self._packet(data[start:end], start, step), step)
        if advance:
            self.seq = (self.seq + len(data)) % _SPACE
            self.stream += data
        return packets

    def send_as_server(self, data: bytes, step: Step) -> list[bytes]:
        """One packet of a server that the script plays. Its numbers are right, but for what the step changes."""
        flags = step.packet or ""
        seq = self._server_isn + ("S" not in flags) + step.seq
        ack = self.seq + (_WRONG_ACK if step.ack == "wrong" else 0 if isinstance(step.ack, str) else step.ack)
        packet = build_tcp(
            self.flow.reversed(),
            seq=seq % _SPACE,
            ack=ack % _SPACE if "A" in flags else 0,
            flags=sum(FLAGS[letter] for letter in flags),
            window=65160 if step.window is None else step.window,
            payload=data,
            options=_MD5 if step.md5 else b"",
            ttl=self._ttl(step.ttl, self.side.opposite),
            dont_fragment=True,
            data_offset=step.data_offset,
            checksum=0xBAD1 if step.checksum == "bad" else None,
        )
        return self._fragmented(packet, step)

    def finish(self, how: str) -> None:
        self.emit(self._segment(self.seq, self.ack, "FA" if how == "fin" else "RA", b""))
        if how == "fin":
            self.seq = (self.seq + 1) % _SPACE

    def emit(self, packet: bytes, *, by_server: bool = False) -> None:
        self.stage.emit(self.side.opposite if by_server else self.side, packet)

    def _packet(self, data: bytes, offset: int, step: Step) -> bytes:
        ttl = self._ttl(step.ttl)
        if not self.is_tcp:
            return build_udp(self.flow, data, ttl=ttl, checksum=0xBAD1 if step.checksum == "bad" else None)
        flags = next((one for one in (step.flags, step.packet) if one is not None), "PA" if data else "A")
        ack = self.ack
        if step.ack == "wrong":
            ack += _WRONG_ACK
        elif isinstance(step.ack, int):
            ack += step.ack
        if "A" not in flags:
            ack = 0
        options = _MD5 if step.md5 else b""
        if self.spec.timestamps or step.timestamp:
            options += b"\x01\x01" * (not options) + self._stamp(step.timestamp)
        return self._segment(
            self.seq + offset + step.seq,
            ack,
            flags,
            data,
            options=options,
            ttl=ttl,
            bad=step.checksum == "bad",
            data_offset=step.data_offset,
            window=step.window,
        )

    def _segment(
        self,
        seq: int,
        ack: int,
        flags: str,
        data: bytes,
        *,
        options: bytes | None = None,
        ttl: int = 64,
        bad: bool = False,
        data_offset: int | None = None,
        window: int | None = None,
    ) -> bytes:
        if options is None:
            options = b"\x01\x01" + self._stamp(None) if self.spec.timestamps else b""
        return build_tcp(
            self.flow,
            seq=seq % _SPACE,
            ack=ack % _SPACE,
            flags=sum(FLAGS[letter] for letter in flags),
            window=self.spec.window if window is None else window,
            payload=data,
            options=options,
            ttl=ttl,
            ip_id=seq & 0xFFFF,
            dont_fragment=True,
            data_offset=data_offset,
            checksum=0xBAD1 if bad else None,
        )

    def _stamp(self, kind: str | None) -> bytes:
        """RFC 7323 section 3.2; nothing is echoed."""
        return struct.pack("!BBII", 8, 10, _OLD if kind == "old" else next(self._clock), 0)

    def _ttl(self, ttl: int | str | None, sender: Side | None = None) -> int:
        if isinstance(ttl, str):
            return self.stage.path.ttl(ttl, sender or self.side)
        return 64 if ttl is None else ttl

    def _fragmented(self, packet: bytes, step: Step) -> list[bytes]:
        if not step.fragments:
            return [packet]
        parsed = parse_packet(packet)
        assert isinstance(parsed, Packet)
        body = packet[parsed.transport_offset :]
        cuts = [cut for cut in itertools.accumulate(step.fragments) if cut < len(body)]
        found = [
            build_ip(
                parsed.src,
                parsed.dst,
                parsed.proto,
                body[start:end],
                ttl=parsed.ttl,
                ip_id=parsed.ip_id or 0x4D2,
                more_fragments=end < len(body),
                fragment_offset=start,
            )
            for start, end in itertools.pairwise([0, *cuts, len(body)])
        ]
        return [found[number - 1] for number in step.fragment_order] if step.fragment_order else found

    # -- receiving --------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Takes what has come, and acknowledges the server's data."""
        packets = self.stage.trace.packets
        mine = packets[self._taken :]
        self._taken = len(packets)
        for one in mine:
            if not one.sent and one.side is self.side and one.packet.five_tuple == self.flow.reversed():
                self._hear(one)

    def _hear(self, one: Seen) -> None:
        packet = one.packet
        if not self.is_tcp:
            return
        if packet.flags & TcpFlags.RST:
            self.outcome = self.outcome or "reset"
            return
        if packet.flags & TcpFlags.SYN and packet.flags & TcpFlags.ACK:
            if not self.answered:
                self.answered = True
                if self.spec.server != "hand":
                    self.ack = (packet.seq + 1) % _SPACE
                self.outcome = self.outcome or "ok"
            return
        if packet.seq == self.ack and (packet.payload or packet.flags & TcpFlags.FIN):
            self.ack = (self.ack + len(packet.payload) + bool(packet.flags & TcpFlags.FIN)) % _SPACE
            self.acknowledge()
