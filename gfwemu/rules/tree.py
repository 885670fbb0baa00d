"""YAML text to a tree that knows line and column.

A subset of YAML 1.2, read event by event so that no bomb can grow: one document, no aliases, anchors or tags, no
duplicate keys. Plain scalars follow the core schema: `true`, `false` and `null`, numbers, and all else is text (so
`no`, `on` and `12:30` are text, which YAML 1.1 would turn into something else).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gfwemu.errors import Place, Problem

FILE_LIMIT = 1_000_000
"""Bytes of one rule file. Long lists belong in list files."""
DEPTH_LIMIT = 32
NODE_LIMIT = 50_000

_INTEGER = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)([eE][-+]?[0-9]+)?")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}
_INTEGER_LIMIT = 2**63

ScalarValue = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value; `text` is as written, `value` what the core schema makes of it."""

    value: ScalarValue
    text: str
    place: Place


@dataclass(frozen=True, slots=True)
class Items:
    """A YAML sequence."""

    items: tuple[Node, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Mapping:
    """A YAML mapping, in the order of the file."""

    entries: tuple[tuple[Scalar, Node], ...]
    place: Place

    def get(self, name: str) -> Node | None:
        return next((node for key, node in self.entries if key.text == name), None)

    def key(self, name: str) -> Scalar | None:
        return next((key for key, _ in self.entries if key.text == name), None)


Node = Scalar | Items | Mapping


class _BrokenError(Exception):
    """The text cannot be read further."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(place, message)


class _Open:
    """A collection whose end has not come yet."""

    def __init__(self, mapping: bool, place: Place) -> None:
        self.mapping = mapping
        self.place = place
        self.nodes: list[Node] = []


def plain(node: Node) -> Any:
    """The tree as ordinary Python values."""
    match node:
        case Scalar():
            return node.value
        case Items():
            return [plain(item) for item in node.items]
        case Mapping():
            return {key.text: plain(value) for key, value in node.entries}


def read_tree(path: Path, name: str) -> tuple[Node | None, list[Problem]]:
    """The file's tree and what is wrong with its text. `name` is how problems call the file."""
    try:
        with path.open("rb") as stream:
            data = stream.read(FILE_LIMIT + 1)
    except OSError as error:
        return None, [Problem(Place(name), f"cannot read the file: {error.strerror or error}")]
    return parse_tree(data, name)


def parse_tree(data: bytes, name: str) -> tuple[Node | None, list[Problem]]:
    """As `read_tree`, from bytes."""
    if len(data) > FILE_LIMIT:
        return None, [
            Problem(
                Place(name),
                f"the file is larger than {FILE_LIMIT} bytes; put long lists into list files (lists: file:)",
            )
        ]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        return None, [Problem(Place(name, line, column), f"not UTF-8: byte 0x{data[error.start]:02x}")]
    found = _CONTROL.search(text)
    if found:
        at = found.start()
        place = Place(name, text.count("\n", 0, at) + 1, at - (text.rfind("\n", 0, at) + 1) + 1)
        return None, [Problem(place, f"control character U+{ord(found.group()):04X}; remove it")]
    return _Reader(name).read(text)


class _Reader:
    def __init__(self, name: str) -> None:
        self._name = name
        self._stack: list[_Open] = []
        self._root: Node | None = None
        self._problems: list[Problem] = []
        self._nodes = 0

    def read(self, text: str) -> tuple[Node | None, list[Problem]]:
        try:
            for event in yaml.parse(text, Loader=yaml.SafeLoader):
                self._event(event)
        except _BrokenError as broken:
            return None, [*self._problems, broken.problem]
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = Place(self._name, mark.line + 1, mark.column + 1) if mark else Place(self._name)
            return None, [*self._problems, Problem(place, _explain(error))]
        except yaml.YAMLError as error:
            return None, [*self._problems, Problem(Place(self._name), f"not YAML: {error}")]
        except (ValueError, OverflowError):  # PyYAML on escapes beyond Unicode and on absurd %YAML directives
            return None, [
                *self._problems,
                Problem(Place(self._name), "not YAML: a number or an escape is out of range"),
            ]
        if self._root is None or (isinstance(self._root, Scalar) and self._root.value is None):
            return None, [*self._problems, Problem(Place(self._name, 1), "the file is empty; begin with 'version: 1'")]
        return self._root, self._problems

    def _event(self, event: Any) -> None:
        place = Place(self._name, event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.AliasEvent):
            raise _BrokenError(place, f"alias '*{event.anchor}': rule files have no aliases; write the value out")
        if isinstance(event, yaml.DocumentStartEvent) and self._root is not None:
            raise _BrokenError(place, "a second document begins here; a rule file holds one")
        if not isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.CollectionEndEvent):
                self._add(self._close(self._stack.pop()))
            return
        self._nodes += 1
        if self._nodes > NODE_LIMIT:
            raise _BrokenError(place, f"more than {NODE_LIMIT} values; put long lists into list files (lists: file:)")
        if event.anchor is not None:
            self._problems.append(Problem(place, f"anchor '&{event.anchor}': rule files have no anchors; remove it"))
        if (tag := getattr(event, "tag", None)) is not None:
            self._problems.append(Problem(place, f"tag '{tag}': rule files have no tags; remove it"))
        if isinstance(event, yaml.ScalarEvent):
            self._add(self._scalar(event, place))
        else:
            if len(self._stack) >= DEPTH_LIMIT:
                raise _BrokenError(place, f"nested deeper than {DEPTH_LIMIT} levels")
            self._stack.append(_Open(isinstance(event, yaml.MappingStartEvent), place))

    def _add(self, node: Node) -> None:
        if self._stack:
            self._stack[-1].nodes.append(node)
        else:
            self._root = node

    def _scalar(self, event: Any, place: Place) -> Scalar:
        text: str = event.value
        if event.style is not None:
            return Scalar(text, text, place)
        if text in _CONSTANTS:
            return Scalar(_CONSTANTS[text], text, place)
        if _INTEGER.fullmatch(text):
            small = len(text) <= 20
            number = int(text, 16 if text.startswith("0x") else 10) if small else _INTEGER_LIMIT
            if abs(number) >= _INTEGER_LIMIT:
                self._problems.append(Problem(place, f"the number {shorten(text)} is out of range"))
                number = 0
            return Scalar(number, text, place)
        if _FLOAT.fullmatch(text):
            real = float(text)
            if not math.isfinite(real):
                self._problems.append(Problem(place, f"the number {shorten(text)} is out of range"))
                real = 0.0
            return Scalar(real, text, place)
        return Scalar(text, text, place)

    def _close(self, opened: _Open) -> Node:
        if not opened.mapping:
            return Items(tuple(opened.nodes), opened.place)
        entries: list[tuple[Scalar, Node]] = []
        first: dict[str, int] = {}
        for key, value in zip(opened.nodes[::2], opened.nodes[1::2], strict=True):
            if not isinstance(key, Scalar):
                self._problems.append(Problem(key.place, "a key must be plain text"))
            elif key.text in first:
                message = f"key '{shorten(key.text)}' appears twice (first on line {first[key.text]})"
                self._problems.append(Problem(key.place, message))
            else:
                first[key.text] = key.place.line
                entries.append((key, value))
        return Mapping(tuple(entries), opened.place)


def shorten(text: str, limit: int = 60) -> str:
    """For messages: control characters escaped, and the middle cut out of long text."""
    text = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return text if len(text) <= limit else f"{text[: limit - 12]}...{text[-9:]}"


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "unreadable"
    if "'\\t'" in problem:
        return "not YAML: indent with spaces, not with a tab"
    if "'@'" in problem or "'%'" in problem or "'`'" in problem:
        return f"not YAML: {problem}; put the value into quotes"
    if "mapping values are not allowed" in problem:
        return "not YAML: a ': ' inside a value, or a line indented wrongly; put such values into quotes"
    hint = "; put values with special characters into quotes" if "but got" in problem else ""
    if error.context and error.context != problem:
        return f"not YAML: {error.context}: {problem}{hint}"
    return f"not YAML: {problem}"
