"""The censor's control block for one TCP connection: when it exists, and which bytes it reads."""

from __future__ import annotations

import random
from collections.abc import Mapping

from gfwemu.flow.options import LockOn, Resync, ResyncTrigger, TcpOptions, Teardown
from gfwemu.flow.readable import has_bad_data_offset
from gfwemu.flow.stream import Overlap, Stream, seq_delta
from gfwemu.model import Direction
from gfwemu.wire.packet import Packet, TcpFlags
from gfwemu.wire.tcp_options import timestamp_value

_MODULUS = 1 << 32
_SYN, _ACK, _FIN, _RST = int(TcpFlags.SYN), int(TcpFlags.ACK), int(TcpFlags.FIN), int(TcpFlags.RST)
_WINDOW = 65_535
"""RFC 9293 section 3.1: the largest window without scaling. What lies further off is out of window."""

_SYN_SEEN, _SYNACK_SEEN, _DATA_SEEN = 1, 2, 4
_CLIENT, _SERVER = Direction.TO_SERVER, Direction.TO_CLIENT


class Tcb:
    """One stream for each direction, created from what the censor saw of the handshake.

    A SYN/ACK says where the other direction begins, if that one's SYN was not seen. A direction of whose beginning
    nothing was seen starts at its first data segment. Where nothing but its bytes count (not `follows_server`), the
    server's begins where the client's first payload says, or at its first data segment. Chance comes from `rng`.
    """

    __slots__ = (
        "_before",
        "_hole_ends",
        "_isn",
        "_lock_on",
        "_options",
        "_overlap",
        "_rng",
        "_seen",
        "_stamps",
        "_to_client",
        "_to_server",
        "established",
        "torn_down",
    )

    def __init__(self, options: TcpOptions, rng: random.Random) -> None:
        self._options = options
        self._rng = rng
        self._overlap = _drawn(options.overlap, rng)
        self._to_server: Stream | None = None
        self._to_client: Stream | None = None
        self._before: int | None = None
        self._seen = 0
        self._isn: int | None = None
        self._lock_on: tuple[LockOn, ...] = ()
        self._stamps: dict[Direction, int] | None = None
        self._hole_ends: float | None = None
        self.established = False
        self.torn_down = False

    @staticmethod
    def created_by(packet: Packet, options: TcpOptions) -> bool:
        """Whether this packet makes the censor create a control block."""
        syn, ack = packet.flags & _SYN, packet.flags & _ACK
        match options.create_on:
            case "any":
                return True
            case "both":
                return bool(syn)
            case "synack":
                return bool(syn and ack)
        return bool(syn and not ack)

    @property
    def ready(self) -> bool:
        """Whether enough of the handshake was seen for the client's payload to be read."""
        match self._options.handshake:
            case "none":
                return True
            case "syn":
                return bool(self._seen & _SYN_SEEN)
        return self.established and self._seen & (_SYN_SEEN | _SYNACK_SEEN) == _SYN_SEEN | _SYNACK_SEEN

    def read(self, packet: Packet, direction: Direction, now: float = 0.0) -> bytes:
        """What the packet adds to its direction, by the knobs of `tcp:`; b"" where nothing is to be read.

        now: the censor's clock, in seconds.
        """
        options, flags, payload = self._options, packet.flags, packet.payload
        if self.torn_down or (self._hole_ends is not None and self._hole_is_too_old(now)):
            return b""
        if (options.bad_ack < 1.0 or options.old_timestamp < 1.0) and not self._accepts(packet, direction):
            return b""
        if options.bad_data_offset == "read_header_as_payload" and has_bad_data_offset(packet):
            payload = packet.raw[packet.transport_offset + packet.data_offset * 4 :]
        locked = bool(self._lock_on) and self._leaves_resync(packet, direction, payload)
        if locked:
            self._lock(packet, direction)
        if options.resync and not locked:
            trigger = self._trigger(packet, direction, payload)
            if trigger is not None and self._resynchronise(options.resync[trigger], packet, direction):
                locked = not self._lock_on
        first = packet.seq
        if flags & _SYN:
            # RFC 9293 section 3.4: data on a SYN begins behind it (RFC 7413 makes use of that).
            first = (packet.seq + 1) % _MODULUS
            self._synchronise(packet, direction, first)
        stream = self._stream_of(direction)
        self._before = None if stream is None else stream.next_seq
        opening = not self.established
        if opening and flags & _ACK and direction is _CLIENT and not flags & (_SYN | _RST):
            self.established = options.established_by == "ack" or self._fits(packet)
        ready = b""
        if payload and self._reads(packet, direction, payload, opening=opening):
            ready = self._data(first, payload, direction, now)
        if payload and direction is _CLIENT:
            self._seen |= _DATA_SEEN
            if flags & _ACK and self._to_client is None:
                self._to_client = self._stream(packet.ack)
        if flags & (_RST | _FIN) and not locked:
            self._end(packet, direction, opening=opening)
        return ready

    def goes_by(self, options: TcpOptions) -> bool:
        """Whether it was made under the same knobs: it keeps them, whatever is loaded meanwhile."""
        if self._options is options:
            return True
        if self._options != options:
            return False
        self._options = options
        return True

    @property
    def resynchronising(self) -> bool:
        """Whether any packet may be the one from which the numbers are taken."""
        return bool(self._lock_on)

    @property
    def may_begin_midway(self) -> bool:
        """Whether it, or what comes after it, knows the connection from no SYN: then any packet may count."""
        return self._options.create_on == "any" and (self.torn_down or not self._seen & _SYN_SEEN)

    def expected(self, direction: Direction, *, passed: bool) -> int | None:
        """The sequence number that the receiver wants next, where the packet just read reached it (`passed`) or not.

        None where the censor keeps no stream and cannot know.
        """
        stream = self._stream_of(direction)
        if stream is None or self.torn_down or self._lock_on or self._options.reassembly != "full":
            return None
        return stream.next_seq if passed else self._before

    # -- handshake ----------------------------------------------------------------------------------------------

    def _synchronise(self, packet: Packet, direction: Direction, first: int) -> None:
        """Books a SYN: where the streams begin."""
        if not packet.flags & _ACK:
            if direction is _CLIENT:
                self._seen |= _SYN_SEEN
        elif direction is _SERVER:
            self._seen |= _SYNACK_SEEN
        if direction is _CLIENT and self._isn is None:
            self._isn = packet.seq
        if direction is _CLIENT or self._options.follows_server:
            self._open(direction, first)
        if packet.flags & _ACK:
            self._open(direction.opposite, packet.ack)

    def _fits(self, packet: Packet) -> bool:
        """Whether an ACK of the client bears the numbers that follow from the handshake."""
        client, server = self._to_server, self._to_client
        return (
            client is not None
            and server is not None
            and packet.seq == client.next_seq
            and packet.ack == server.next_seq
            and bool(self._seen & _SYNACK_SEEN)
        )

    # -- what is not taken notice of ----------------------------------------------------------------------------

    def _accepts(self, packet: Packet, direction: Direction) -> bool:
        options = self._options
        if options.bad_ack < 1.0 and self._has_bad_ack(packet, direction) and self._rng.random() >= options.bad_ack:
            return False
        if options.old_timestamp < 1.0 and packet.tcp_options:
            stamp = timestamp_value(packet.tcp_options)
            if self._stamps is None:
                self._stamps = {}
            latest = self._stamps.get(direction)
            if stamp is not None:
                if latest is not None and seq_delta(stamp, latest) < 0:
                    return self._rng.random() < options.old_timestamp
                self._stamps[direction] = stamp
        return True

    def _has_bad_ack(self, packet: Packet, direction: Direction) -> bool:
        """It acknowledges what was never sent, or what was acknowledged long ago (RFC 5961 section 5.2)."""
        peer = self._stream_of(direction.opposite)
        if peer is None or not packet.flags & _ACK:
            return False
        return not -_WINDOW <= seq_delta(packet.ack, peer.next_seq) <= 0

    def _reads(self, packet: Packet, direction: Direction, payload: bytes, *, opening: bool) -> bool:
        """Whether the payload goes into the stream."""
        options = self._options
        if direction is _SERVER:
            return True
        if not self.ready or self._lock_on:
            return False
        if len(payload) <= options.small_segments and (opening or options.small_segments_when == "always"):
            return False
        return not (
            options.seq_before_isn == "ignore"
            and self._isn is not None
            and not packet.flags & _SYN
            and seq_delta(packet.seq, self._isn) <= 0
        )

    # -- resynchronisation --------------------------------------------------------------------------------------

    def _trigger(self, packet: Packet, direction: Direction, payload: bytes) -> ResyncTrigger | None:
        """The first of the loaded triggers that this packet pulls, by its flags; resets come by `_end`."""
        for trigger in self._pulled(packet, direction, payload):
            if trigger in self._options.resync:
                return trigger
        return None

    def _pulled(self, packet: Packet, direction: Direction, payload: bytes) -> list[ResyncTrigger]:
        pulled: list[ResyncTrigger] = []
        synack = packet.flags & (_SYN | _ACK) == _SYN | _ACK
        if direction is _CLIENT:
            if packet.flags & _SYN and not synack and self._seen & _SYN_SEEN:
                if payload:
                    pulled.append("syn_with_data")
                pulled.append("multiple_syn")
        elif synack:
            if self._isn is not None and packet.ack != (self._isn + 1) % _MODULUS:
                pulled.append("synack_wrong_ack")
            if self._seen & _SYNACK_SEEN:
                pulled.append("multiple_synack")
        elif payload and not self.established:
            pulled.append("server_payload_before_synack")
        return pulled

    def _resynchronise(self, resync: Resync, packet: Packet, direction: Direction) -> bool:
        if not self._happens(resync.probability):
            return False
        self._lock_on = resync.lock_on
        if "this_packet" in resync.lock_on:
            self._lock(packet, direction)
        return True

    def _leaves_resync(self, packet: Packet, direction: Direction, payload: bytes) -> bool:
        if direction is _SERVER:
            return "server_synack" in self._lock_on and packet.flags & (_SYN | _ACK) == _SYN | _ACK
        if packet.flags & _RST or "client_packet" in self._lock_on:
            return "client_packet" in self._lock_on
        return (bool(payload) and "client_data" in self._lock_on) or (
            bool(packet.flags & _ACK) and "client_ack" in self._lock_on
        )

    def _lock(self, packet: Packet, direction: Direction) -> None:
        """Takes the packet's numbers for right, whatever was expected (Wang et al., IMC 2017, section 5)."""
        self._lock_on = ()
        first = (packet.seq + 1) % _MODULUS if packet.flags & _SYN else packet.seq
        if direction is _CLIENT and packet.flags & _ACK and self._options.simultaneous_open == "off_by_one":
            first = packet.seq
        self._put(direction, self._stream(first))
        self._isn = packet.seq if packet.flags & _SYN else None
        if direction is _SERVER:
            self._to_server = self._stream(packet.ack)
            self._isn = (packet.ack - 1) % _MODULUS

    # -- ends ---------------------------------------------------------------------------------------------------

    def _end(self, packet: Packet, direction: Direction, *, opening: bool) -> None:
        """What a RST or FIN does to the control block."""
        reset, ack, teardown = packet.flags & _RST, packet.flags & _ACK, self._options.teardown
        rule = teardown.get("rst" if reset else "fin")
        if ack:
            rule = teardown.get("rst_ack" if reset else "fin_ack", rule)
        if rule is not None and not self._numbers_fit(rule, packet):
            return
        if reset:
            trigger: ResyncTrigger = "rst_before_established" if opening else "rst"
            resync = self._options.resync.get(trigger if direction is _CLIENT else "server_rst")
            if resync is not None and self._resynchronise(resync, packet, direction):
                return
        if rule is not None and self._applies(rule, direction, opening=opening):
            self.torn_down = self._happens(rule.probability)

    def _applies(self, rule: Teardown, direction: Direction, *, opening: bool) -> bool:
        if rule.by != "any" and (rule.by == "client") is not (direction is _CLIENT):
            return False
        data = bool(self._seen & _DATA_SEEN)
        moments = {"opening": opening, "established": not opening, "before_data": not data, "after_data": data}
        return moments.get(rule.when, True)

    def _numbers_fit(self, rule: Teardown, packet: Packet) -> bool:
        if rule.sequence == "any" or self._before is None:
            return True
        ahead = seq_delta(packet.seq, self._before)
        return ahead == 0 if rule.sequence == "exact" else 0 <= ahead <= _WINDOW

    def _hole_is_too_old(self, now: float) -> bool:
        if self._hole_ends is not None and now > self._hole_ends:
            self.torn_down = True
        return self.torn_down

    # -- streams ------------------------------------------------------------------------------------------------

    def _stream_of(self, direction: Direction) -> Stream | None:
        return self._to_server if direction is _CLIENT else self._to_client

    def _put(self, direction: Direction, stream: Stream) -> None:
        if direction is _CLIENT:
            self._to_server = stream
        else:
            self._to_client = stream

    def _open(self, direction: Direction, next_seq: int) -> None:
        if self._stream_of(direction) is None:
            self._put(direction, self._stream(next_seq))

    def _data(self, seq: int, payload: bytes, direction: Direction, now: float) -> bytes:
        options = self._options
        if options.reassembly != "full":
            return payload
        stream = self._stream_of(direction)
        if stream is None:
            stream = self._stream(seq)
            self._put(direction, stream)
        ready = stream.push(seq, payload)
        if stream.overflowed and options.on_overflow == "forget":
            self.torn_down = True
        if options.hole_lifetime is not None:
            if not stream.held:
                self._hole_ends = None
            elif self._hole_ends is None:
                self._hole_ends = now + self._rng.uniform(*options.hole_lifetime)
        return ready

    def _stream(self, next_seq: int) -> Stream:
        options = self._options
        return Stream(next_seq, self._overlap, options.buffer, follow=options.out_of_window == "follow")

    def _happens(self, probability: float) -> bool:
        return probability >= 1.0 or self._rng.random() < probability


def _drawn(overlap: Overlap | Mapping[Overlap, float], rng: random.Random) -> Overlap:
    if isinstance(overlap, str):
        return overlap
    (chosen,) = rng.choices(tuple(overlap), tuple(overlap.values()))
    return chosen
