"""Sources in the words that mypyc makes fast code of. Lines keep their numbers, for tracebacks."""

from __future__ import annotations

import ast

_HEAD = "from __future__ import annotations"


def spell_out(source: str) -> str:
    """The same module, as mypyc wants it.

    - Constants of the module are Final, so that they are read where they are, not looked up by name.
    - `record` and frozen dataclasses become dataclasses that may be changed: mypyc does not know the first and sets the
      fields of the second through the interpreter. That nobody changes them, the type checker has seen to.
    - Dataclasses get their `__init__` in words: mypyc would leave that of the decorator to the interpreter.
    - Slices with both ends get a step: mypyc's own slices of bytes fail where the end is before the start.
    """
    lines = _write_steps(source).split("\n")
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.AnnAssign) or (isinstance(node, ast.Assign) and len(node.targets) == 1):
            _settle_constant(node, lines)
        elif isinstance(node, ast.ClassDef):
            _open_class(node, lines)
    head = lines.index(_HEAD)
    lines[head] = f"{_HEAD}; from dataclasses import dataclass; from typing import Final"
    return "\n".join(lines)


def _write_steps(source: str) -> str:
    lines = [line.encode() for line in source.split("\n")]
    cuts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Slice) and node.lower and node.upper]
    for line, end in sorted(
        ((cut.end_lineno or 0, cut.end_col_offset or 0) for cut in cuts if not cut.step), reverse=True
    ):
        lines[line - 1] = lines[line - 1][:end] + b":1" + lines[line - 1][end:]
    return b"\n".join(lines).decode()


def _replace(lines: list[str], node: ast.stmt | ast.expr, text: str) -> None:
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    lines[first : last + 1] = [text] + [""] * (last - first)


def _settle_constant(node: ast.Assign | ast.AnnAssign, lines: list[str]) -> None:
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
    line = node.lineno - 1
    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
        pairs = [
            (ast.unparse(name), ast.unparse(value)) for name, value in zip(target.elts, node.value.elts, strict=True)
        ]
        if all(name.isupper() for name, _ in pairs):
            _replace(lines, node, "; ".join(f"{name}: Final = {value}" for name, value in pairs))
    elif isinstance(target, ast.Name) and target.id.isupper() and node.value is not None:
        if isinstance(node, ast.Assign):
            lines[line] = lines[line].replace(target.id, f"{target.id}: Final", 1)
        elif "Final" not in (kind := ast.unparse(node.annotation)):
            value = lines[line][node.value.col_offset :] if node.value.lineno == node.lineno else "("
            lines[line] = f"{target.id}: Final[{kind}] = {value}"


def _open_class(node: ast.ClassDef, lines: list[str]) -> None:
    for decorator in node.decorator_list:
        text = ast.unparse(decorator)
        if text == "record":
            text = "dataclass(slots=True, unsafe_hash=True)"
        elif text.startswith("dataclass("):
            text = text.replace("frozen=True", "frozen=False" if "eq=False" in text else "unsafe_hash=True")
        else:
            continue
        _replace(lines, decorator, f"@{text}")
        _write_init(node, lines)


def _write_init(node: ast.ClassDef, lines: list[str]) -> None:
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    names = {ast.unparse(field.target) for field in fields}
    # A field that is called as a type is, `bytes: bytes`, hides the type from what follows in the class.
    hidden = any(
        isinstance(part, ast.Name) and part.id in names for field in fields for part in ast.walk(field.annotation)
    )
    own = any(isinstance(item, ast.FunctionDef) and item.name in ("__init__", "__post_init__") for item in node.body)
    factories = [_factory(field.value) for field in fields]
    if hidden or own or not fields or any(isinstance(factory, ast.Lambda) for factory in factories):
        return
    parameters, statements = ["self"], []
    for field, factory in zip(fields, factories, strict=True):
        name, kind = ast.unparse(field.target), ast.unparse(field.annotation)
        given = name
        if field.value is None:
            parameters.append(f"{name}: {kind}")
        elif factory is None:
            parameters.append(f"{name}: {kind} = {ast.unparse(field.value)}")
        else:
            parameters.append(f"{name}: {kind} | None = None")
            given = f"{ast.unparse(factory)}() if {name} is None else {name}"
        statements.append(f"self.{name} = {given}")
        _replace(lines, field, f"    {name}: {kind}")
    # The formatter leaves empty lines behind a class.
    lines[node.end_lineno or 0] = f"    def __init__({', '.join(parameters)}) -> None: {'; '.join(statements)}"


def _factory(value: ast.expr | None) -> ast.expr | None:
    if not (isinstance(value, ast.Call) and ast.unparse(value.func) == "field"):
        return None
    (keyword,) = value.keywords
    if keyword.arg != "default_factory":
        raise ValueError(f"line {value.lineno}: field({keyword.arg}=) is not known here")
    return keyword.value
