"""Waiting for a program as if one were not there: its signals, its stops and its exit status pass through."""

from __future__ import annotations

import contextlib
import os
import signal

# Not SIGTSTP, SIGTTIN, SIGTTOU and SIGCONT: a terminal sends those to the whole process group.
FORWARDED = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH}
)
_BLOCKED = FORWARDED | {signal.SIGCHLD}
_SI_KERNEL = 0x80  # <asm-generic/siginfo.h>


def hold_signals() -> None:
    """Call before the program is forked; it undoes this with `release_signals`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)


def release_signals() -> None:
    """Give the forked program the dispositions that a shell would: Python ignores SIGPIPE, we block some."""
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def wait_for(pid: int, terminal: int | None = None) -> int:
    """Wait for a child to end; returns its wait status.

    What somebody sends to us goes on to the child; what the terminal sends, its process group has got already.
    `terminal`: the child leads a process group of its own there, which we stop and continue with it.
    """
    while True:
        flags = os.WNOHANG if terminal is None else os.WNOHANG | os.WUNTRACED
        found, status = os.waitpid(pid, flags)
        if found and os.WIFSTOPPED(status) and terminal is not None:
            _stop_with(pid, terminal)
            continue
        if found:
            return status
        caught = signal.sigwaitinfo(_BLOCKED)
        if caught.si_signo == signal.SIGCHLD or (caught.si_code == _SI_KERNEL and terminal is None):
            continue
        with contextlib.suppress(ProcessLookupError):
            if terminal is None:
                os.kill(pid, caught.si_signo)
            else:
                os.killpg(pid, caught.si_signo)


def _stop_with(group: int, terminal: int) -> None:
    """The program stopped: stop our own group, so that the shell gets its prompt; then go on together."""
    take_terminal(terminal, os.getpgrp())
    os.killpg(0, signal.SIGTSTP)
    take_terminal(terminal, group)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGCONT)


def take_terminal(terminal: int, group: int) -> None:
    """tcsetpgrp, also from the background."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        with contextlib.suppress(OSError):
            os.tcsetpgrp(terminal, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def end_like(status: int) -> int:
    """Die of the signal that the child died of, or return its exit code."""
    if not os.WIFSIGNALED(status):
        return os.waitstatus_to_exitcode(status)
    number = os.WTERMSIG(status)
    with contextlib.suppress(OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return 128 + number
