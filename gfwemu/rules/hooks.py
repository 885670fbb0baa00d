"""Python functions as conditions: the last resort of a rule. Loading a rule file that names one runs its code."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from gfwemu.rules.compiled import Facts

Hook = Callable[[Facts], bool]

_FORM = re.compile(r"([^:\0]+\.py):([A-Za-z_][A-Za-z0-9_]*)")


def load_hook(text: str, directory: Path) -> Hook:
    """The function of `file.py:function`, the file looked up in `directory`. Raises ValueError with the reason."""
    found = _FORM.fullmatch(text)
    if not found:
        raise ValueError(f"'{text[:60]}' does not name a function; write file.py:function")
    path = directory / found[1]
    try:
        exists = path.is_file()
    except OSError:
        exists = False
    if not exists:
        raise ValueError(f"there is no file '{found[1][:200]}' beside the rule file")
    hook = getattr(_load(path), found[2], None)
    if not callable(hook):
        raise ValueError(f"'{found[1]}' has no function '{found[2]}'")
    return hook  # type: ignore[no-any-return]


def _load(path: Path) -> ModuleType:
    name = f"gfwemu_hook_{abs(hash(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"'{path.name}' fails while it loads: {type(error).__name__}: {error}") from None
    return module
