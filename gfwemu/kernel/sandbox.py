"""Throw-away namespaces: whatever happens in them is gone when their only process ends."""

from __future__ import annotations

import ctypes
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

# <linux/sched.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# <linux/mount.h>
_MS_REC_PRIVATE = 0x4000 | 0x40000

# <linux/prctl.h>
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """unshare(2). Raises OSError."""
    if _libc.unshare(ctypes.c_int(flags)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "unshare")


def mount_proc() -> None:
    """A /proc for the process's own PID and mount namespaces. Raises OSError."""
    for source, kind, flags in ((b"none", None, _MS_REC_PRIVATE), (b"proc", b"proc", 0)):
        target = b"/proc" if kind else b"/"
        if _libc.mount(source, target, kind, ctypes.c_ulong(flags), None) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), target.decode())


def enter_new_user_namespace() -> None:
    """This process, which must have a single thread, becomes root of a user namespace of its own. Raises OSError."""
    user, group = os.getuid(), os.getgid()
    unshare(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def die_with_parent() -> None:
    """The kernel kills this process when the one that forked it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)


def in_child(function: Callable[[], Any], seconds: int = 20) -> Any:
    """Calls the function in a forked child; returns what it returned, by way of JSON.

    Raises ChildProcessError with the text of the child's exception, or when it took longer than `seconds`.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer(function, writer, seconds)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read()
    _, status = os.waitpid(pid, 0)
    if not text:
        cause = "took too long" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM else "died"
        raise ChildProcessError(f"a child process {cause}")
    answer = json.loads(text)
    if "error" in answer:
        raise ChildProcessError(answer["error"])
    return answer["result"]


def _answer(function: Callable[[], Any], writer: int, seconds: int) -> None:
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        die_with_parent()
        try:
            answer = {"result": function()}
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(writer, json.dumps(answer).encode())
    finally:
        os._exit(0)
