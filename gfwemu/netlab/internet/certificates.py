"""Which certificate a server shows, by the address that was asked and the name that was asked for."""

from __future__ import annotations

import ssl
from collections import OrderedDict
from dataclasses import dataclass, field

import trustme

from gfwemu.netlab.internet.authority import KEPT_CERTIFICATES, Authority
from gfwemu.netlab.internet.names import Names
from gfwemu.netlab.internet.plan import Resolver, Site


@dataclass(slots=True)
class Certificates:
    """A site shows a certificate for the asked name when that is its own, else for the names that it has."""

    names: Names
    authority: Authority
    _contexts: OrderedDict[tuple[str, str, tuple[str, ...]], ssl.SSLContext] = field(default_factory=OrderedDict)

    def leaf(self, address: str, name: str) -> trustme.LeafCert:
        """`address` in canonical text form; `name` the SNI in lower case, empty when the client sent none."""
        owner = self.names.resident(address, name)
        kind = owner.certificate if isinstance(owner, Site) else "trusted"
        if isinstance(owner, Resolver):
            identities = (*owner.names, *owner.addresses)
        else:
            known = self.names.known_as(owner, name) if owner is not None else ""
            identities = (known,) if known and name else tuple(filter(None, (known, address)))
        try:
            return self.authority.leaf(kind, *identities)
        except ValueError:
            # An SNI that is no name: show what a client without SNI gets.
            return self.authority.leaf(kind, address)

    def context(self, address: str, name: str, alpn: tuple[str, ...]) -> ssl.SSLContext:
        """The TLS context of `leaf`; kept, so that sessions resume."""
        key = (address, name, alpn)
        if key not in self._contexts:
            self._contexts[key] = self.authority.context(self.leaf(address, name), alpn)
            if len(self._contexts) > KEPT_CERTIFICATES:
                self._contexts.popitem(last=False)
        return self._contexts[key]
