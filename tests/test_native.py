"""Compiled modules: when they are taken, and the words that their sources are put into."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gfwemu
from gfwemu import native

_CHECKOUT = Path(__file__).parents[1]
_RECORD = '''"""Doc."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from gfwemu.model import record


class Colour(Enum):
    RED, GREEN = 1, 2


_RED, _GREEN = Colour.RED, Colour.GREEN
_LIMIT = 3
NAMES: dict[int, str] = {
    1: "one",
}
Alias = int | str


@record
class Point:
    """Doc."""

    x: int
    y: int = (
        _LIMIT
    )
    tags: list[str] = field(default_factory=list)

    def where(self) -> int:
        return where_am_i()

    def cut(self, text: bytes) -> tuple[bytes, bytes]:
        return text[self.y : self.x], text[: self.x][(self.x) : text[0:2][0]]


@dataclass(frozen=True, slots=True, eq=False)
class Single:
    bytes: bytes
    more: bytes = b""


def where_am_i() -> int:
    return sys._getframe(1).f_lineno
'''


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of one source, whose compiled modules fit."""
    package, compiled = tmp_path / "gfwemu", tmp_path / "compiled"
    for name in native.PACKAGES:
        (package / name).mkdir(parents=True, exist_ok=True)
    (package / "engine" / "engine.py").write_text("X = 1\n")
    compiled.mkdir()
    monkeypatch.setattr(native, "__file__", str(package / "native.py"))
    monkeypatch.setattr(native, "DIRECTORY", compiled)
    monkeypatch.setattr(native, "STAMP", compiled / "stamp")
    monkeypatch.delenv(native.SWITCH, raising=False)
    native.STAMP.write_text(native.state_of_sources())
    return package


@pytest.mark.usefixtures("sources")
def test_they_are_taken_while_they_fit() -> None:
    assert native.why_interpreted() == ""


@pytest.mark.parametrize("name", ["engine/engine.py", "engine/new.py", "model.py", "rules/tcp.py"])
def test_after_an_edit_none_is_taken(sources: Path, name: str) -> None:
    (sources / name).write_text("X = 2; Y = 3\n")
    assert "newer" in native.why_interpreted()


def test_a_change_of_the_same_size_counts_and_so_does_a_source_that_is_gone(sources: Path) -> None:
    source = sources / "engine" / "engine.py"
    before = source.stat()
    source.write_text("X = 2\n")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert "newer" in native.why_interpreted()
    native.STAMP.write_text(native.state_of_sources())
    source.unlink()
    assert "newer" in native.why_interpreted()


@pytest.mark.usefixtures("sources")
def test_nothing_is_taken_where_nothing_is_compiled_or_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "1")
    assert native.SWITCH in native.why_interpreted()
    monkeypatch.setenv(native.SWITCH, "0")
    assert native.why_interpreted() == ""
    native.STAMP.unlink()
    assert native.why_interpreted() == "nothing is compiled"


@pytest.mark.usefixtures("sources")
def test_imports_find_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    file = native.DIRECTORY / f"gfwemu.engine.engine{native.SUFFIX}"
    file.touch()
    assert native.install() == ""
    finder: Any = sys.meta_path[0]
    assert finder.find_spec("gfwemu.engine.engine").origin == str(file)
    assert finder.find_spec("gfwemu.engine.other") is None
    assert finder.find_spec("stamp") is None


@pytest.mark.parametrize("switch", ["", "1"])
def test_the_version_says_which_runs(switch: str) -> None:
    code = "import gfwemu, gfwemu.engine.engine as e; print(not gfwemu.interpreted, e.__file__.endswith('.so'))"
    environment = {**os.environ, native.SWITCH: switch}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    compiled, runs_compiled = done.stdout.split()
    assert compiled == runs_compiled
    said = subprocess.run(
        [sys.executable, "-m", "gfwemu", "--version"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith(f"gfwemu, version {gfwemu.__version__}, ")
    assert said.strip().endswith(", compiled") == (compiled == "True")
    if switch:
        assert f"interpreted: {native.SWITCH} is set" in said


@pytest.fixture(scope="module")
def spell_out() -> Iterator[Any]:
    sys.path.insert(0, str(_CHECKOUT / "lab"))
    from native.spell import spell_out

    yield spell_out
    sys.path.remove(str(_CHECKOUT / "lab"))


def _run(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": __name__, "sys": sys}
    exec(compile(source, "spelled", "exec", dont_inherit=True), names)
    return names


def test_spelt_out_a_module_means_the_same(spell_out: Any) -> None:
    spelt = spell_out(_RECORD)
    for names in (_run(_RECORD), _run(spelt)):
        point, other = names["Point"](1), names["Point"](1)
        assert point == other
        assert hash(names["Point"](1, tags=())) == hash(names["Point"](1, 3, ()))
        assert point.tags == []
        assert point.tags is not other.tags
        assert point.cut(b"\3abc") == (b"", b"")
        assert repr(point).endswith("Point(x=1, y=3, tags=[])")
        assert not hasattr(point, "__dict__")
        assert names["Single"](b"x") != names["Single"](b"x")
        assert names["Single"](b"x").more == b""
        assert names["_GREEN"] is names["Colour"].GREEN
        assert names["NAMES"] == {1: "one"}
    assert "text[self.y : self.x:1], text[: self.x][(self.x) : text[0:2:1][0]:1]" in spelt
    assert "_RED: Final = Colour.RED; _GREEN: Final = Colour.GREEN" in spelt
    assert "    def __init__(self, x: int, y: int = _LIMIT, tags: list[str] | None = None) -> None:" in spelt


def test_lines_keep_their_numbers(spell_out: Any) -> None:
    assert _run(_RECORD)["Point"](1).where() == _run(spell_out(_RECORD))["Point"](1).where()
    for source in sorted((_CHECKOUT / "gfwemu" / "engine").glob("*.py")):
        text = source.read_text()
        if "from __future__ import annotations" in text:
            old, new = ast.parse(text), ast.parse(spell_out(text))
            kept = [
                (node.name, node.lineno, node.end_lineno) for node in ast.walk(old) if isinstance(node, ast.FunctionDef)
            ]
            assert set(kept) <= {
                (n.name, n.lineno, n.end_lineno) for n in ast.walk(new) if isinstance(n, ast.FunctionDef)
            }
