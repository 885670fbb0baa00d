"""Which packets a censor takes no notice of, by what each bears in itself."""

from __future__ import annotations

import random
from collections.abc import Callable

from gfwemu.flow.options import TcpOptions
from gfwemu.model import Transport
from gfwemu.wire.checksum import checksum_ok, ones_complement_sum
from gfwemu.wire.packet import Packet, TcpFlags
from gfwemu.wire.tcp_options import MD5_SIGNATURE, tcp_option

Test = Callable[[Packet], bool]

_CONTROL = int(TcpFlags.FIN | TcpFlags.SYN | TcpFlags.RST)
# RFC 3168 took ECE and CWR from the reserved bits: they are no flags in this sense.
_ANY_FLAG = _CONTROL | int(TcpFlags.ACK | TcpFlags.PSH | TcpFlags.URG)
_SYN, _ACK = int(TcpFlags.SYN), int(TcpFlags.ACK)
_HEADER_WORDS = 5


def packet_filter(options: TcpOptions, rng: random.Random) -> Test | None:
    """A test whether the censor reads a packet; None where it reads all of them. Only checksums concern UDP."""
    certain: list[Test] = []
    if options.verify_checksum:
        certain.append(checksum_ok)
    if options.verify_ip_checksum:
        certain.append(_ip_checksum_ok)
    tcp: list[tuple[Test, float]] = [
        (odd, chance)
        for odd, chance in (
            (_has_md5_option, options.md5_option),
            (_lacks_flags, options.no_flags),
            (_has_odd_flags, options.odd_flags),
            (_has_data_without_ack, options.data_without_ack),
            (_is_cut_short, options.bad_ip_length),
            (has_bad_data_offset, 0.0 if options.bad_data_offset == "ignore" else 1.0),
            (lambda packet: packet.data_offset != options.data_offset, 1.0 if options.data_offset is None else 0.0),
        )
        if chance < 1.0
    ]
    if not certain and not tcp:
        return None

    def reads(packet: Packet) -> bool:
        if not all(test(packet) for test in certain):
            return False
        if packet.proto != Transport.TCP or packet.is_fragment:
            return True
        return all(not odd(packet) or rng.random() < chance for odd, chance in tcp)

    return reads


def has_bad_data_offset(packet: Packet) -> bool:
    """Whether the header would be shorter than it can be, or longer than the segment (RFC 9293 section 3.1)."""
    header = packet.data_offset * 4
    return packet.data_offset < _HEADER_WORDS or packet.transport_offset + header > len(packet.raw)


def _ip_checksum_ok(packet: Packet) -> bool:
    return packet.version == 6 or ones_complement_sum(packet.raw[: (packet.raw[0] & 0x0F) * 4]) == 0xFFFF


def _has_md5_option(packet: Packet) -> bool:
    return bool(packet.tcp_options) and tcp_option(packet.tcp_options, MD5_SIGNATURE) is not None


def _lacks_flags(packet: Packet) -> bool:
    return not packet.flags & _ANY_FLAG


def _has_odd_flags(packet: Packet) -> bool:
    return (packet.flags & _CONTROL).bit_count() > 1


def _has_data_without_ack(packet: Packet) -> bool:
    return bool(packet.payload) and bool(packet.flags & _ANY_FLAG) and not packet.flags & (_ACK | _SYN)


def _is_cut_short(packet: Packet) -> bool:
    """The IP header promises more bytes than there are."""
    if packet.version == 4:
        return int.from_bytes(packet.raw[2:4], "big") > len(packet.raw)
    return int.from_bytes(packet.raw[4:6], "big") + 40 > len(packet.raw)
