"""Which name leads where, and who lives at which address: the one table that resolvers and sites share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from gfwemu.netlab.internet.plan import Plan, Resolver, Site

# RFC 6761 section 6.4: resolvers answer NXDOMAIN for everything below "invalid".
ALWAYS_ABSENT = ("invalid",)

Owner = Site | Resolver


def suffixes(name: str) -> Iterable[str]:
    """`a.b.c`, `b.c`, `c`."""
    while name:
        yield name
        _, _, name = name.partition(".")


def serves(owner: Owner, name: str) -> bool:
    """Whether a name is one of the owner's own, by itself or below a wildcard."""
    return name in owner.names or any(f"*.{suffix}" in owner.names for suffix in suffixes(name) if suffix != name)


@dataclass(frozen=True, slots=True)
class Names:
    """Names are lower case, without trailing dot, in A-labels. Addresses are in canonical text form."""

    exact: dict[str, Owner]
    wildcard: dict[str, Site]
    absent: frozenset[str]
    catch_all: Site | None
    residents: dict[str, tuple[Owner, ...]]
    reverse: dict[str, str]

    @classmethod
    def of(cls, plan: Plan) -> Names:
        exact: dict[str, Owner] = {}
        wildcard: dict[str, Site] = {}
        residents: dict[str, tuple[Owner, ...]] = {}
        catch_all = (plan.catch_all,) if plan.catch_all is not None else ()
        for owner in (*plan.resolvers, *plan.sites, *catch_all):
            for name in owner.names:
                if isinstance(owner, Site) and name.startswith("*."):
                    wildcard.setdefault(name[2:], owner)
                else:
                    exact.setdefault(name, owner)
            for address in owner.addresses:
                key = str(ip_address(address))
                residents[key] = (*residents.get(key, ()), owner)
        reverse = {
            ip_address(address).reverse_pointer: name
            for name, owner in reversed(exact.items())
            for address in owner.addresses
        }
        return cls(exact, wildcard, frozenset((*plan.absent, *ALWAYS_ABSENT)), plan.catch_all, residents, reverse)

    def lookup(self, name: str) -> Owner | None:
        """The owner of a name, or `None` when the name does not exist. An exact entry wins over an absent suffix."""
        if name in self.exact:
            return self.exact[name]
        for suffix in suffixes(name):
            if suffix in self.absent:
                return None
            if suffix != name and suffix in self.wildcard:
                return self.wildcard[suffix]
        return self.catch_all

    def resident(self, address: str, name: str) -> Owner | None:
        """Who answers at an address when asked for a name: the one whose name it is, else the first who lives there."""
        residents = self.residents.get(address, ())
        return next((owner for owner in residents if serves(owner, name)), residents[0] if residents else None)

    def known_as(self, owner: Owner, name: str) -> str:
        """What an owner calls itself when asked for `name`: the catch-all goes by any name, others by their own."""
        if name and (owner is self.catch_all or serves(owner, name)):
            return name
        return next((own.removeprefix("*.") for own in owner.names), "")
