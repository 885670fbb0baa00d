"""The owned nftables table in the kernel: installed, reloaded, watched, counted and removed."""

from __future__ import annotations

import errno
import math
import re
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from gfwemu.errors import CapabilityError, GfwemuError
from gfwemu.kernel.conntrack import clear_connection_marks
from gfwemu.kernel.hop import Hop, Queues, find_hop, set_hops
from gfwemu.kernel.intervals import fill, ranges
from gfwemu.kernel.marks import next_generation
from gfwemu.kernel.netlink import (
    NFPROTO_INET,
    NLM_F_CREATE,
    NLM_F_DUMP,
    SUBSYSTEM_NFTABLES,
    NetfilterSocket,
    attribute,
    attributes,
    batch,
    kind,
    message,
    nested,
)
from gfwemu.kernel.nft import Nft, NftError
from gfwemu.kernel.queue import bound_queues
from gfwemu.kernel.ruleset import (
    Ends,
    Lifetimes,
    address_sets,
    content_text,
    counter_name,
    frame_text,
    object_names,
    objects_text,
    watch_set,
    watched_text,
)
from gfwemu.rules.plan import KernelPlan

DEFAULT_QUEUE = 0

# <linux/netfilter/nf_tables.h>
_NEW_ELEMENT, _DELETE_ELEMENT = 12, 14
_ELEMENTS_TABLE, _ELEMENTS_SET, _ELEMENTS = 1, 2, 3
_LIST_ELEMENT = 1
_ELEMENT_KEY, _ELEMENT_TIMEOUT = 1, 4
_DATA_VALUE = 1
_GET_OBJECT = 19
_OBJECT_TABLE, _OBJECT_NAME, _OBJECT_TYPE, _OBJECT_DATA = 1, 2, 3, 4
_COUNTER = 1
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_LONGEST_WATCH = 7 * 86_400.0
_LIFETIMES = Lifetimes()
_ONE_QUEUE = Queues(DEFAULT_QUEUE)


@dataclass(frozen=True, slots=True)
class RuleCounter:
    """What the kernel decided alone for one rule since the plan was installed."""

    name: str
    verdict: str
    packets: int
    bytes: int


def table_name(queue: int) -> str:
    """`gfwemu`, or `gfwemu_N` for a second daemon on queue N of the same host."""
    return "gfwemu" if queue == DEFAULT_QUEUE else f"gfwemu_{queue}"


