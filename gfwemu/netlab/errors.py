"""Errors of a lab that is being built or runs."""

from __future__ import annotations

from gfwemu.errors import GfwemuError


class LabError(GfwemuError):
    """Something in a lab failed. `exit_code`: that of the part that failed, where it has one of its own.

    `service`: which service it was, if it was one.
    """

    def __init__(self, message: str, *, exit_code: int = GfwemuError.exit_code, service: str = "") -> None:
        self.exit_code = exit_code
        self.service = service
        super().__init__(message)
