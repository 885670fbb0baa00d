"""Who plays whom: addresses for hand-made clients, for servers, and pairs of them that never met before.

All of them lie in the topology's own networks and in no shipped profile's lists, so that a rule about addresses meets
only the cases that name such an address themselves.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address, ip_network

from gfwemu.conformance.stage import InconclusiveError
from gfwemu.model import Side, address_bytes, address_text

INSIDE_NETWORKS = ("192.0.2.0/25", "2001:db8:1::/64")
HAND_MADE = {
    Side.INSIDE: ("192.0.2.64/26", "2001:db8:1:0:1::/80"),
    Side.OUTSIDE: ("198.51.100.128/25", "2001:db8:c::/64"),
}
"""By side: no kernel owns these; the routers know the way."""
SERVERS = {
    Side.INSIDE: ("192.0.2.32/27", "2001:db8:1:0:2::/122"),
    Side.OUTSIDE: ("203.0.113.64/26", "2001:db8:f:1::/122"),
}
"""By side: the kernel there owns these."""
SILENT = {4: "198.51.100.64/26", 6: "2001:db8:f:2::/122"}
"""Nobody is there; the way there passes the censor."""
RESOLVERS = {4: "198.51.100.53", 6: "2001:db8:53::53"}


@cache
def _hosts(network: str) -> tuple[bytes, ...]:
    parsed = ip_network(network)
    length = parsed.max_prefixlen // 8
    first = int(parsed.network_address)
    count = min(parsed.num_addresses, 300)
    numbers = range(first + 1, first + count - 1) if count > 2 else range(first, first + count)
    return tuple(number.to_bytes(length, "big") for number in numbers)


class Addresses:
    """Gives them out."""

    def __init__(self) -> None:
        self._free = {side: {4: list(_hosts(v4)), 6: list(_hosts(v6))} for side, (v4, v6) in HAND_MADE.items()}
        self._servers = {side: {4: _hosts(v4), 6: _hosts(v6)} for side, (v4, v6) in SERVERS.items()}
        self._met: defaultdict[bytes, set[bytes]] = defaultdict(set)
        self._given: list[tuple[Side, bytes]] = []
        self._turn: Iterator[int] = itertools.count()
        self.silent = {address for network in SILENT.values() for address in _hosts(network)}
        self.resolvers = {address_bytes(text) for text in RESOLVERS.values()}

    def client(self, side: Side, *, ipv6: bool) -> bytes:
        """The one that was used least recently. Raises InconclusiveError where none is free."""
        free = self._free[side][6 if ipv6 else 4]
        if not free:
            raise InconclusiveError("no client address is free")
        found = free.pop(0)
        self._given.append((side, found))
        return found

    def give_all_back(self) -> None:
        for side, address in self._given:
            self.give_back(side, address)
        self._given.clear()

    def give_back(self, side: Side, address: bytes) -> None:
        self._free[side][6 if len(address) == 16 else 4].append(address)

    def server(self, side: Side, client: bytes, wanted: str) -> bytes:
        """`fresh`, `silent`, `resolver`, an address, or a network out of which one is taken."""
        version = 6 if len(client) == 16 else 4
        wanted = {"silent": SILENT[version], "hand": HAND_MADE[side][version == 6]}.get(wanted, wanted)
        if wanted == "resolver":
            return address_bytes(RESOLVERS[version])
        if wanted == "fresh":
            candidates = self._servers[side][version]
        elif "/" in wanted:
            candidates = _hosts(wanted)
        else:
            return address_bytes(wanted)
        start = next(self._turn)
        for offset in range(len(candidates)):
            found = candidates[(start + offset) % len(candidates)]
            if found not in self._met[client]:
                self._met[client].add(found)
                return found
        raise InconclusiveError(f"{address_text(client)} has met every server of {wanted}")

    def by_hand(self, address: bytes) -> bool:
        """Whether no kernel answers there."""
        return _within(address, tuple(text for networks in HAND_MADE.values() for text in networks))

    def side_of(self, address: bytes) -> Side:
        return Side.INSIDE if _within(address, INSIDE_NETWORKS) else Side.OUTSIDE


@cache
def _within(address: bytes, networks: tuple[str, ...]) -> bool:
    shown = ip_address(address)
    return any(shown in ip_network(network) for network in networks)
