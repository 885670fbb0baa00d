"""The knobs of the censor's memory: its idea of TCP, of fragments, and how long it remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gfwemu.flow.stream import Overlap

LockOn = Literal["this_packet", "client_packet", "client_ack", "client_data", "server_synack"]
ResyncTrigger = Literal[
    "multiple_syn",
    "syn_with_data",
    "multiple_synack",
    "synack_wrong_ack",
    "server_payload_before_synack",
    "rst",
    "rst_before_established",
    "server_rst",
]
TeardownFlag = Literal["rst", "rst_ack", "fin", "fin_ack"]


@dataclass(frozen=True, slots=True)
class Teardown:
    """When a RST or FIN makes the censor forget the connection.

    when: `opening` and `established` before and after the handshake is complete by `established_by`; `after_data` once
    the client has sent payload, this packet's included. by: whose segment counts. sequence: which numbers count, for
    the resynchronisation in the place of the teardown, too.
    """

    probability: float = 1.0
    when: Literal["always", "opening", "established", "before_data", "after_data"] = "always"
    by: Literal["any", "client", "server"] = "any"
    sequence: Literal["any", "in_window", "exact"] = "any"


@dataclass(frozen=True, slots=True)
class Resync:
    """Resynchronisation: the censor no longer trusts its numbers and takes those of the next packet in `lock_on`.

    Wang et al., IMC 2017, section 5 (next SYN/ACK of the server, or data of the client); Bock et al., SIGCOMM 2020,
    section 5 (next SYN/ACK of the server, or packet of the client with ACK flag).
    """

    probability: float = 1.0
    lock_on: tuple[LockOn, ...] = ("server_synack", "client_data")


@dataclass(frozen=True, slots=True)
class TcpOptions:
    """The censor's idea of TCP. Every default is a choice of the emulator, to be set by a profile.

    create_on: what creates a TCB; `both` a SYN or a SYN/ACK. `any` takes flows up in the middle, too.
    handshake: what of it must have been seen before the client's payload is read.
    established_by: the client's packet that completes the handshake: any with the ACK flag, or one whose numbers fit.
    reassembly: `none` reads each segment alone, `first_segment` only the first, `full` the in-order stream.
    overlap: of bytes that arrive twice with different content, the `first` or the `last` copy counts;
    `left_equal_last`: the first, except against a later segment that begins at the same byte. A mapping: the
    probability of each, drawn once a connection.
    md5_option, old_timestamp, bad_ack, data_without_ack, no_flags, odd_flags, bad_ip_length: the probability to read
    such a packet as if nothing were wrong with it; else it is as if it had not come.
    small_segments: payloads of the client up to that many bytes are not read, `always` or until the handshake is
    complete.
    buffer: bytes that may lie above a hole, counted from its beginning; on_overflow: what becomes of the TCB where
    more come.
    hole_lifetime: seconds, from and to, after which a TCB with a hole is forgotten.
    inspect: bytes of one direction that dissectors get to see, at most; beyond it the flow counts as unknown.
    """

    create_on: Literal["syn", "synack", "both", "any"] = "syn"
    handshake: Literal["none", "syn", "full"] = "none"
    established_by: Literal["ack", "valid_ack"] = "ack"
    reassembly: Literal["none", "first_segment", "full"] = "full"
    overlap: Overlap | Mapping[Overlap, float] = "first"
    verify_checksum: bool = False
    verify_ip_checksum: bool = False
    teardown: Mapping[TeardownFlag, Teardown] = field(default_factory=lambda: {"rst": Teardown(), "fin": Teardown()})
    resync: Mapping[ResyncTrigger, Resync] = field(default_factory=dict)
    simultaneous_open: Literal["advance", "off_by_one"] = "advance"
    md5_option: float = 1.0
    old_timestamp: float = 1.0
    bad_ack: float = 1.0
    data_without_ack: float = 1.0
    no_flags: float = 1.0
    odd_flags: float = 1.0
    bad_ip_length: float = 1.0
    bad_data_offset: Literal["accept", "ignore", "read_header_as_payload"] = "accept"
    data_offset: int | None = None
    seq_before_isn: Literal["trim", "ignore"] = "trim"
    small_segments: int = 0
    small_segments_when: Literal["opening", "always"] = "opening"
    out_of_window: Literal["ignore", "follow"] = "ignore"
    buffer: int = 65_536
    on_overflow: Literal["trim", "forget"] = "trim"
    hole_lifetime: tuple[float, float] | None = None
    inspect: int = 262_144

    @property
    def follows_server(self) -> bool:
        """Whether the numbers of the server's segments count for more than the order of its bytes."""
        return (
            self.create_on != "syn"
            or self.established_by != "ack"
            or self.bad_ack < 1.0
            or self.on_overflow == "forget"
            or self.hole_lifetime is not None
            or bool(self.resync)
            or any(one.sequence != "any" for one in self.teardown.values())
        )


@dataclass(frozen=True, slots=True)
class FragmentOptions:
    """IP fragments: at most `limit` a datagram, `timeout` seconds, and what an overlap does.

    `first_unless_wider`: the first copy of a byte counts, except against a later fragment that begins before and ends
    after the one that brought it.
    """

    reassemble: bool = True
    limit: int = 64
    timeout: float = 30.0
    on_overlap: Literal["first", "last", "first_unless_wider", "drop"] = "drop"
    datagrams: int = 1024


@dataclass(frozen=True, slots=True)
class FlowOptions:
    """Bounds and lifetimes (seconds) of the flow table; the least recently used flow goes first.

    tcp_opening: until the client's ACK ends the handshake.
    """

    limit: int = 100_000
    tcp_opening: float = 480.0
    tcp_established: float = 480.0
    tcp_closing: float = 10.0
    udp: float = 60.0
    other: float = 30.0
    residual_limit: int = 100_000
