"""Compile the modules that packets go through into machine code, by mypyc. lab/setup calls this.

usage: compile.py [--check]. With --check the exit code says whether nothing is to be done (0) or something is (1).
Else it is 0 always: without a compiler, or where compiling fails, it says so, and everything works interpreted.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from native.spell import spell_out

from gfwemu.native import DIRECTORY, PACKAGES, STAMP, SUFFIX, SWITCH, state_of_sources

MODULES = (
    "wire/*",
    "dissect/*",
    "flow/*",
    "engine/*",
    "report/community_id",
    "report/eve",
    "report/eve_facts",
    "rules/compiled",
    "rules/domainindex",
    "rules/domains",
    "rules/matchers",
    "rules/networks",
    "rules/patterns",
)
"""What each packet goes through. What pydantic copies cannot be compiled."""

LEFT_OUT = ("dissect/http1", "engine/series")
"""The first parses by a generator, and a compiled one that has ended leaves a cycle to the garbage collector. Tests put
themselves between the second and its engines."""

_CHECKOUT = Path(__file__).resolve().parents[1]
_DIGEST = "digest"
_GROUP = "gfwemu"
_PROGRESS = "setup: compiling the modules that packets go through (mypyc and gcc; about a minute)"
_REFUSED = "setup: gfwemu will work interpreted, at a third of the speed: {}"

# Half the time of -O2, and code that is as fast as its.
_OPTIMISATION = "1"


class RefusedError(Exception):
    """Why it cannot be compiled, in one line."""


def main() -> int:
    digest, state = _digest(), state_of_sources()
    if _read(DIRECTORY / _DIGEST) == digest:
        if _read(STAMP) != state:
            with contextlib.suppress(OSError):
                STAMP.write_text(state, encoding="utf-8")
        return 0
    if "--check" in sys.argv[1:]:
        return 1
    print(_PROGRESS, flush=True)
    try:
        _compile(digest, state)
    except Exception as error:
        # Whatever mypyc comes to grief over, what is interpreted goes on working.
        reason = str(error).partition("\n")[0]
        print(_REFUSED.format(reason if isinstance(error, RefusedError | OSError) else repr(error)), file=sys.stderr)
    return 0


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""


def _digest() -> str:
    """Changes whenever it must be compiled anew."""
    about = hashlib.sha256(f"{sys.version} {_CHECKOUT} {importlib.metadata.version('mypy')}".encode())
    sources = [Path(__file__), *Path(__file__).with_name("native").glob("*.py")]
    for package in PACKAGES:
        sources += (_CHECKOUT / "gfwemu" / package).glob("*.py")
    for source in sorted(sources):
        about.update(f"\0{source}\0".encode() + source.read_bytes())
    return about.hexdigest()


def _compile(digest: str, state: str) -> None:
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        # What built this Python need not be here.
        compiler = ["cc"]
    if shutil.which(compiler[0]) is None:
        raise RefusedError("there is no C compiler")
    with tempfile.TemporaryDirectory(prefix=f"{DIRECTORY.name}.", dir=DIRECTORY.parent) as work:
        made = Path(work, "made")
        made.mkdir()
        _build(Path(work), made, compiler)
        (made / _DIGEST).write_text(digest, encoding="utf-8")
        (made / STAMP.name).write_text(state, encoding="utf-8")
        if DIRECTORY.exists():
            DIRECTORY.rename(Path(work, "old"))
        made.rename(DIRECTORY)
    _try_out()


def _build(work: Path, made: Path, compiler: list[str]) -> None:
    package = work / "gfwemu"
    shutil.copytree(_CHECKOUT / "gfwemu", package, ignore=shutil.ignore_patterns("__pycache__"))
    left_out = {package / f"{module}.py" for module in LEFT_OUT}
    chosen = {source for module in MODULES for source in package.glob(f"{module}.py")} - left_out
    sources = sorted(source for source in chosen if source.name != "__init__.py")
    for source in sources:
        source.write_text(spell_out(source.read_text(encoding="utf-8")), encoding="utf-8")
    with contextlib.chdir(work):
        extensions = _translate([str(source.relative_to(work)) for source in sources])
    objects = {}
    flags = ["-fPIC", "-fwrapv", "-DNDEBUG", f"-I{sysconfig.get_path('include')}"]
    for extension in extensions:
        options = [*flags, *(f"-I{place}" for place in extension.include_dirs), *extension.extra_compile_args]
        for source in extension.sources:
            objects[source] = [*compiler, *options, "-c", source, "-o", f"{source}.o"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda command: _run(command, work), objects.values()))
        links = [
            [*compiler, "-shared", *map("{}.o".format, extension.sources), "-o", f"{made / extension.name}{SUFFIX}"]
            for extension in extensions
        ]
        list(pool.map(lambda command: _run(command, work), links))


def _translate(sources: list[str]) -> list[Any]:
    """Writes C in the current directory."""
    # It asks which of Python's two tools is in use, and takes a second to import.
    import setuptools  # noqa: F401
    from mypyc.build import mypycify

    version = f"--python-version={sys.version_info.major}.{sys.version_info.minor}"
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return mypycify(
                [version, "--config-file=", "--ignore-missing-imports", "--follow-imports=silent", *sources],
                only_compile_paths=sources,
                opt_level=_OPTIMISATION,
                debug_level="0",
                multi_file=True,
                group_name=_GROUP,
            )
    except SystemExit:
        errors = [line for line in said.getvalue().splitlines() if "error:" in line]
        raise RefusedError(f"mypyc refuses {errors[0] if errors else 'the sources'}") from None


def _try_out() -> None:
    names = [file.name.removesuffix(SUFFIX) for file in DIRECTORY.glob(f"*{SUFFIX}")]
    own = {name: value for name, value in os.environ.items() if name != SWITCH}
    trial = [sys.executable, "-c", f"import {', '.join(sorted(names))}"]
    done = subprocess.run(trial, env=own, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(DIRECTORY)
        raise RefusedError((done.stderr.splitlines() or ["what was compiled does not run"])[-1])


def _run(command: list[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        raise RefusedError(f"{command[0]}: {errors[0] if errors else done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
