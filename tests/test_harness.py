"""The tests' own machinery: leftovers are found, and CI does not let a test be skipped for lack of something."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import leftovers
from capabilities import missing_needs

TESTS = Path(__file__).parent


def test_orphan_is_found_once() -> None:
    ledger = leftovers.Ledger()
    orphan = subprocess.run(
        ["sh", "-c", "setsid sleep 47 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True
    )
    pid = int(orphan.stdout)
    try:
        (told,) = ledger.leaks(patience=0)
        assert told.startswith(f"process {pid}: ")
        assert ledger.leaks(patience=0) == []
    finally:
        os.kill(pid, signal.SIGKILL)


def test_open_namespace_is_found() -> None:
    ledger = leftovers.Ledger()
    descriptor = os.open("/proc/self/ns/uts", os.O_RDONLY)
    try:
        (told,) = ledger.leaks(patience=0)
        assert told.startswith("descriptor of namespace uts:[")
    finally:
        os.close(descriptor)
    assert ledger.leaks(patience=0) == []


def test_processes_of_a_living_fixture_are_fine() -> None:
    ledger = leftovers.Ledger()
    with subprocess.Popen(["sh", "-c", "sleep 47 & wait"]) as lab:
        ledger.fixtures["lab"] = leftovers.look().minus(ledger.known)
        assert ledger.leaks(patience=0) == []
        del ledger.fixtures["lab"]
        assert len(ledger.leaks(patience=0)) >= 1
        subprocess.run(["pkill", "-KILL", "-P", str(lab.pid)], check=False)
        lab.kill()


@pytest.mark.parametrize(
    ("need", "missing"),
    [
        ("sh", None),
        ("/dev/null", None),
        ("no-such-program", "no program no-such-program"),
        ("/dev/no-such-device", "no /dev/no-such-device"),
    ],
)
def test_missing_needs(need: str, missing: str | None) -> None:
    assert missing_needs([need]) == missing


PROJECT = """
import os
import subprocess
import pytest

@pytest.mark.needs("no-such-program")
def test_needs():
    raise AssertionError("not reached")

@pytest.mark.needs("sh")
def test_skips_itself():
    pytest.skip("no wish")

@pytest.fixture(scope="module")
def lab():
    sleeper = subprocess.Popen(["sleep", "47"])
    yield
    sleeper.kill()
    sleeper.wait()

@pytest.mark.kernel
def test_with_lab(lab):
    pass

@pytest.mark.kernel
def test_leaves_something(lab):
    subprocess.Popen(["sleep", "6"])
"""


@pytest.mark.kernel
@pytest.mark.parametrize("ci", [False, True])
def test_run_of_a_small_project(tmp_path: Path, ci: bool) -> None:
    for name in ("conftest.py", "leftovers.py", "capabilities.py"):
        (tmp_path / name).symlink_to(TESTS / name)
    (tmp_path / "test_small.py").write_text(PROJECT)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    kernel\n    needs\nfilterwarnings =\n    ignore\n")
    environment = {**os.environ, "CI": "true" if ci else "", "GFWEMU_FAILED_CHECKS": "mypy"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-p", "no:xdist"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert "left behind:\nprocess" in run.stdout
    assert "sleep 6" in run.stdout
    assert "sleep 47" not in run.stdout
    *_, title, failed, closing = run.stdout.splitlines()
    assert "checks that failed before the tests" in title
    assert failed == "mypy"
    assert ("1 failed, 2 passed, 2 errors" if ci else "2 passed, 2 skipped, 1 error") in closing
    assert ("no program no-such-program; in CI nothing may be skipped" in run.stdout) == ci
    assert ("skipped by itself, which CI does not allow: no wish" in run.stdout) == ci


@pytest.mark.slow
def test_a_test_that_wants_the_machine_for_itself_has_it(tmp_path: Path) -> None:
    for name in ("conftest.py", "capabilities.py", "leftovers.py"):
        shutil.copy(TESTS / name, tmp_path)
    (tmp_path / "test_harness.py").touch()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = alone: as in the project\n")
    text = """import os, time, pytest
@pytest.mark.parametrize("number", range(8))
{mark}
def test_it(number):
    began = time.monotonic()
    time.sleep(0.1)
    line = f"{name} {{began}} {{time.monotonic()}}\\n".encode()
    os.write(os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT), line)
"""
    log = tmp_path / "log"
    for name, mark in (("alone", "@pytest.mark.alone"), ("first", ""), ("second", "")):
        (tmp_path / f"test_{name}.py").write_text(text.format(name=name, mark=mark, log=str(log)))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "3", "--dist", "loadscope", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout
    times = [(name, float(began), float(ended)) for name, began, ended in map(str.split, log.read_text().splitlines())]
    assert len(times) == 24

    def overlaps(one: str) -> int:
        return sum(
            began < until and since < ended
            for name, began, ended in times
            for other, since, until in times
            if name == one != other
        )

    assert overlaps("alone") == 0
    assert overlaps("first") > 0
