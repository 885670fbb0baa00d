"""Sets of IP networks: one hash lookup for each prefix length in use."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator

from gfwemu.model import address_text
from gfwemu.rules.compiled import Fact
from gfwemu.rules.tree import shorten

Network = tuple[bytes, int]
"""A packed address and a prefix length."""


_LENGTHS = {str(length): length for length in range(129)}


def parse_network(text: str) -> Network:
    """`203.0.113.0/24` or one address. Raises ValueError with the reason."""
    text = text.strip()
    return _plain_network(text) or _checked_network(text)


def _plain_network(text: str) -> Network | None:
    """The network without `ipaddress`, which takes ten times as long; None where there is anything to say about it."""
    address, slash, length = text.partition("/")
    family, bits = (socket.AF_INET6, 128) if ":" in address else (socket.AF_INET, 32)
    try:
        packed = socket.inet_pton(family, address)
    except (OSError, ValueError):
        return None
    prefix = _LENGTHS.get(length) if slash else bits
    if prefix is None or prefix > bits or int.from_bytes(packed, "big") & (1 << bits - prefix) - 1:
        return None
    return packed, prefix


def _checked_network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        try:
            loose = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"'{shorten(text)}' is not an address or a network such as 203.0.113.0/24") from None
        raise ValueError(f"'{text}' has bits below its prefix; write {loose} or {text.partition('/')[0]}") from None
    return network.network_address.packed, network.prefixlen


def network_text(network: Network) -> str:
    return f"{address_text(network[0])}/{network[1]}"


class NetworkSet:
    """Networks of one source, such as `@news`, or "" for those written out in the rule."""

    __slots__ = ("_tables", "source")

    def __init__(self, source: str, networks: Iterable[Network]) -> None:
        self.source = source
        tables: dict[int, dict[int, set[int]]] = {4: {}, 16: {}}
        for packed, prefix in networks:
            size = len(packed)
            tables[size].setdefault(prefix, set()).add(int.from_bytes(packed, "big") >> (8 * size - prefix))
        self._tables = {size: sorted(lengths.items(), reverse=True) for size, lengths in tables.items()}

    def __len__(self) -> int:
        return sum(len(keys) for lengths in self._tables.values() for _, keys in lengths)

    def __iter__(self) -> Iterator[Network]:
        for size, lengths in self._tables.items():
            for prefix, keys in lengths:
                for key in keys:
                    yield (key << (8 * size - prefix)).to_bytes(size, "big"), prefix

    def versions(self) -> frozenset[int]:
        """The IP versions that occur."""
        return frozenset(version for version, size in ((4, 4), (6, 16)) if self._tables[size])

    def match(self, value: Fact) -> str | None:
        if not isinstance(value, bytes) or (found := self._find(value, 128)) is None:
            return None
        text = network_text(found)
        return f"{text} from {self.source}" if self.source else text

    def covers(self, other: object) -> bool:
        """Whether every address of `other` lies in this set. False where only several networks together cover one."""
        if not isinstance(other, NetworkSet):
            return False
        return other is self or all(self._find(packed, prefix) is not None for packed, prefix in other)

    def overlaps(self, other: NetworkSet) -> bool:
        """Whether some address lies in both."""
        return any(self._find(*network) for network in other) or any(other._find(*network) for network in self)

    def _find(self, packed: bytes, longest: int) -> Network | None:
        """The longest network, of at most that prefix length, that holds the address."""
        size = len(packed)
        number = int.from_bytes(packed, "big")
        for prefix, keys in self._tables.get(size, ()):
            shift = 8 * size - prefix
            if prefix <= longest and number >> shift in keys:
                return (number >> shift << shift).to_bytes(size, "big"), prefix
        return None