class Table:
    """gfwemu's table for one queue and one pair of interfaces. Raises NftError, CapabilityError or OSError."""

    def __init__(self, nft: Nft, ends: Ends, queues: Queues = _ONE_QUEUE, hop: Hop | None = None) -> None:
        self.name = table_name(queues.first)
        self.watches_refused = 0
        self._nft = nft
        self._ends = ends
        self._queues = queues
        self._hop = hop if hop is not None else find_hop(nft)
        self._netfilter = NetfilterSocket()
        self._generation = 0
        self._plan = KernelPlan()
        self._prepared: KernelPlan | None = None
        self._watches: dict[str, float] = {}

    @property
    def generation(self) -> int:
        return self._generation

    def remove_leftovers(self) -> None:
        """What killed daemons left behind: their tables (those whose queue nobody has bound) and connection marks.

        To be called with the own queue bound: then a table of the same name is no living daemon's.
        """
        self.remove()
        alive = {table_name(number) for number in bound_queues()}
        for item in self._nft.json("list tables inet"):
            name = item["table"]["name"]
            if re.fullmatch(r"gfwemu(_[0-9]+)?", name) and name not in alive:
                self._nft.run(f"delete table inet {name}")
        self._clear_marks()

    def install(self, plan: KernelPlan, lifetimes: Lifetimes = _LIFETIMES) -> None:
        """The base chains come last, in one transaction with the rules: no packet sees half a table."""
        generation = next_generation(0)
        self._nft.run(f"add table inet {self.name}")
        try:
            self._set_hops(plan)
            _make_objects(self._nft, self._netfilter, self.name, plan, generation)
            frame = frame_text(self.name, self._ends, lifetimes.limit)
            self._nft.run(frame + content_text(self.name, plan, generation, lifetimes))
        except BaseException:
            self.remove()
            raise
        self._plan, self._generation = plan, generation

    def prepare(self, plan: KernelPlan) -> None:
        """Makes and fills the sets of the plan that the next `replace` puts in force, which is quick then.

        May run in a thread beside the other methods. Where the kernel refuses anything, nothing is left behind.
        """
        nft, netfilter = Nft(), NetfilterSocket()
        generation = next_generation(self._generation)
        try:
            _make_objects(nft, netfilter, self.name, plan, generation)
        except (GfwemuError, OSError):
            _discard(nft, object_names(self.name, plan, generation))
            raise
        finally:
            netfilter.close()
            nft.close()
        self._prepared = plan

    def forget(self) -> None:
        """Takes away what was prepared and is not to take force."""
        if self._prepared is not None:
            plan, self._prepared = self._prepared, None
            _discard(self._nft, object_names(self.name, plan, next_generation(self._generation)))

    def replace(self, plan: KernelPlan, lifetimes: Lifetimes = _LIFETIMES) -> None:
        """Puts another plan in force, at once. Flows decided under the old one are queued again.

        Where the kernel refuses anything, the old plan stays in force.
        """
        generation = next_generation(self._generation)
        old = object_names(self.name, self._plan, self._generation)
        if generation < self._generation:
            # The number was in use before: nothing may be left that carries it.
            self._clear_marks()
        if self._prepared is not plan:
            self.forget()
            self.prepare(plan)
        try:
            self._nft.run(content_text(self.name, plan, generation, lifetimes, old, self._watches))
        except (GfwemuError, OSError):
            self.forget()
            raise
        self._prepared = None
        if (plan.fail_open, plan.spread) != (self._plan.fail_open, self._plan.spread):
            self._set_hops(plan)
        self._plan, self._generation = plan, generation

    def quiet(self) -> None:
        """Queues nothing any more. Packets that wait can still get their verdicts.

        Not so once the table is removed: when a hook goes, the kernel drops what waits in any queue of the namespace.
        """
        self._nft.run(f"flush chain inet {self.name} forward")

    def remove(self) -> None:
        self._nft.run(f"add table inet {self.name}; delete table inet {self.name}")

    def close(self) -> None:
        """Removes the table and every mark that it left on connections."""
        self.remove()
        self._clear_marks()
        self._netfilter.close()

    def counters(self) -> list[RuleCounter]:
        """In the order of the rules; rules of the same name count together. To be asked now and then."""
        self._forget_watches()
        if not self._plan.rules:
            return []
        values = self._read_counters()
        totals: dict[str, RuleCounter] = {}
        for number, rule in enumerate(self._plan.rules):
            now = values[counter_name(number, self._generation)]
            before = totals.get(rule.name, RuleCounter(rule.name, rule.verdict, 0, 0))
            totals[rule.name] = replace(before, packets=before.packets + now[0], bytes=before.bytes + now[1])
        return list(totals.values())

    def _read_counters(self) -> dict[str, tuple[int, int]]:
        """Packets and bytes by name. By netlink: nft would read all elements of all sets first."""
        request = message(
            kind(SUBSYSTEM_NFTABLES, _GET_OBJECT),
            NLM_F_DUMP,
            NFPROTO_INET,
            0,
            attribute(_OBJECT_TABLE, self.name.encode() + b"\0"),
            attribute(_OBJECT_TYPE, struct.pack("!I", _COUNTER)),
        )
        found: dict[str, tuple[int, int]] = {}
        for body in self._netfilter.dump(request):
            fields = dict(attributes(body[4:]))
            values = dict(attributes(fields[_OBJECT_DATA]))
            name = fields[_OBJECT_NAME].rstrip(b"\0").decode()
            packets, octets = values[_COUNTER_PACKETS], values[_COUNTER_BYTES]
            found[name] = int.from_bytes(packets, "big"), int.from_bytes(octets, "big")
        return found

    def watch(
        self,
        client: bytes,
        server: bytes,
        proto: int,
        server_port: int | None,
        client_port: int | None,
        seconds: float,
    ) -> bool:
        """Packets between these endpoints are queued for so long, whatever was offloaded. An empty client: any.

        A second call for the same endpoints starts the time anew. False, and counted, where the kernel's set is full.
        """
        key = client + server
        length = 2 if client else 0
        if server_port is not None:
            length += 1 if client_port is None else 2
            key += struct.pack("!B3xH2x", proto, server_port)
            if client_port is not None:
                key += struct.pack("!H2x", client_port)
        name = watch_set(4 if len(server) == 4 else 6, length)
        # A set's timeouts have a resolution of milliseconds, and 0 means for ever.
        milliseconds = max(1, math.ceil(min(seconds, _LONGEST_WATCH) * 1000))
        bare = attribute(_ELEMENT_KEY | 0x8000, attribute(_DATA_VALUE, key))
        timed = bare + attribute(_ELEMENT_TIMEOUT, struct.pack("!Q", milliseconds))
        # Adding makes sure that there is something to delete; older kernels (before 6.12) do not renew a timeout.
        try:
            self._netfilter.send(
                batch([self._element(name, timed), self._element(name, bare, delete=True), self._element(name, timed)])
            )
        except OSError as error:
            if error.errno not in (errno.ENFILE, errno.ENOSPC, errno.ENOMEM, errno.ENOBUFS, errno.ENOENT):
                raise
            self.watches_refused += 1
            return False
        self._use_watches(name, time.monotonic() + milliseconds / 1000)
        return True

    def _use_watches(self, name: str, until: float) -> None:
        """Only sets that hold anything are asked for each packet."""
        known = name in self._watches
        self._watches[name] = max(until, self._watches.get(name, 0.0))
        if not known:
            self._nft.run(watched_text(self.name, self._watches))

    def _forget_watches(self) -> None:
        # The kernel counts in jiffies, from a little later on.
        over = [name for name, until in self._watches.items() if until + 1.0 < time.monotonic()]
        if over:
            for name in over:
                del self._watches[name]
            self._nft.run(watched_text(self.name, self._watches))

    def _element(self, name: str, content: bytes, *, delete: bool = False) -> bytes:
        return message(
            kind(SUBSYSTEM_NFTABLES, _DELETE_ELEMENT if delete else _NEW_ELEMENT),
            0 if delete else NLM_F_CREATE,
            NFPROTO_INET,
            0,
            attribute(_ELEMENTS_TABLE, self.name.encode() + b"\0"),
            attribute(_ELEMENTS_SET, name.encode() + b"\0"),
            nested(_ELEMENTS, nested(_LIST_ELEMENT, content)),
        )

    def _set_hops(self, plan: KernelPlan) -> None:
        set_hops(
            self._nft,
            self._netfilter,
            self._hop,
            self.name,
            self._queues,
            plan.spread,
            self._ends.inside,
            plan.fail_open,
        )

    def _clear_marks(self) -> None:
        try:
            clear_connection_marks()
        except OSError as error:
            raise CapabilityError(
                f"Connection marks cannot be cleared ({error}).", "Load the module: modprobe nf_conntrack_netlink."
            ) from None


def _make_objects(nft: Nft, netfilter: NetfilterSocket, table: str, plan: KernelPlan, generation: int) -> None:
    """Fills the sets before anything refers to them, so that the plan itself is small and takes force at once."""
    nft.run(objects_text(table, plan, generation))
    for one in address_sets(plan, generation):
        fill(netfilter, table, one.name, ranges(one.networks, one.width), one.width)


def _discard(nft: Nft, names: tuple[str, ...]) -> None:
    for name in names:
        with suppress(NftError):
            nft.run(f"delete {name}")


__all__ = ["DEFAULT_QUEUE", "Ends", "NftError", "RuleCounter", "Table", "table_name"]
