"""The bits of the packet mark and of the connection mark that belong to gfwemu. All uses are masked."""

from __future__ import annotations

INJECTED = 0x01000000
"""Packet mark of forged packets: they bypass connection tracking."""

QUEUED = 0x02000000
"""Packet mark of what user space gets to see."""

OFFLOAD_ACCEPT = 0x04000000
OFFLOAD_DROP = 0x08000000
"""In a verdict's packet mark, then in the connection mark: the kernel answers for the flow."""

OFFLOAD_BULK = 0x20000000
"""Likewise: of the flow nothing but sizes counts any more, and it goes on in the bulk queue."""

QUEUE_ALL = 0x40000000
"""In a verdict's packet mark: from now on every packet of the flow must be queued."""

SPARE_ANSWERS = 0x00100000
"""Likewise, but for the DNS answers of its server; without QUEUE_ALL: this is still so. No packet's mark tells of a
generation, whose place it takes."""

ID_ZERO = 0x10000000
"""Packet mark of forged packets whose IP ID shall be 0; a raw socket would fill it in (raw(7))."""

GENERATION = 0x00F00000
"""In the connection mark: under which rules the flow was decided."""

GENERATION_SHIFT = 20
GENERATIONS = 15

OFFLOAD = OFFLOAD_ACCEPT | OFFLOAD_DROP

FOLLOWED = OFFLOAD
"""In the connection mark: user space saw the flow begin and has decided nothing yet; what the plan spares may pass
unseen."""

CONNECTION_BITS = OFFLOAD | OFFLOAD_BULK | GENERATION
PACKET_BITS = INJECTED | QUEUED | QUEUE_ALL | OFFLOAD | OFFLOAD_BULK | ID_ZERO | GENERATION


def connection_mark(offload: int, generation: int) -> int:
    """The bits that a decided flow carries. `generation` is 1 to 15."""
    return offload | generation << GENERATION_SHIFT


def next_generation(generation: int) -> int:
    return generation % GENERATIONS + 1
