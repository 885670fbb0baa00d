"""What the censor's host must have set before packets can come by: interfaces and forwarding."""

from __future__ import annotations

import socket
from pathlib import Path

from gfwemu.errors import CapabilityError, UsageError

_FORWARDING = {
    "net.ipv4.ip_forward": Path("/proc/sys/net/ipv4/ip_forward"),
    "net.ipv6.conf.all.forwarding": Path("/proc/sys/net/ipv6/conf/all/forwarding"),
}


def check_interfaces(inside: str, outside: str) -> None:
    """Raises UsageError where they are the same, or one does not exist."""
    if inside == outside:
        raise UsageError(f"--inside and --outside are both {inside}; name two interfaces that packets cross between.")
    have = sorted(name for _, name in socket.if_nameindex())
    for option, name in (("--inside", inside), ("--outside", outside)):
        if name not in have:
            raise UsageError(f"{option} {name}: there is no such interface; there are {', '.join(have)}.")


def check_forwarding() -> list[str]:
    """One sentence for a protocol that is not forwarded. Raises CapabilityError where neither is."""
    off = [name for name, path in _FORWARDING.items() if not _is_on(path)]
    if len(off) == len(_FORWARDING):
        raise CapabilityError(
            "This machine does not forward packets, so that none can cross the censor.",
            "Turn it on: sysctl -w " + " ".join(f"{name}=1" for name in off) + ".",
        )
    return [f"{name} is 0: those packets do not cross this machine" for name in off]


def _is_on(path: Path) -> bool:
    try:
        return path.read_text().strip() != "0"
    except OSError:
        return False
