"""What the header parser reads off one IP packet."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

from gfwemu.model import FiveTuple


class TcpFlags(IntFlag):
    """RFC 9293 section 3.1."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80


@dataclass(slots=True)
class Packet:
    """One IP packet. Offsets count bytes from the start of `raw`.

    `raw` ends with the IP packet. `data_offset` counts 32-bit words, as on the wire. `ip_id` is 0 over IPv6 except in
    fragments. Fields of a layer that is absent hold 0 (or b""). A fragment other than the first has no transport
    fields: `transport_offset` is where its data begins and `payload` is that data. `unseen`: bytes of the payload that
    the queue did not hand over.
    """

    raw: bytes
    version: int
    src: bytes
    dst: bytes
    proto: int
    ttl: int
    tos: int
    ip_id: int
    dont_fragment: bool
    more_fragments: bool
    fragment_offset: int
    transport_offset: int
    sport: int = 0
    dport: int = 0
    seq: int = 0
    ack: int = 0
    flags: int = 0
    window: int = 0
    data_offset: int = 0
    urgent: int = 0
    tcp_options: bytes = b""
    icmp_type: int = 0
    icmp_code: int = 0
    payload: bytes = b""
    unseen: int = 0

    @property
    def five_tuple(self) -> FiveTuple:
        return FiveTuple(self.proto, self.src, self.sport, self.dst, self.dport)

    @property
    def is_fragment(self) -> bool:
        return self.more_fragments or self.fragment_offset > 0


@dataclass(frozen=True, slots=True)
class Malformed:
    """A packet that the parser cannot read, with the reason; the engine lets it pass untouched."""

    reason: str
