"""Community ID, version 1: the same flow has the same name in every tool (corelight/community-id-spec)."""

from __future__ import annotations

import base64
import hashlib
import struct

from gfwemu.model import FiveTuple

_SCTP = 132
_WITH_PORTS = frozenset({1, 6, 17, 58, _SCTP})
_PORTS_UNKNOWN = frozenset({1, 58, _SCTP})


def community_id(flow: FiveTuple, seed: int = 0) -> str:
    """`1:` and 28 characters, whichever way the tuple runs.

    For ICMP and ICMPv6 the ports are the message type and its counterpart, as the specification maps them.
    """
    ends = sorted(((flow.src, flow.sport), (flow.dst, flow.dport)))
    (first, first_port), (second, second_port) = ends
    content = struct.pack("!H", seed) + first + second + struct.pack("!BB", flow.proto, 0)
    if flow.proto in _WITH_PORTS:
        content += struct.pack("!HH", first_port, second_port)
    return "1:" + base64.b64encode(hashlib.sha1(content, usedforsecurity=False).digest()).decode()


def known_community_id(flow: FiveTuple) -> str:
    """As `community_id`, or "" where the flow's tuple holds no ports although the protocol has some."""
    return "" if flow.proto in _PORTS_UNKNOWN else community_id(flow)
