"""For all tests: hypothesis profiles, what happens when the machine lacks something, and no leftovers."""

import fcntl
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import leftovers
from capabilities import missing_in_kernel, missing_needs

IN_CI = os.environ.get("CI") == "true"

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if IN_CI else "dev"))

HERE = Path(__file__).resolve().parent
IN_PARALLEL = "PYTEST_XDIST_WORKER" in os.environ

LEDGER = pytest.StashKey[leftovers.Ledger]()


def pytest_configure(config: pytest.Config) -> None:
    name, _, value = leftovers.TAG.partition("=")
    os.environ[name] = value
    config.stash[LEDGER] = leftovers.Ledger()


def lacks(item: pytest.Item) -> str | None:
    """What the machine lacks for this test, in one line."""
    if item.get_closest_marker("kernel") and (missing := missing_in_kernel()):
        return missing
    return missing_needs(need for marker in item.iter_markers("needs") for need in marker.args)


def pytest_make_parametrize_id(val: object) -> str | None:
    """pytest-xdist takes what stands before the last `::` for the module; an IPv6 address would cut it in two."""
    return val.replace("::", ":_:") if isinstance(val, str) and "::" in val else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if missing := lacks(item):
        if IN_CI:
            pytest.fail(f"{missing}; in CI nothing may be skipped for that", pytrace=False)
        pytest.skip(missing)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test marked `alone` waits until the other workers are between two tests, and they wait for it."""
    if not IN_PARALLEL:
        return (yield)
    # Any two files would do. Who waits for the room holds the door, or the others would slip in for ever.
    with (HERE / "conftest.py").open() as door, (HERE / "test_harness.py").open() as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            # A process that the test left behind may have inherited the file: closing is not enough.
            fcntl.flock(room, fcntl.LOCK_UN)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    depends = item.get_closest_marker("kernel") or item.get_closest_marker("needs")
    if IN_CI and depends and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped by itself, which CI does not allow: {call.excinfo.value if call.excinfo else ''}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
    if fixturedef.scope == "function":
        return (yield)
    before = leftovers.look()
    try:
        return (yield)
    finally:
        request.config.stash[LEDGER].fixtures[fixturedef] = leftovers.look().minus(before)


def pytest_fixture_post_finalizer(fixturedef: Any, request: pytest.FixtureRequest) -> None:
    request.config.stash[LEDGER].fixtures.pop(fixturedef, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    result = yield
    if item.get_closest_marker("kernel") and (left := item.config.stash[LEDGER].leaks()):
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> Generator[None, Any, Any]:
    """Repeat what lab/test found before the tests, just above the closing line."""
    result = yield
    if failed := os.environ.get("GFWEMU_FAILED_CHECKS"):
        terminalreporter.section("checks that failed before the tests", red=True)
        terminalreporter.line(failed)
    return result
