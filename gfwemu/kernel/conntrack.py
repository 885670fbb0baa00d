"""Takes gfwemu's bits off the connection marks of all tracked flows."""

from __future__ import annotations

import errno
import struct

from gfwemu.kernel.marks import CONNECTION_BITS, OFFLOAD_ACCEPT, OFFLOAD_DROP
from gfwemu.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    SUBSYSTEM_CTNETLINK,
    NetfilterSocket,
    attribute,
    attributes,
    kind,
    message,
)

# <linux/netfilter/nfnetlink_conntrack.h>
_CT_NEW, _CT_GET = 0, 1
_TUPLE_ORIG, _MARK, _ZONE, _MARK_MASK = 1, 8, 18, 21
_NESTED = 0x8000


def clear_connection_marks() -> int:
    """Every flow of this network namespace is undecided again. Returns how many were decided. Raises OSError."""
    cleared = 0
    reader, writer = NetfilterSocket(), NetfilterSocket()
    try:
        for bit in (OFFLOAD_ACCEPT, OFFLOAD_DROP):
            request = message(
                kind(SUBSYSTEM_CTNETLINK, _CT_GET),
                NLM_F_DUMP,
                0,
                0,
                attribute(_MARK, struct.pack("!I", bit)),
                attribute(_MARK_MASK, struct.pack("!I", bit)),
            )
            for body in list(reader.dump(request)):
                cleared += _clear(writer, body)
    finally:
        reader.close()
        writer.close()
    return cleared


def _clear(writer: NetfilterSocket, entry: bytes) -> int:
    found = dict(attributes(entry[4:]))
    members = [attribute(_TUPLE_ORIG | _NESTED, found[_TUPLE_ORIG])]
    if _ZONE in found:
        members.append(attribute(_ZONE, found[_ZONE]))
    members.append(attribute(_MARK, bytes(4)))
    members.append(attribute(_MARK_MASK, struct.pack("!I", CONNECTION_BITS)))
    try:
        writer.send([message(kind(SUBSYSTEM_CTNETLINK, _CT_NEW), NLM_F_ACK, entry[0], 0, *members)])
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return 0
    return 1
