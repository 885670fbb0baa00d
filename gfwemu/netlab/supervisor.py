"""`python -m gfwemu.netlab.supervisor REPORT_FD`: makes the namespaces of the blueprint on stdin and watches over them.

It stays outside, as the parent of the lab's init: ends with its owner, ends the init when asked to, and removes the run
directory of a lab that nobody else will.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from gfwemu.errors import CapabilityError, GfwemuError
from gfwemu.netlab import namespaces, rundir, syscalls
from gfwemu.netlab.blueprint import Blueprint
from gfwemu.netlab.errors import LabError
from gfwemu.netlab.init import Init
from gfwemu.netlab.wakeup import Wakeup

STOP_DEADLINE = 15.0
_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> int:
    blueprint: Blueprint = pickle.load(sys.stdin.buffer)
    report = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
    os.set_inheritable(report.fileno(), False)
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    os.chdir("/")
    os.umask(0o022)
    owner = os.pidfd_open(blueprint.owner) if blueprint.owner else None
    me = rundir.Process.of(os.getpid())
    assert me is not None
    outer = {"name": blueprint.name, "pid": me.pid, "started": me.started, "uid": os.geteuid(), "seed": blueprint.seed}
    try:
        in_user_namespace = namespaces.separate()
    except CapabilityError as error:
        _report(report, error)
        return 1
    watcher = os.pidfd_open(os.getpid())
    init = os.fork()
    if init == 0:
        _run_init(blueprint, outer, in_user_namespace, watcher, report)
    report.close()
    code = _watch(init, owner)
    if owner is None or select.select([owner], [], [], 0)[0]:
        rundir.remove(Path(blueprint.directory))
    return code


def _watch(init: int, owner: int | None) -> int:
    """Wait for init's end; ask for it once the owner is gone or a signal says so, and insist after a while."""
    wakeup = Wakeup((*_ENDS, signal.SIGCHLD))
    deadline: float | None = None
    while True:
        found, status = os.waitpid(init, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(init, signal.SIGKILL)
        watched = [owner] if owner is not None and deadline is None else []
        timeout = None if deadline is None else max(0.1, deadline - time.monotonic())
        came = wakeup.wait(timeout, watched)
        gone = bool(watched) and bool(select.select(watched, [], [], 0)[0])
        if deadline is None and (gone or came & set(_ENDS)):
            os.kill(init, signal.SIGTERM)
            deadline = time.monotonic() + STOP_DEADLINE


def _run_init(blueprint: Blueprint, outer: dict[str, Any], in_user_namespace: bool, watcher: int, report: Any) -> None:
    """The init's whole life."""
    code = 1
    try:
        syscalls.die_with_parent(signal.SIGKILL)
        if select.select([watcher], [], [], 0)[0]:
            os._exit(1)
        syscalls.set_process_name("lab:init")
        init = Init(blueprint, outer, in_user_namespace=in_user_namespace)
        init.start()
        _report(report, None)
        report.close()
        init.serve()
        code = 0
    except GfwemuError as error:
        _report(report, error)
    except Exception:
        traceback.print_exc()
        _report(report, GfwemuError("The lab's supervisor has a bug; supervisor.log tells where."))
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _report(report: Any, error: GfwemuError | None) -> None:
    said: dict[str, Any] = {"ready": error is None}
    if error is not None:
        said |= {"message": str(error), "exit_code": error.exit_code}
        said["service"] = error.service if isinstance(error, LabError) else ""
    with contextlib.suppress(OSError):
        report.write(json.dumps(said) + "\n")
        report.flush()


if __name__ == "__main__":
    sys.exit(main())
