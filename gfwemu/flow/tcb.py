"""The censor's control block for one TCP connection: when it exists, and which bytes it reads."""

from __future__ import annotations

from gfwemu.flow.options import TcpOptions
from gfwemu.flow.stream import Stream
from gfwemu.model import Direction
from gfwemu.wire.packet import Packet, TcpFlags

_MODULUS = 1 << 32
_SYN, _ACK, _FIN, _RST = int(TcpFlags.SYN), int(TcpFlags.ACK), int(TcpFlags.FIN), int(TcpFlags.RST)


class Tcb:
    """One stream for each direction, created from what the censor saw of the handshake.

    A SYN/ACK says where the other direction begins, if that one's SYN was not seen. A direction of whose beginning
    nothing was seen starts at its first data segment.
    """

    __slots__ = ("_before", "_options", "_streams", "torn_down")

    def __init__(self, options: TcpOptions) -> None:
        self._options = options
        self._streams: dict[Direction, Stream] = {}
        self._before: int | None = None
        self.torn_down = False

    @staticmethod
    def created_by(packet: Packet, options: TcpOptions) -> bool:
        """Whether this packet makes the censor create a control block."""
        if options.create_on == "any":
            return True
        syn, ack = packet.flags & _SYN, packet.flags & _ACK
        if options.create_on == "synack":
            return bool(syn)
        return bool(syn and not ack)

    def read(self, packet: Packet, direction: Direction) -> bytes:
        """What the packet adds to its direction, by the knobs of `tcp:`; b"" where nothing is to be read."""
        first = packet.seq
        if packet.flags & _SYN:
            # RFC 9293 section 3.4: data on a SYN begins behind it (RFC 7413 makes use of that).
            first = (packet.seq + 1) % _MODULUS
            self._open(direction, first)
            if packet.flags & _ACK:
                self._open(direction.opposite, packet.ack)
        if self.torn_down:
            return b""
        stream = self._streams.get(direction)
        self._before = None if stream is None else stream.next_seq
        ready = self._data(first, packet.payload, direction) if packet.payload else b""
        if (packet.flags & _RST and "rst" in self._options.teardown) or (
            packet.flags & _FIN and "fin" in self._options.teardown
        ):
            self.torn_down = True
        return ready

    def expected(self, direction: Direction, *, passed: bool) -> int | None:
        """The sequence number that the receiver wants next, where the packet just read reached it (`passed`) or not.

        None where the censor keeps no stream and cannot know.
        """
        stream = self._streams.get(direction)
        if stream is None or self.torn_down or self._options.reassembly != "full":
            return None
        return stream.next_seq if passed else self._before

    def _open(self, direction: Direction, next_seq: int) -> None:
        if direction not in self._streams:
            self._streams[direction] = self._stream(next_seq)

    def _data(self, seq: int, payload: bytes, direction: Direction) -> bytes:
        if self._options.reassembly != "full":
            return payload
        stream = self._streams.get(direction)
        if stream is None:
            stream = self._streams[direction] = self._stream(seq)
        return stream.push(seq, payload)

    def _stream(self, next_seq: int) -> Stream:
        return Stream(next_seq, self._options.overlap, self._options.buffer)
