"""The knobs of the censor's memory: its idea of TCP, of fragments, and how long it remembers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TcpOptions:
    """The censor's idea of TCP. Every default is a choice of the emulator, to be set by a profile.

    create_on: what creates a TCB. `any` takes flows up in the middle, too.
    reassembly: `none` reads each segment alone, `first_segment` only the first, `full` the in-order stream.
    overlap: of bytes that arrive twice with different content, the `first` or the `last` copy counts.
    buffer: bytes kept above a hole in one direction, at most.
    inspect: bytes of one direction that dissectors get to see, at most; beyond it the flow counts as unknown.
    """

    create_on: Literal["syn", "synack", "any"] = "syn"
    reassembly: Literal["none", "first_segment", "full"] = "full"
    overlap: Literal["first", "last"] = "first"
    verify_checksum: bool = False
    teardown: frozenset[str] = frozenset({"rst", "fin"})
    buffer: int = 65_536
    inspect: int = 262_144


@dataclass(frozen=True, slots=True)
class FragmentOptions:
    """IP fragments: at most `limit` a datagram, `timeout` seconds, and what an overlap does."""

    reassemble: bool = True
    limit: int = 64
    timeout: float = 30.0
    on_overlap: Literal["first", "last", "drop"] = "drop"
    datagrams: int = 1024


@dataclass(frozen=True, slots=True)
class FlowOptions:
    """Bounds and lifetimes (seconds) of the flow table; the least recently used flow goes first."""

    limit: int = 100_000
    tcp_opening: float = 60.0
    tcp_established: float = 480.0
    tcp_closing: float = 10.0
    udp: float = 60.0
    other: float = 30.0
    residual_limit: int = 100_000
