"""What this machine can do. Whatever a probe changes, it changes in namespaces that are thrown away."""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gfwemu.errors import GfwemuError
from gfwemu.kernel.probes import HOST_PROBES, INSIDE_PROBES, LacksError, Need, Probe
from gfwemu.kernel.sandbox import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    enter_new_user_namespace,
    in_child,
    mount_proc,
    unshare,
)

_USER_NAMESPACE_SWITCHES = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
)


@dataclass(frozen=True, slots=True)
class Capability:
    """One line of `gfwemu doctor`. `found`: why not, or a remark; `fix` says what to do about a lack."""

    name: str
    have: bool
    need: Need
    needed_for: str
    fix: str
    found: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> list[Capability]:
    """All capabilities of the machine for the user who asks. Takes about a second; changes nothing."""
    found = [_call(probe) for probe in HOST_PROBES]
    namespaces = _namespaces()
    if namespaces.have:
        answers = {entry["name"]: entry for entry in in_child(_examine_inside, 60)}
        found += [namespaces, *(Capability(**answers[probe.name]) for probe in INSIDE_PROBES)]
    else:
        unknown = "unknown: it is tried in new namespaces"
        found.append(namespaces)
        found += [
            Capability(probe.name, False, probe.need, probe.needed_for, "First make namespaces work.", unknown)
            for probe in INSIDE_PROBES
        ]
    return found


def _call(probe: Probe) -> Capability:
    have = True
    try:
        text = probe.check() or ""
    except (LacksError, GfwemuError, OSError, subprocess.SubprocessError) as error:
        have, text = False, str(error).partition("\n")[0]
    return Capability(probe.name, have, probe.need, probe.needed_for, "" if have else probe.fix, text)


def _namespaces() -> Capability:
    def attempt() -> str:
        how = _separate()
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        pid = os.fork()
        if pid == 0:
            try:
                mount_proc()
            except OSError:
                os._exit(1)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            raise LacksError("/proc cannot be mounted in a new PID namespace")
        return how

    needed_for = "gfwemu run, shell, lab: everything happens in namespaces of their own"
    try:
        how = str(in_child(attempt))
    except ChildProcessError as error:
        return Capability("namespaces", False, "run", needed_for, _namespace_advice(), str(error))
    return Capability("namespaces", True, "run", needed_for, "", how)


def _namespace_advice() -> str:
    for path, closed, fix in _USER_NAMESPACE_SWITCHES:
        try:
            if Path(path).read_text().strip() == closed:
                return f"Allow user namespaces ({fix}), or run as root."
        except OSError:
            continue
    return (
        "Run as root; in a container, allow it with --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt "
        "seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined."
    )


def _separate() -> str:
    """As a lab does it: root directly, everybody else as root of a new user namespace. Says which."""
    flags = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID
    if os.geteuid() == 0:
        try:
            unshare(flags)
            return "as root"
        except PermissionError:
            pass
    enter_new_user_namespace()
    unshare(flags)
    return "in a user namespace"


def _examine_inside() -> list[dict[str, Any]]:
    _separate()
    # The PID namespace begins with the first child, and ends with it: programs that a probe starts die, too.
    return list(in_child(lambda: [_call(probe).as_json() for probe in INSIDE_PROBES], 50))


def can_run(capabilities: list[Capability]) -> bool:
    """Whether `gfwemu run` can work."""
    return all(capability.have for capability in capabilities if capability.need == "run")


__all__ = ["Capability", "can_run", "examine"]
