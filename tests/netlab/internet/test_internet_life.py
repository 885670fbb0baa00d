"""How the mini-internet starts, fails and ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gfwemu.netlab.internet.plan import Echo, OpenVpn, Site

pytestmark = [pytest.mark.kernel, pytest.mark.needs("nsenter")]
USER = os.geteuid() != 0


def start(space: Any, plan: Any, *more: str) -> "subprocess.Popen[bytes]":
    path = space.directory / "plan.json"
    path.write_text(plan if isinstance(plan, str) else plan.to_json())
    process: subprocess.Popen[bytes] = space.popen(
        sys.executable, "-m", "gfwemu.netlab.internet", "--plan", str(path), *more, stderr=subprocess.PIPE
    )
    return process


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (
            {"sites": (Site(names=("a.example",), v4=("192.0.2.200",)),)},
            1,
            "cannot listen on 192.0.2.200 port 80/tcp: Cannot assign requested address",
        ),
        (
            {"sites": (Site(names=("a.example",), https_records=("nonsense",)),)},
            2,
            "the HTTPS record 'nonsense' of a.example cannot be read",
        ),
    ],
)
def test_what_cannot_be_served_is_one_line_and_an_exit_code(
    tmp_path: Path,
    make_namespace: Callable[..., Any],
    make_plan: Callable[..., Any],
    changes: dict[str, Any],
    code: int,
    message: str,
) -> None:
    plan = replace(make_plan(tmp_path), resolvers=(), catch_all=None, **changes)
    with make_namespace(tmp_path, "", user=USER) as space:
        process = start(space, plan)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert errors.decode().startswith(f"gfwemu: {message}")
    assert errors.count(b"\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the plan {path} is wrong: plan: Invalid JSON"),
        ("{}", "the plan {path} is wrong: directory: Field required"),
        ('{"directory": "x", "sights": []}', "the plan {path} is wrong: sights: Unexpected keyword argument"),
    ],
)
def test_a_wrong_plan_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "gfwemu.netlab.internet", "--plan", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("gfwemu: " + message.format(path=path))
    assert done.stderr.count("\n") == 1


def test_a_service_that_cannot_start_is_not_fatal(run_internet: Callable[..., Any]) -> None:
    services = (
        Echo(name="nowhere", address="203.0.113.9"),
        Echo(name="echo", address="192.0.2.1"),
        OpenVpn(name="vpn", address="203.0.113.9"),
    )
    with run_internet(without_addresses=("203.0.113.9",), services=services) as space:
        found = space.status()["services"]
        said = (space.directory / "stderr").read_text()
        assert space.curl("http://www.allowed.example/").returncode == 0
    assert [found[name]["state"] for name in ("nowhere", "echo", "vpn")] == ["failed", "up", "failed"]
    assert found["nowhere"]["detail"] == "cannot listen on 203.0.113.9 port 7/tcp: Cannot assign requested address"
    assert found["vpn"]["detail"].startswith("openvpn did not start: ")
    assert said.count("\n") == 2


@pytest.mark.needs("curl", "ss")
def test_sigterm_ends_it_quietly_in_the_middle_of_answers(run_internet: Callable[..., Any]) -> None:
    with run_internet() as space:
        curls = [
            space.popen("curl", "-sk", "--max-time", "20", "-o", "/dev/null", url)
            for url in (
                "https://www.allowed.example/slow/50",
                "http://www.allowed.example/stall",
                "https://www.allowed.example/bytes/99999999999",
            )
        ]
        # Until all three have been accepted.
        deadline = time.monotonic() + 10
        while space.run("ss", "-Htn", "state", "established", "sport", "=", ":443").stdout.count("\n") < 2:
            assert time.monotonic() < deadline
    codes = [curl.wait(10) for curl in curls]
    assert 28 not in codes
    assert (space.directory / "stderr").read_text() == ""


def test_it_dies_with_its_parent_and_takes_its_servers_along(
    tmp_path: Path,
    make_namespace: Callable[..., Any],
    make_plan: Callable[..., Any],
    make_addresses: Callable[..., str],
) -> None:
    plan = replace(make_plan(tmp_path), services=(OpenVpn(name="vpn", address="192.0.2.1"),))
    (tmp_path / "plan.json").write_text(plan.to_json())
    parent = (
        "import subprocess, sys, os, time\n"
        "r, w = os.pipe()\n"
        "child = subprocess.Popen([sys.executable, '-m', 'gfwemu.netlab.internet', '--plan', sys.argv[1],"
        " '--ready-fd', str(w)], pass_fds=[w], stdout=subprocess.DEVNULL)\n"
        "os.read(r, 1)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with make_namespace(tmp_path, make_addresses(plan), user=USER) as space:
        process = space.popen(sys.executable, "-c", parent, str(tmp_path / "plan.json"), stdout=subprocess.PIPE)
        child = int(process.stdout.readline())
        servers = [int(pid) for pid in Path(f"/proc/{child}/task/{child}/children").read_text().split()]
        assert len(servers) == 1
        process.kill()
        process.communicate()
        deadline = time.monotonic() + 5
        while (left := [pid for pid in (child, *servers) if alive(pid)]) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert left == []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_the_authority_survives_a_restart(
    tmp_path: Path,
    make_namespace: Callable[..., Any],
    make_plan: Callable[..., Any],
    make_internet: Callable[..., Any],
    make_addresses: Callable[..., str],
) -> None:
    plan = make_plan(tmp_path)
    with make_namespace(tmp_path, make_addresses(plan), user=USER) as space:
        with make_internet(space, plan):
            first = space.authority.read_bytes()
        with make_internet(space, plan):
            assert space.authority.read_bytes() == first
            arguments = ["--resolve", "www.allowed.example:443:192.0.2.1", "https://www.allowed.example/"]
            assert space.curl(*arguments).stdout == "hello from www.allowed.example over h2\n"
    assert json.loads((tmp_path / "status.json").read_text())["bundle"] == str(tmp_path / "lab" / "ca-bundle.pem")
    assert (tmp_path / "lab" / "authority.key").stat().st_mode & 0o777 == 0o600


def test_it_is_ready_in_a_second_and_a_half(run_internet: Callable[..., Any]) -> None:
    """The time of the processor, since a busy machine makes any clock on the wall lie."""
    before = os.times()
    with run_internet():
        pass
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1.5
