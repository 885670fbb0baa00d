"""A dissector, as the registry lists it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gfwemu.dissect.fields import Field
from gfwemu.dissect.options import DissectOptions
from gfwemu.dissect.outcome import Session


@dataclass(frozen=True, slots=True)
class Dissector:
    """One protocol over the given transports (`gfwemu.model.Transport` numbers).

    `open` starts the dissection of one flow. Two dissectors may share a name where a protocol reads differently
    over TCP and over UDP.
    """

    name: str
    transports: frozenset[int]
    fields: tuple[Field, ...]
    open: Callable[[DissectOptions], Session]
