"""The service manager's notification protocol (sd_notify(3)); without NOTIFY_SOCKET nothing is sent."""

from __future__ import annotations

import os
import socket
import time


def notify(*states: str) -> None:
    """Sends assignments such as `READY=1`. A service manager that is gone is no reason to fail."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto("\n".join(states).encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError:
            return


def notify_reloading() -> None:
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def watchdog_seconds() -> float | None:
    """How often a sign of life is due: half of what the service manager allows (sd_watchdog_enabled(3))."""
    text = os.environ.get("WATCHDOG_USEC", "")
    if not text.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(text) / 2e6 if int(text) > 0 else None
