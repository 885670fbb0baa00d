"""`gfwemu doctor` on this machine, and on one that lacks things."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kernel_net import in_namespaces, run

from gfwemu.kernel.sandbox import in_child

COMMAND = [sys.executable, "-m", "gfwemu", "doctor"]


@pytest.mark.kernel
def test_doctor_agrees_with_the_tests_that_this_machine_can() -> None:
    before = Path("/proc/net/dev").read_text().count(":")
    done = subprocess.run([*COMMAND, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert found["run"] is True
    capabilities = {item["name"]: item for item in found["capabilities"]}
    assert capabilities["gfwemu's table"]["have"]
    assert capabilities["nft queue"]["have"] or capabilities["xtables NFQUEUE in nft"]["have"]
    assert capabilities["nft jhash"]["have"]
    for item in found["capabilities"]:
        assert item["need"] in ("run", "daemon", "extra")
        assert item["needed_for"]
        assert bool(item["fix"]) != item["have"]
    assert Path("/proc/net/dev").read_text().count(":") == before


@pytest.mark.kernel
def test_doctor_prints_a_table() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    assert "capability" in done.stdout
    assert "gfwemu run can work here." in done.stdout


@in_namespaces
def test_where_namespaces_are_forbidden_doctor_says_which_switch_and_exits_with_4() -> None:
    run("sysctl -qw user.max_user_namespaces=0 user.max_net_namespaces=0")
    done = subprocess.run([*COMMAND, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stdout
    found = json.loads(done.stdout)
    assert found["run"] is False
    namespaces = next(item for item in found["capabilities"] if item["name"] == "namespaces")
    assert not namespaces["have"]
    assert "sysctl user.max_user_namespaces=15000" in namespaces["fix"]
    assert "Traceback" not in done.stderr


def test_a_child_answers_and_its_exception_comes_back_as_text() -> None:
    assert in_child(lambda: {"a": [1, 2]}) == {"a": [1, 2]}
    with pytest.raises(ChildProcessError, match=r"ZeroDivisionError: .* by zero"):
        in_child(lambda: 1 // 0)


def test_a_child_that_takes_too_long_is_ended() -> None:
    with pytest.raises(ChildProcessError, match="took too long"):
        in_child(lambda: time.sleep(30), seconds=1)
