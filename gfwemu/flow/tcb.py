"""The censor's control block for one TCP connection: when it exists, and which bytes it reads."""

from __future__ import annotations

from gfwemu.flow.options import TcpOptions
from gfwemu.flow.stream import Stream
from gfwemu.model import Direction
from gfwemu.wire.packet import Packet, TcpFlags

_SYN, _ACK, _FIN, _RST = int(TcpFlags.SYN), int(TcpFlags.ACK), int(TcpFlags.FIN), int(TcpFlags.RST)


class Tcb:
    """One stream for each direction, created from what the censor saw of the handshake.

    A direction whose beginning was not seen starts at its first data segment.
    """

    __slots__ = ("_options", "_streams", "torn_down")

    def __init__(self, options: TcpOptions) -> None:
        self._options = options
        self._streams: dict[Direction, Stream] = {}
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
        if packet.flags & _SYN:
            self._open(packet, direction)
            return b""
        if self.torn_down:
            return b""
        ready = self._data(packet, direction) if packet.payload else b""
        if (packet.flags & _RST and "rst" in self._options.teardown) or (
            packet.flags & _FIN and "fin" in self._options.teardown
        ):
            self.torn_down = True
        return ready

    def _open(self, packet: Packet, direction: Direction) -> None:
        if direction not in self._streams:
            self._streams[direction] = self._stream((packet.seq + 1) % (1 << 32))

    def _data(self, packet: Packet, direction: Direction) -> bytes:
        if self._options.reassembly != "full":
            return packet.payload
        stream = self._streams.get(direction)
        if stream is None:
            stream = self._streams[direction] = self._stream(packet.seq)
        return stream.push(packet.seq, packet.payload)

    def _stream(self, next_seq: int) -> Stream:
        return Stream(next_seq, self._options.overlap, self._options.buffer)
