"""Parameters of models as people read them: name, kind, default, limits."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from gfwemu.rules.odds import Chance, Odds
from gfwemu.rules.quantities import Duration, HeaderField, Rate, Size, Varied, VariedDuration, VariedNumber, VariedSize

_KIND_NAMES: tuple[tuple[Any, str], ...] = (
    (Duration, "duration"),
    (Rate, "rate"),
    (Size, "size"),
    (VariedDuration, "duration, may vary"),
    (VariedNumber, "number, may vary"),
    (VariedSize, "size, may vary"),
    (HeaderField, "number, may vary, mirror or increment"),
    (Chance, "number from 0 to 1, may depend on the hour"),
)
_QUANTITIES = {typing.get_args(alias)[-1]: name for alias, name in _KIND_NAMES}
_PLAIN: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an action. `default` is None where the parameter must be given."""

    name: str
    kind: str
    default: str | None


def parameters_of(model: type[BaseModel]) -> Iterator[Parameter]:
    """In the order of the model."""
    for name, field in model.model_fields.items():
        default = None if field.is_required() else _value(field.get_default(call_default_factory=True))
        yield Parameter(field.alias or name, _kind_of(field), default)


def nested_models(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that parameters of this one hold, such as Injector."""
    found: list[type[BaseModel]] = []
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            if inner not in found:
                found.append(inner)
    return found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)


def _kind_of(field: FieldInfo) -> str:
    limits = [_limit(item) for item in field.metadata]
    quantity = next((_QUANTITIES[item] for item in field.metadata if isinstance(item, BeforeValidator)), None)
    return " ".join([quantity or _kind(field.annotation), *filter(None, limits)])


def _kind(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        limits = [_limit(item) for item in arguments[1:]]
        quantity = next((_QUANTITIES[item] for item in arguments[1:] if isinstance(item, BeforeValidator)), None)
        return " ".join([quantity or _kind(arguments[0]), *filter(None, limits)])
    if origin is typing.Literal:
        return " | ".join(str(choice) for choice in arguments)
    if origin in (types.UnionType, typing.Union):
        return " | ".join(_kind(part) for part in arguments if part is not type(None))
    if origin in (tuple, list):
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"mapping of {_kind(arguments[0])} to {_kind(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.__name__.lower()
    return _PLAIN.get(annotation, str(annotation))


def _limit(item: Any) -> str:
    if isinstance(item, FieldInfo):
        return " ".join(filter(None, map(_limit, item.metadata)))
    for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        if (bound := getattr(item, name, None)) is not None:
            return f"{sign} {bound:g}" if isinstance(bound, float) else f"{sign} {bound}"
    return ""


def _value(value: Any) -> str:
    if isinstance(value, Varied):
        return f"{value.low:g}" if value.low == value.high else f"{value.low:g}-{value.high:g}"
    if isinstance(value, Odds):
        return f"{value.high:g}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        return getattr(value, "name", "") or "the usual one"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, dict):
        return "{}" if not value else str(value)
    if value is None:
        return "not set"
    if isinstance(value, str):
        return repr(value) if value else "empty"
    return str(value)
