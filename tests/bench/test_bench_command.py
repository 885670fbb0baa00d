"""The command, and every measure once with the smallest scale: that they measure, not how fast anything is."""

from __future__ import annotations

import json
import pstats
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmarks.censor import MeasureError
from benchmarks.stage import Bench, Scale
from click.testing import CliRunner, Result

import bench
from bench import MEASURES, NAMES

SMALLEST = Scale(1, 1, 200, 100, 500, 300, 300, 30, 3000)
LAB = Path(bench.__file__).parent
RECORD: dict[str, Any] = {"format": bench.FORMAT, "quick": True, "figures": []}


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(bench.bench, arguments, catch_exceptions=False)


def test_names_are_told_apart() -> None:
    assert len(set(NAMES)) == len(NAMES) == 11


def test_unknown_measure_is_named() -> None:
    result = invoke("--only", "speed")
    assert result.exit_code == 2
    assert "'speed' is not one of 'bulk', 'connections'" in result.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory"),
        ("{", "this is no file of lab/bench --json"),
        ("[]", "this is no file of lab/bench --json"),
        ('{"format": 0}', "this is no file of lab/bench --json"),
        (json.dumps({**RECORD, "quick": False}), "both or none must be --quick"),
    ],
)
def test_unusable_comparison_is_refused_before_anything_is_measured(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "earlier.json"
    if text is not None:
        path.write_text(text)
    result = invoke("--quick", "--compare", str(path))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_table_to_compare_with_is_taken_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept.json"
    monkeypatch.setattr(bench, "KEPT_TABLE", kept)
    assert bench.read_earlier(None, False) is None
    kept.write_text(json.dumps({**RECORD, "quick": False}))
    assert bench.read_earlier(None, False) == {**RECORD, "quick": False}
    assert bench.read_earlier(None, True) is None


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.needs("iperf3", "dnsperf")
@pytest.mark.parametrize("measure", MEASURES, ids=NAMES)
def test_measure_fills_its_lines(tmp_path: Path, measure: ModuleType) -> None:
    figures = measure.measure(Bench(SMALLEST, tmp_path))
    assert figures
    assert len({figure.name for figure in figures}) == len(figures)
    assert measure.NAME == "throttle" or any(figure.target is not None for figure in figures)
    for figure in figures:
        assert figure.name.startswith(measure.NAME)
        assert len(figure.values) == SMALLEST.rounds
        # An added latency may come out negative.
        assert measure.NAME == "latency" or min(figure.values) > 0


@pytest.mark.kernel
@pytest.mark.slow
def test_one_command_gives_a_table_json_and_profiles(tmp_path: Path) -> None:
    kept, profiles = tmp_path / "kept.json", tmp_path / "profiles"
    command = [sys.executable, str(LAB / "bench.py"), "--quick", "--only", "reset", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--json", str(kept), "--profile", str(profiles)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert "in-path reset after the" in done.stdout
    record = json.loads(kept.read_text())
    assert [figure["name"] for figure in record["figures"]] == ["reset-median", "reset-p99"]
    assert [len(figure["values"]) for figure in record["figures"]] == [2, 2]
    assert record["machine"]["hop"] in ("nft", "xtables")
    assert record["failures"] == {}
    assert pstats.Stats(str(profiles / "reset.prof")).get_stats_profile().func_profiles["_loop"].ncalls == "1"
    done = subprocess.run([*command, "--json", "-", "--compare", str(kept)], capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["quick"] is True


@pytest.mark.kernel
def test_daemon_that_does_not_start_fails_the_measure_with_its_own_words(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("version: 1\nrules: [{name: one}]\n")
    with (
        pytest.raises(MeasureError, match=r"the daemon did not start: .*rules\.yaml:2:9: "),
        Bench(SMALLEST, tmp_path).censored(rules),
    ):
        pass
