"""The shared nouns: directions, sides, five-tuples, verdicts."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple, TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[_T]) -> type[_T]:
    """A dataclass with slots that nobody may change.

    The type checker sees to that, not the interpreter: what comes and goes with every packet would take three times as
    long to make if it were frozen.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


class Transport(IntEnum):
    """IP protocol numbers (IANA) that the engine tells apart."""

    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58


TRANSPORT_NAMES: dict[int, str] = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}


class Direction(Enum):
    """Of a packet, seen from the flow: the client is who opened the flow."""

    TO_SERVER = "to_server"
    TO_CLIENT = "to_client"

    __hash__ = object.__hash__
    """Members are single objects; Enum's own hash of the name costs a call for each packet."""

    @property
    def opposite(self) -> Direction:
        return _TO_CLIENT if self is _TO_SERVER else _TO_SERVER


_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


class Side(Enum):
    """Of the firewall: the inside is where the subscribers are."""

    INSIDE = "inside"
    OUTSIDE = "outside"

    @property
    def opposite(self) -> Side:
        return Side.OUTSIDE if self is Side.INSIDE else Side.INSIDE


class Placement(Enum):
    """On-path mechanisms see a copy and can only inject; in-path mechanisms may drop, hold and rewrite."""

    ON_PATH = "on-path"
    IN_PATH = "in-path"

    __hash__ = object.__hash__
    """As of Direction."""


class Verdict(Enum):
    """The kernel's answer for one packet."""

    ACCEPT = "accept"
    DROP = "drop"


class FiveTuple(NamedTuple):
    """Source to destination; addresses are packed (4 or 16 bytes), ports are 0 where there are none."""

    proto: int
    src: bytes
    sport: int
    dst: bytes
    dport: int

    def reversed(self) -> FiveTuple:
        return FiveTuple(self.proto, self.dst, self.dport, self.src, self.sport)

    def __str__(self) -> str:
        return (
            f"{TRANSPORT_NAMES.get(self.proto, self.proto)} "
            f"{endpoint_text(self.src, self.sport)} -> {endpoint_text(self.dst, self.dport)}"
        )


def address_text(packed: bytes) -> str:
    """The usual text form of a packed IPv4 or IPv6 address."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def address_bytes(text: str) -> bytes:
    """The packed form of an IPv4 or IPv6 address. Raises OSError where the text is neither."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def endpoint_text(packed: bytes, port: int) -> str:
    """`192.0.2.1:443` or `[2001:db8::1]:443`."""
    text = address_text(packed)
    return f"[{text}]:{port}" if len(packed) == 16 else f"{text}:{port}"
