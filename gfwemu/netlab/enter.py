"""Runs one program on a node of a lab, from outside: `python -ISc BOOT ROOT JSON`.

A process of its own, because a PID namespace is entered by a fork, and light, because every program of a lab starts
through it. It lives as long as the program, and passes signals and the exit status through.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from typing import Any

from gfwemu.netlab import relay, syscalls

# What `python -c` gets; its argument is the directory that holds the package.
BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from gfwemu.netlab.enter import main; main()"

CANNOT_RUN = 126
NOT_FOUND = 127
LAB_GONE = 4


def main() -> None:
    """The order in JSON: pid, user, uid, gid, groups, maps, cwd, terminal, argv (see `lab.Lab`)."""
    order: dict[str, Any] = json.loads(sys.argv[1])
    try:
        _join(int(order["pid"]), bool(order["user"]))
    except OSError as error:
        _say(f"cannot enter the lab: {error.strerror}; is it still up?")
        sys.exit(LAB_GONE)
    terminal = 0 if order["terminal"] else None
    relay.hold_signals()
    pid = os.fork()
    if pid == 0:
        os._exit(_become(order, terminal))
    if terminal is not None:
        _lead(pid, terminal)
    status = relay.wait_for(pid, terminal)
    if terminal is not None:
        relay.take_terminal(terminal, os.getpgrp())
    sys.exit(relay.end_like(status))


def _join(pid: int, user: bool) -> None:
    kinds = ["user"] if user else []
    kinds += ["net", "pid", "mnt"]
    opened = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds]
    for fd in opened:
        syscalls.setns(fd)
        os.close(fd)


def _lead(pid: int, terminal: int) -> None:
    """Both sides do it, so that it has happened whoever goes first."""
    try:
        os.setpgid(pid, pid)
    except OSError:
        return  # it runs the program already, and has done this itself
    relay.take_terminal(terminal, pid)


def _become(order: dict[str, Any], terminal: int | None) -> int:
    """Turn into the program. Returns an exit code only when that fails."""
    argv: list[str] = order["argv"]
    try:
        if terminal is not None:
            os.setpgid(0, 0)
            relay.take_terminal(terminal, os.getpid())
        _identify(order)
        syscalls.die_with_parent(signal.SIGKILL)
        _go_to(order["cwd"])
    except OSError as error:
        _say(f"cannot prepare for {argv[0]}: {error.strerror}")
        return CANNOT_RUN
    relay.release_signals()
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        # A folder of PATH that we may not look into is none of the program's concern: shells say "not found" then.
        nowhere = "/" not in argv[0] and shutil.which(argv[0], os.F_OK) is None
        missing = nowhere or error.errno in (errno.ENOENT, errno.ENOTDIR)
        _say(f"{argv[0]}: {'command not found' if missing else error.strerror}")
        return NOT_FOUND if missing else CANNOT_RUN


def _identify(order: dict[str, Any]) -> None:
    """Become the invoking user: by a nested user namespace that maps him back, or simply as root can."""
    uid, gid = order["uid"], order["gid"]
    if order["maps"]:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        syscalls.map_ids(uid, 0, gid, 0)
    elif uid is not None:
        os.setgroups(order["groups"])
        os.setgid(gid)
        os.setuid(uid)


def _go_to(directory: str) -> None:
    """Joining a mount namespace led us to its root."""
    try:
        os.chdir(directory)
    except OSError:
        os.chdir("/")


def _say(text: str) -> None:
    os.write(2, f"gfwemu: {text}\n".encode())
