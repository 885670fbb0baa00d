"""The kernel plan: what the kernel decides alone, and what user space must see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class KernelRule:
    """One rule that needs nothing but addresses and ports.

    A packet from the inside matches on its destination, one from the outside on its source. Networks are CIDR text,
    ports inclusive ranges (empty: any port and any protocol), transports `tcp` or `udp` (empty: any).
    clients: where non-empty, the inside end must be in these networks, too.
    """

    index: int
    name: str
    verdict: Literal["accept", "drop", "reset", "icmp_unreachable"]
    servers: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    transports: tuple[str, ...] = ()
    direction: Literal["both", "to_server", "to_client"] = "both"
    code: str = "admin_prohibited"


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """`offload`: decided flows may be answered by connection mark. `fail_open`: a full queue lets packets pass.

    `track_fragments` False: fragments are taken out before the kernel reassembles them, because the engine reads
    them by the censor's own policy.
    """

    rules: tuple[KernelRule, ...] = ()
    offload: bool = True
    fail_open: bool = True
    track_fragments: bool = False
