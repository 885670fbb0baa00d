"""Making the lab's own set of namespaces, and saying clearly why a machine refuses."""

from __future__ import annotations

import os
from pathlib import Path

from gfwemu.errors import CapabilityError
from gfwemu.netlab import syscalls

_SWITCHES = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
)
_LAB = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNET


def separate() -> bool:
    """Leave the machine's mount, network and (for children) PID namespaces.

    Root does it directly, everybody else as root of a new user namespace. Returns whether there is one.
    Raises CapabilityError.
    """
    if os.geteuid() == 0:
        try:
            syscalls.unshare(_LAB)
            return False
        except PermissionError:
            pass  # root of a container without CAP_SYS_ADMIN is as poor as anybody
    uid, gid = os.geteuid(), os.getegid()
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        syscalls.map_ids(0, uid, 0, gid)
        syscalls.unshare(_LAB)
    except OSError as error:
        raise CapabilityError(f"This machine refuses new namespaces: {error.strerror}.", _advice()) from None
    return True


def _advice() -> str:
    for path, closed, fix in _SWITCHES:
        try:
            if Path(path).read_text(encoding="ascii").strip() == closed:
                return f"Allow user namespaces ({fix}), or run as root."
        except OSError:
            continue
    return (
        "Run as root; in a container, allow it with --cap-add SYS_ADMIN --cap-add NET_ADMIN "
        "--security-opt seccomp=unconfined --security-opt apparmor=unconfined."
    )
