"""Compiled modules in the place of their sources, as long as they fit them.

`lab/setup` compiles the modules that packets go through (lab/compile.py); the results lie in the Python environment.
Once any source of the packages that they were made from has changed, none of them is taken: they call each other past
the interpreter, so they belong together.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGES = (".", "daemon", "dissect", "engine", "flow", "kernel", "replay", "report", "rules", "wire")
"""Whose sources count. The others only use what is compiled."""

SWITCH = "GFWEMU_INTERPRETED"
DIRECTORY = Path(sys.prefix) / "gfwemu-compiled"
STAMP = DIRECTORY / "stamp"
SUFFIX = EXTENSION_SUFFIXES[0]


def state_of_sources() -> str:
    """Changes with the interpreter, and with each source that comes, goes, or changes its size or time."""
    here = Path(__file__).parent
    lines = [sys.version, str(here)]
    for package in PACKAGES:
        with os.scandir(here / package) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    status = entry.stat()
                    lines.append(f"{package}/{entry.name} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(sorted(lines))


def why_interpreted() -> str:
    """Why the sources run, "" where the compiled modules do."""
    if os.environ.get(SWITCH, "") not in ("", "0"):
        return f"{SWITCH} is set"
    try:
        fits = STAMP.read_text(encoding="utf-8") == state_of_sources()
    except OSError:
        return "nothing is compiled"
    return "" if fits else "the sources are newer than what was compiled"


class _Finder:
    """Names of modules to files."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(name)
        return None if file is None else spec_from_file_location(name, loader=ExtensionFileLoader(name, str(file)))


def install() -> str:
    """From now on imports find the compiled modules, where they are to run. Returns why not, else ""."""
    reason = why_interpreted()
    if not reason:
        files = {file.name.removesuffix(SUFFIX): file for file in DIRECTORY.glob(f"*{SUFFIX}")}
        sys.meta_path.insert(0, _Finder(files))
    return reason
