"""The fields that dissectors fill and rules match: name, kind, meaning."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class FieldKind(Enum):
    """How a rule may match the field (see `gfwemu show field NAME`)."""

    DOMAIN = "domain"
    TEXT = "text"
    TEXTS = "texts"
    NUMBER = "number"
    FLAG = "flag"
    ENUM = "enum"
    ADDRESS = "address"
    PORT = "port"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class Field:
    """A name that may stand under `match:`. `choices` lists the values of an ENUM."""

    name: str
    kind: FieldKind
    description: str
    example: str
    choices: tuple[str, ...] = ()
