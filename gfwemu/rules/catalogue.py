"""Where profiles are: a path, the rules of a checkout, or those that the package brings along."""

from __future__ import annotations

from pathlib import Path

import gfwemu
from gfwemu.errors import UsageError
from gfwemu.rules.tree import shorten
from gfwemu.rules.validate import suggestion

_PACKAGE = Path(gfwemu.__file__).parent
_CHECKOUT = _PACKAGE.parent
PROFILE_DIRECTORIES = (
    *((_CHECKOUT / "rules",) if (_CHECKOUT / "pyproject.toml").is_file() else ()),
    _PACKAGE / "data" / "rules",
)
"""The checkout's, where this is one, and the packaged ones."""


def profiles() -> dict[str, Path]:
    """The shipped profiles by name."""
    found: dict[str, Path] = {}
    for directory in PROFILE_DIRECTORIES:
        for path in sorted(directory.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find_profile(name_or_path: str) -> Path:
    """A rule file by path or by profile name. Raises UsageError with suggestions."""
    try:
        path = Path(name_or_path)
        if path.is_file():
            return path
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise UsageError(f"'{shorten(name_or_path)}' is neither a file nor a profile: {reason}") from None
    known = profiles()
    if name_or_path in known:
        return known[name_or_path]
    near = suggestion(name_or_path.removesuffix(".yaml"), known) or "; `gfwemu list profiles` shows the profiles"
    kind = "rule file" if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")) else "profile"
    raise UsageError(f"there is no {kind} '{shorten(name_or_path, 200)}'{near}")
