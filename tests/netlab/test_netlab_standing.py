"""`gfwemu lab`: labs that stay up until they are taken down."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_kit import DEADLINE, USERS, environment, inhabitants, lab_state, namespaces_of, own, run_gfwemu, until

pytestmark = pytest.mark.kernel


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    """A runtime directory whose labs go with the test."""
    yield tmp_path
    state = lab_state(tmp_path)
    if state is not None:
        os.kill(state["pid"], signal.SIGKILL)


def lab(runtime: Path, *arguments: str) -> str:
    done = run_gfwemu(runtime, "lab", *arguments)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_up_exec_status_down(runtime: Path) -> None:
    said = lab(runtime, "up", "--topology", "bare", "--rules", "rules/sni-reset.yaml")
    assert said.startswith("The lab 'default' is up: rules rules/sni-reset.yaml.")
    state = lab_state(runtime)
    assert state is not None

    done = run_gfwemu(runtime, "lab", "exec", "client", "--", "sh", "-c", "cat; exit 6", data=b"in")
    assert (done.returncode, done.stdout) == (6, b"in")

    status = json.loads(lab(runtime, "status", "--json"))
    assert status["nodes"]["client"]["addresses"] == ["192.0.2.10", "2001:db8:1::10"]
    assert status["services"]["daemon"]["state"] == "running"
    assert [(queue["node"], queue["lost"]) for queue in status["queues"]] == [("censor", 0)]
    assert "daemon         running" in lab(runtime, "status")

    assert lab(runtime, "reload") == "The censor of the lab 'default' has read its rules again.\n"
    with namespaces_of(state) as namespaces:
        assert lab(runtime, "down") == "The lab 'default' is down.\n"
        assert inhabitants(namespaces) == []
    assert own(runtime) == []
    assert lab(runtime, "down") == "There was no lab 'default'.\n"


def test_all_of_it_as_an_ordinary_user(runtime: Path) -> None:
    """In one shell: for the tests' ordinary user, that is one user namespace, which owns the lab's."""
    gfwemu = f"{sys.executable} -m gfwemu lab"
    script = (
        f"{gfwemu} up --topology bare --rules rules/open.yaml && {gfwemu} exec client -- id -u;"
        f"{gfwemu} exec --as-root client -- id -u; {gfwemu} status --json; {gfwemu} down"
    )
    done = subprocess.run(
        [*USERS["ordinary"], "sh", "-c", script],
        capture_output=True,
        timeout=DEADLINE,
        env=environment(runtime),
        check=True,
        text=True,
    )
    up, uid, root, *status, down = done.stdout.splitlines()
    assert up.startswith("The lab 'default' is up")
    assert (uid, root) == (str(os.geteuid() or 1000), "0")
    assert json.loads("\n".join(status))["services"]["daemon"]["state"] == "running"
    assert down == "The lab 'default' is down."
    assert own(runtime) == []


def test_labs_have_names(runtime: Path) -> None:
    lab(runtime, "up", "--topology", "bare", "--name", "one")
    lab(runtime, "up", "--topology", "bare", "--name", "two", "--link", "3g")
    done = run_gfwemu(runtime, "lab", "up", "--topology", "bare", "--name", "one")
    assert done.returncode == 2
    assert done.stderr == b"gfwemu: A lab named 'one' is up already; end it with gfwemu lab down --name one.\n"
    assert "line: 1600/768 kbit/s down/up, 150 ms" in lab(runtime, "graph", "--name", "two")
    assert sorted(lab(runtime, "down", "--all").splitlines()) == ["The lab 'one' is down.", "The lab 'two' is down."]
    assert own(runtime) == []


def test_without_a_lab_it_says_how_to_get_one(runtime: Path) -> None:
    for command in (["status"], ["graph"], ["reload"], ["exec", "client", "--", "true"]):
        done = run_gfwemu(runtime, "lab", *command)
        assert done.returncode == 2
        assert done.stderr == b"gfwemu: There is no lab 'default'; bring it up with gfwemu lab up --name default.\n"
    done = run_gfwemu(runtime, "lab", "up", "--name", "../x")
    assert (done.returncode, own(runtime)) == (2, [])
    assert b"'../x' cannot name a lab" in done.stderr


def test_down_all_repairs_what_a_killed_lab_left(runtime: Path) -> None:
    lab(runtime, "up", "--topology", "bare")
    state = lab_state(runtime)
    assert state is not None
    with namespaces_of(state) as namespaces:
        os.kill(state["pid"], signal.SIGKILL)
        until(lambda: not inhabitants(namespaces), "the end of every process of the lab")
    assert own(runtime) != []
    assert run_gfwemu(runtime, "lab", "status").returncode == 2
    assert "lab-default" in "".join(own(runtime)) or own(runtime) == []
    lab(runtime, "down", "--all")
    assert own(runtime) == []


def test_a_dead_service_is_reported(runtime: Path) -> None:
    lab(runtime, "up", "--topology", "bare", "--rules", "rules/open.yaml")
    state = lab_state(runtime)
    assert state is not None
    pid = str(state["services"]["daemon"]["pid"])
    lab(runtime, "exec", "--as-root", "censor", "--", "kill", "-KILL", pid)
    until(lambda: "killed by SIGKILL" in lab(runtime, "status"), "the daemon's end in the status")
    lab(runtime, "down")


def test_the_graph(runtime: Path) -> None:
    text = lab(runtime, "graph", "--topology", "default")
    assert re.findall(r"^(\w+)", text, re.MULTILINE) == ["client", "access", "censor", "transit", "internet"]
    assert "60 ms there and back" in text
    dot = lab(runtime, "graph", "--topology", "default", "--dot")
    assert dot.startswith("graph lab {")
    assert len(re.findall(r"^  \w+ -- \w+ ", dot, re.MULTILINE)) == 4
