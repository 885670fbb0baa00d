"""How packets get from the table's chain into the netfilter queue.

Where the kernel has nft's `queue` statement, that is used. Elsewhere the rule holds xtables' NFQUEUE target through
nft_compat, as iptables-nft would write it, but in gfwemu's own table: so that one table holds everything, no program is
started, and removing the table removes all of it.

Several workers have a queue each. Which one gets a packet is the hash of its addresses: xtables' own balancing
(nf_queue.h, nfqueue_hash) takes the protocol into it, so that the worker that learned of a pair of addresses would not
get all packets of the pair.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gfwemu.errors import CapabilityError
from gfwemu.kernel.netlink import (
    NFPROTO_INET,
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    SUBSYSTEM_NFTABLES,
    NetfilterSocket,
    attribute,
    batch,
    kind,
    message,
    nested,
)
from gfwemu.kernel.nft import Nft, NftError
from gfwemu.kernel.queue import bulk_queue
from gfwemu.rules.spread import Spread

Hop = Literal["nft", "xtables"]

HOP_CHAINS = ("hop", "bulk_hop")
"""To the queues, and to their bulk queues."""


@dataclass(frozen=True, slots=True)
class Queues:
    """The queue of the first worker, those of the others follow; each has its bulk queue, too."""

    first: int = 0
    workers: int = 1


# <linux/netfilter/nf_tables.h>
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE, _DELETE_RULE = 0, 2, 3, 6, 8
_TABLE_NAME = _CHAIN_TABLE = _RULE_TABLE = 1
_CHAIN_NAME = 3
_RULE_CHAIN, _RULE_EXPRESSIONS = 2, 4
_LIST_ELEMENT = 1
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2

# <linux/netfilter/nf_tables_compat.h>
_TARGET_NAME, _TARGET_REVISION, _TARGET_INFO = 1, 2, 3

# <linux/netfilter/xt_NFQUEUE.h>: struct xt_NFQ_info_v3, padded as xtables pads (XT_ALIGN).
_NFQUEUE_REVISION = 3
_NFQUEUE_INFO = struct.Struct("=HHHxx")
_FLAG_BYPASS = 1

_SEED = 0x67667765
"""Of the hash; the same for both directions, and from one reload to the next."""


def _text(name: str) -> bytes:
    return name.encode() + b"\0"


def _rule(number: int, flags: int, table: str, chain: str, *members: bytes) -> bytes:
    return message(
        kind(SUBSYSTEM_NFTABLES, number),
        flags,
        NFPROTO_INET,
        0,
        attribute(_RULE_TABLE, _text(table)),
        attribute(_RULE_CHAIN, _text(chain)),
        *members,
    )


def nft_statement(queue: int, bypass: bool) -> str:
    return f"queue num {queue}{' bypass' if bypass else ''}"


def set_xtables_hop(netfilter: NetfilterSocket, table: str, chain: str, queue: int, bypass: bool) -> None:
    """Replaces whatever the chain holds, at once, by one rule that queues. Raises OSError."""
    target = nested(
        _EXPRESSION_DATA,
        attribute(_TARGET_NAME, _text("NFQUEUE")),
        attribute(_TARGET_REVISION, struct.pack("!I", _NFQUEUE_REVISION)),
        attribute(_TARGET_INFO, _NFQUEUE_INFO.pack(queue, 1, _FLAG_BYPASS if bypass else 0)),
    )
    expression = nested(_LIST_ELEMENT, attribute(_EXPRESSION_NAME, _text("target")), target)
    create = NLM_F_CREATE | NLM_F_APPEND | NLM_F_ACK
    netfilter.send(
        batch(
            [
                _rule(_DELETE_RULE, NLM_F_ACK, table, chain),
                _rule(_NEW_RULE, create, table, chain, nested(_RULE_EXPRESSIONS, expression)),
            ]
        )
    )


def set_hops(
    nft: Nft,
    netfilter: NetfilterSocket,
    hop: Hop,
    table: str,
    queues: Queues,
    spread: Spread,
    inside: str,
    bypass: bool,
) -> None:
    """Makes the chains of `HOP_CHAINS`, or changes them. Raises NftError or OSError."""
    for chain, offset in ((HOP_CHAINS[0], 0), (HOP_CHAINS[1], bulk_queue(0))):
        alone = queues.workers == 1
        ways = [chain] if alone else [f"{chain}_{worker}" for worker in range(queues.workers)]
        nft.run("; ".join(f"add chain inet {table} {name}" for name in (chain, *ways)))
        for worker, name in enumerate(ways):
            queue = queues.first + offset + worker
            if hop == "xtables":
                set_xtables_hop(netfilter, table, name, queue, bypass)
            else:
                statement = nft_statement(queue, bypass)
                nft.run(f"flush chain inet {table} {name}; add rule inet {table} {name} {statement}")
        if not alone:
            lines = (f"add rule inet {table} {chain} {line}" for line in spread_lines(ways, spread, inside))
            nft.run("; ".join([f"flush chain inet {table} {chain}", *lines]))


def spread_lines(ways: list[str], spread: Spread, inside: str) -> Iterator[str]:
    """Rules that send a packet one of the ways, both directions the same."""
    if spread != "one":
        goals = ", ".join(f"{number} : goto {way}" for number, way in enumerate(ways))
        for sign, near, far in (("", "saddr", "daddr"), ("!= ", "daddr", "saddr")):
            for family in ("ip", "ip6"):
                both = f"{family} {near} . {family} {far}"
                key = {"inside": f"{family} {near}", "outside": f"{family} {far}"}.get(spread, both)
                share = f"jhash {key} mod {len(ways)} seed {_SEED:#x}"
                yield f'iifname {sign}"{inside}" {share} vmap {{ {goals} }}'
    yield f"goto {ways[0]}"


def find_hop(nft: Nft) -> Hop:
    """Which way into the queue this kernel has; nothing is changed. Raises CapabilityError."""
    table = "gfwemu_probe"
    try:
        statement = nft_statement(0, True)
        nft.check(f"add table inet {table}; add chain inet {table} hop; add rule inet {table} hop {statement}")
    except NftError:
        pass
    else:
        return "nft"
    netfilter = NetfilterSocket()
    try:
        nft.run(f"add table inet {table}; add chain inet {table} hop")
        set_xtables_hop(netfilter, table, "hop", 0, True)
    except (NftError, OSError) as error:
        lacking = "CAP_NET_ADMIN" if getattr(error, "errno", 0) == errno.EPERM else "NFQUEUE"
        raise CapabilityError(
            f"This kernel has no way into the netfilter queue ({lacking}: {error}).",
            "Load one: modprobe nft_queue, or modprobe -a nft_compat xt_NFQUEUE.",
        ) from None
    else:
        return "xtables"
    finally:
        netfilter.close()
        remove_table(nft, table)


def remove_table(nft: Nft, table: str) -> None:
    """Removes the table if it is there; without the right to, there is none of ours."""
    try:
        nft.run(f"add table inet {table}; delete table inet {table}")
    except NftError:
        return
