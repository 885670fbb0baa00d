"""Every dissector, in one list that somebody can read.

Of each transport the most frequent protocols stand first: the first that recognises a flow spares the others the look.
"""

from __future__ import annotations

from gfwemu.dissect.dissector import Dissector
from gfwemu.dissect.dns import DNS_TCP, DNS_UDP
from gfwemu.dissect.fields import Field
from gfwemu.dissect.ftp import FTP
from gfwemu.dissect.http1 import HTTP1
from gfwemu.dissect.openvpn import OPENVPN_TCP, OPENVPN_UDP
from gfwemu.dissect.quic import QUIC
from gfwemu.dissect.smtp import SMTP
from gfwemu.dissect.tls import TLS
from gfwemu.dissect.wireguard import WIREGUARD

DISSECTORS: tuple[Dissector, ...] = (
    DNS_UDP,
    TLS,
    HTTP1,
    DNS_TCP,
    QUIC,
    FTP,
    SMTP,
    OPENVPN_UDP,
    OPENVPN_TCP,
    WIREGUARD,
)


def dissector(name: str) -> tuple[Dissector, ...]:
    """Those with this name, one or two for each transport. Raises KeyError where there is none."""
    found = tuple(entry for entry in DISSECTORS if entry.name == name)
    if not found:
        raise KeyError(name)
    return found


def all_fields() -> tuple[Field, ...]:
    """The fields of all dissectors, each once, in the registry's order."""
    return tuple(dict.fromkeys(field for entry in DISSECTORS for field in entry.fields))
