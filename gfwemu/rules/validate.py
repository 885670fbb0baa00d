"""Pydantic's findings as problems that have a place and name the fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from collections.abc import Mapping as MappingType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gfwemu.errors import Place, Problem
from gfwemu.rules.tree import Items, Mapping, Node, Scalar, plain, shorten

ModelT = TypeVar("ModelT", bound=BaseModel)

Detail = MappingType[str, Any]
_KINDS: dict[str, str] = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
}
_BOUNDS: dict[str, Callable[[Detail], str]] = {
    "greater_than_equal": lambda detail: f"must be at least {detail['ge']}",
    "greater_than": lambda detail: f"must be more than {detail['gt']}",
    "less_than_equal": lambda detail: f"must be at most {detail['le']}",
    "less_than": lambda detail: f"must be less than {detail['lt']}",
}
_PATTERNS: dict[str, str] = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": "is not a name: letters, digits, '.', '_' and '-', at most 64",
    r"^[FSRPAUEC]+$": "are not TCP flags: write letters of FSRPAUEC, as in 'RA'",
    r"^([0-9a-fA-F]{2}\s*)*$": "is not hex: write pairs of digits, as in '01 02 ff'",
    r"^[A-Za-z]{2}$": "is not a country code of two letters, as in 'RU'",
}


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'sni'?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(name.lower()[:200], list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """`unknown key 'snl'; did you mean 'sni'?`; where nothing is near, what there is (if that is not much)."""
    names = list(known)
    message = f"unknown {what} '{shorten(name)}'"
    near = suggestion(name, names)
    if near or not names or len(names) > 40:
        return message + near
    return f"{message}; known: {', '.join(names)}"


def describe(node: Node) -> str:
    """What stands there, for a message."""
    match node:
        case Mapping():
            return "a mapping" if node.entries else "an empty mapping"
        case Items():
            return "a list" if node.items else "an empty list"
        case Scalar(value=None):
            return "nothing"
        case Scalar(value=bool()):
            return f"'{node.text}'"
        case _:
            return f"'{shorten(node.text)}'"


def validated(model: type[ModelT], node: Node, problems: list[Problem], what: str) -> ModelT | None:
    """The model of what stands at `node`, or None with the problems added. `what` names it, as in `action reset`."""
    try:
        return model.model_validate(plain(node))
    except ValidationError as error:
        problems.extend(_problems(error, model, node, what))
        return None


def _problems(error: ValidationError, model: type[BaseModel], node: Node, what: str) -> list[Problem]:
    """What the branches of a union say about the same place is told as one problem."""
    details = error.errors(include_url=False)
    said: dict[tuple[Place, str], list[str]] = {}
    for detail in details:
        place, message = _explain(detail, model, node, what)
        if detail["type"] == "literal_error" and isinstance(detail["input"], dict) and len(details) > 1:
            continue
        subject = message if detail["type"] in ("extra_forbidden", "missing") else ""
        messages = said.setdefault((place, subject), [])
        if message not in messages:
            messages.append(message)
    return [Problem(place, _join(messages)) for (place, _), messages in said.items()]


def _join(messages: list[str]) -> str:
    if len(messages) == 1:
        return messages[0]
    others = (re.sub("^'[^']*': |, found .*", "", message) for message in messages[1:])
    return ", or ".join([messages[0], *others])


def _explain(detail: Any, model: type[BaseModel], root: Node, what: str) -> tuple[Place, str]:
    node, owner, key, rest = _locate(root, detail["loc"])
    kind: str = detail["type"]
    context: Detail = detail.get("ctx", {})
    if kind == "extra_forbidden":
        place = key.place if key else node.place
        parent = _model_at(model, detail["loc"][:-1])
        return place, _unknown_key(str(detail["loc"][-1]), parent)
    if kind == "missing":
        named = node.get("name") if isinstance(node, Mapping) else None
        if isinstance(named, Scalar):
            inside = f" of '{shorten(named.text)}'"
        else:
            inside = f" of '{owner}'" if owner else f" of {what}" if what else ""
        return node.place, f"'{rest[0] if rest else detail['loc'][-1]}'{inside} is missing"
    name = f"'{owner}': " if owner else ""
    if isinstance(node, Scalar) and node.value is None and kind in _KINDS:
        return node.place, f"{name}expected {_KINDS[kind]}, found nothing"
    if kind in _KINDS:
        return node.place, f"{name}expected {_KINDS[kind]}, found {describe(node)}"
    if kind in _BOUNDS:
        return node.place, f"{name}{shorten(str(detail['input']))} {_BOUNDS[kind](context)}"
    if kind == "literal_error":
        choices = [choice.strip(" '") for choice in context["expected"].replace(" or ", ", ").split(",")]
        near = suggestion(str(detail["input"]), choices)
        return node.place, f"{name}expected {', '.join(choices)}, found {describe(node)}{near}"
    if kind == "string_pattern_mismatch":
        fix = _PATTERNS.get(context["pattern"], f"does not have the form {context['pattern']}")
        return node.place, f"{name}'{shorten(str(detail['input']))}' {fix}"
    if kind == "value_error":
        return node.place, f"{name}{context['error']}"
    return node.place, f"{name}{detail['msg']}"


def _unknown_key(name: str, parent: type[BaseModel] | None) -> str:
    fields = parent.model_fields if parent is not None else {}
    known = [field.alias or key for key, field in fields.items()]
    if not suggestion(name, known):
        for key, field in fields.items():
            if any(name in inner.model_fields for inner in _models_in(field.annotation)):
                return f"unknown key '{shorten(name)}'; it belongs under '{field.alias or key}'"
    return unknown("key", name, known)


def _locate(root: Node, path: tuple[str | int, ...]) -> tuple[Node, str, Scalar | None, tuple[str | int, ...]]:
    """The deepest node on the path, the name of the key that holds it, that key, and what of the path is left.

    Steps that pydantic adds for the branches of unions name no node and are left out.
    """
    node, owner, key = root, "", None
    rest: list[str | int] = []
    for step in path:
        if isinstance(node, Mapping) and isinstance(step, str) and (found := node.get(step)) is not None:
            key = node.key(step)
            node, owner, rest = found, step, []
        elif isinstance(node, Items) and isinstance(step, int) and 0 <= step < len(node.items):
            node, key, rest = node.items[step], None, []
        else:
            rest.append(step)
    return node, owner, key, tuple(rest)


def _model_at(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The model that stands at that path of the file."""
    current: type[BaseModel] | None = model
    for step in path:
        if current is None or not isinstance(step, str):
            continue
        for name, field in current.model_fields.items():
            if step in (name, field.alias):
                current = next(iter(_models_in(field.annotation)), None)
                break
    return current


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
