"""`gfwemu conformance`: what it prints and with what it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CASES = ["tls-three-injectors", "tls-residual-180", "tls-unlisted-passes"]
CHOSEN = [part for case in CASES for part in ("--case", case)]


def run(*argv: str, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gfwemu", "conformance", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_a_table_and_a_tally() -> None:
    done = run("china", "--replay", *CHOSEN)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip().endswith("3 of 3 cases pass.")
    for text in (*CASES, "Wu et al., IEEE S&P 2025", "found", "later flow reset", "nothing injected"):
        assert text in done.stdout


def test_json() -> None:
    done = run("china", "--replay", "--json", *CHOSEN)
    said = json.loads(done.stdout)
    assert (done.returncode, said["profile"], said["replay"]) == (0, "china", True)
    assert [one["id"] for one in said["cases"]] == sorted(CASES, key=[one["id"] for one in said["cases"]].index)
    first = next(one for one in said["cases"] if one["id"] == "tls-three-injectors")
    assert (first["verdict"], first["evidence"], first["wrong"]) == ("pass", "found", [])
    assert "3 x RA" in first["expected"]
    assert "3 x RA" in first["observed"]


def test_without_a_rule() -> None:
    rule = json.loads(run("china", "--replay", "--json", "--case", CASES[0]).stdout)["cases"][0]["rules"][0]
    done = run("china", "--replay", "--without", rule, *CHOSEN)
    assert done.returncode == 0
    assert done.stderr == f"Without {rule}, 2 of 3 cases notice: tls-three-injectors, tls-residual-180\n"
    assert "FAIL" in done.stdout


def test_a_censor_without_the_behaviour_fails(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("version: 1\ndescription: d\nrules: []\n")
    done = run(str(path), "--cases", "china", "--replay", "-q", *CHOSEN)
    assert done.returncode == 1
    assert done.stdout.rstrip().endswith("1 of 3 cases pass; 2 fail: tls-three-injectors, tls-residual-180.")
    assert "tls-unlisted-passes" not in done.stdout


def test_the_list() -> None:
    done = run("china", "--list")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert "TLS server names" in lines
    assert any(line.split()[:3] == ["tls-three-injectors", "found", "both"] for line in lines)


@pytest.mark.slow
def test_the_document(tmp_path: Path) -> None:
    path = tmp_path / "conformance.md"
    done = run("--write", str(path), timeout=900)
    assert (done.returncode, done.stdout) == (0, f"Wrote {path}.\n")
    text = path.read_text()
    for part in ("## china\n", "| tls-three-injectors | ", "| found | read in a primary source |", "| live |"):
        assert part in text


@pytest.mark.parametrize(("argv", "code", "said"), [
    (["chima"], 2, "there is no profile 'chima'; did you mean 'china'?"),
    (["china", "--case", "tls-three-injector"], 2, "did you mean 'tls-three-injectors'?"),
    (["open"], 2, "there are no cases for 'open'; see docs/cases.md, or say --cases china"),
    (["china", "--replay", "--without", "chinatls"], 2, "china has no rule 'chinatls'"),
    (["china", "--replay", "--case", "dns-program"], 2, "plays only in a lab: leave out --replay"),
    (["china-2013", "--case", "evasion13-hole-59-minutes-caught"], 2, "plays only with --replay"),
    (["--write", "/nowhere/conformance.md"], 2, "cannot write /nowhere/conformance.md: No such file or directory"),
])  # fmt: skip
def test_what_is_wrong_is_one_sentence(argv: list[str], code: int, said: str) -> None:
    done = run(*argv)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
