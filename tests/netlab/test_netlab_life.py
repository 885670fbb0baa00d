"""However a lab ends, nothing of it stays: no process, no namespace, no directory."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lab_kit import (
    environment,
    gfwemu,
    inhabitants,
    init_of,
    lab_state,
    namespaces_of,
    own,
    run_gfwemu,
    started,
    until,
)

pytestmark = pytest.mark.kernel

SLEEP = ("run", "--topology", "bare", "--", "sh", "-c", "echo up; exec sleep 4321")
BOTH = pytest.mark.parametrize("user", ["caller", "ordinary"])


def running_lab(runtime: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The state of the lab, once the program runs in it."""
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    state = lab_state(runtime)
    assert state is not None
    return state


@BOTH
@pytest.mark.parametrize("victim", ["run", "supervisor", "init", "client holder"])
def test_sigkill_of_any_part_leaves_nothing(tmp_path: Path, user: str, victim: str) -> None:
    with started(tmp_path, *SLEEP, user=user) as process:
        state = running_lab(tmp_path, process)
        with namespaces_of(state) as namespaces:
            assert len(inhabitants(namespaces)) >= 7
            pids = {
                "run": process.pid,
                "supervisor": state["pid"],
                "init": init_of(state),
                "client holder": state["nodes"]["client"]["pid"],
            }
            os.kill(pids[victim], signal.SIGKILL)
            if victim == "client holder":
                # The node's namespaces live on in the program; the lab ends when it is told to.
                process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)
            until(lambda: not inhabitants(namespaces), "the end of every process of the lab")
        until(lambda: own(tmp_path) == [], f"an empty directory instead of {own(tmp_path)}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_run_goes_to_the_program_and_ends_the_lab(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path, *SLEEP) as process:
        with namespaces_of(running_lab(tmp_path, process)) as namespaces:
            process.send_signal(number)
            assert process.wait(timeout=20) == 128 + number
            assert inhabitants(namespaces) == []
        assert own(tmp_path) == []


def test_a_signal_while_the_lab_is_built_leaves_nothing(tmp_path: Path) -> None:
    for wait_for in ("gfwemu/*", "gfwemu/*/supervisor.log", "gfwemu/*/client.resolv.conf", "gfwemu/*/state.json"):
        with started(tmp_path, *SLEEP) as process:
            until(lambda pattern=wait_for: list(tmp_path.glob(pattern)), wait_for)
            process.terminate()
            assert process.wait(timeout=20) in (-signal.SIGTERM, 128 + signal.SIGTERM)
            until(lambda: own(tmp_path) == [], "an empty directory")


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_program_left_in_the_background_does_not_outlive_the_lab(tmp_path: Path) -> None:
    # Its output is closed, or we would wait for it.
    done = run_gfwemu(
        tmp_path,
        *("run", "-q", "--topology", "bare", "--", "sh", "-c"),
        "setsid sleep 43210 >/dev/null 2>&1 & echo $!",
    )
    assert int(done.stdout) > 1
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"sleep\x0043210\0" in read(path)]


def test_the_next_start_cleans_what_a_killed_lab_left(tmp_path: Path) -> None:
    with started(tmp_path, *SLEEP) as process:
        state = running_lab(tmp_path, process)
        with namespaces_of(state) as namespaces:
            # Everybody who could clean up goes at once.
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in (process.pid, state["pid"]):
                    os.kill(pid, number)
            process.wait(timeout=20)
            until(lambda: not inhabitants(namespaces), "the end of every process of the lab")
        assert own(tmp_path) != []
    assert run_gfwemu(tmp_path, "run", "-q", "--topology", "bare", "--", "true").returncode == 0
    assert own(tmp_path) == []


def test_another_lab_is_not_stale(tmp_path: Path) -> None:
    with started(tmp_path, *SLEEP) as process:
        running_lab(tmp_path, process)
        before = own(tmp_path)
        assert run_gfwemu(tmp_path, "run", "-q", "--topology", "bare", "--", "true").returncode == 0
        assert own(tmp_path) == before
        process.terminate()
        process.wait(timeout=20)


def test_the_machine_is_untouched(tmp_path: Path) -> None:
    def look() -> tuple[object, ...]:
        links = sorted(path.name for path in Path("/sys/class/net").iterdir())
        routes = Path("/proc/net/route").read_text()
        forwarding = Path("/proc/sys/net/ipv4/ip_forward").read_text()
        files = [Path(name).read_bytes() for name in ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")]
        return links, routes, forwarding, files, Path("/proc/self/mountinfo").read_text()

    before = look()
    during = subprocess.Popen(
        gfwemu(*SLEEP), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(tmp_path)
    )
    with during:
        assert during.stdout is not None
        assert during.stdout.readline() == b"up\n"
        assert look() == before
        during.terminate()
    assert look() == before
