"""`gfwemu list` and `gfwemu show`: profiles, fields, actions and dissectors."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gfwemu.errors import RulesError, UsageError
from gfwemu.model import TRANSPORT_NAMES
from gfwemu.rules.actions import ACTIONS, NOT_TERMINAL, ON_PATH_ABLE
from gfwemu.rules.catalogue import find_profile, profiles
from gfwemu.rules.compiled import Scope
from gfwemu.rules.fields import RuleField, dissector_transports, rule_fields
from gfwemu.rules.load import load_rules
from gfwemu.rules.parameters import nested_models, parameters_of
from gfwemu.rules.validate import suggestion

Entry = dict[str, Any]

_SCOPES = {Scope.FLOW: "once a flow", Scope.MESSAGE: "each message", Scope.PACKET: "each packet"}


def _first_sentence(text: str) -> str:
    head, _, _ = " ".join(text.split()).partition(". ")
    return head.rstrip(".:")


def _transport_names(numbers: frozenset[int]) -> list[str]:
    return sorted(TRANSPORT_NAMES.get(number, str(number)) for number in numbers)


def _profile_entry(name: str, path: Path) -> Entry:
    try:
        description = load_rules([path]).description
    except RulesError as error:
        description = f"wrong: {error.problems[0]}"
    return {"name": name, "description": description}


def _field_entry(entry: RuleField) -> Entry:
    return {
        "name": entry.name,
        "kind": entry.kind.value,
        "known": _SCOPES[entry.scope],
        "transports": _transport_names(entry.transports),
        "dissector": entry.dissector,
        "description": entry.field.description,
        "example": entry.field.example,
        "choices": list(entry.field.choices),
    }


def _action_entry(name: str) -> Entry:
    model = ACTIONS[name]
    return {
        "name": name,
        "description": inspect.cleandoc(model.__doc__ or ""),
        "terminal": name not in NOT_TERMINAL,
        "on_path": name in ON_PATH_ABLE,
        "parameters": [_parameter(one) for one in parameters_of(model)],
        "nested": {
            inner.__name__.lower(): {
                "description": inspect.cleandoc(inner.__doc__ or ""),
                "parameters": [_parameter(one) for one in parameters_of(inner)],
            }
            for inner in nested_models(model)
        },
    }


def _parameter(parameter: Any) -> Entry:
    return {"name": parameter.name, "kind": parameter.kind, "default": parameter.default}


def _dissector_entry(name: str) -> Entry:
    fields = [entry for entry in rule_fields().values() if entry.dissector == name]
    return {
        "name": name,
        "transports": _transport_names(dissector_transports()[name]),
        "fields": [entry.name for entry in fields],
    }


_CATALOGUE: dict[str, Callable[[], list[Entry]]] = {
    "profiles": lambda: [_profile_entry(name, path) for name, path in sorted(profiles().items())],
    "fields": lambda: [_field_entry(entry) for entry in rule_fields().values()],
    "actions": lambda: [_action_entry(name) for name in ACTIONS],
    "dissectors": lambda: [_dissector_entry(name) for name in dissector_transports()],
}


@click.command("list")
@click.argument("what", type=click.Choice(list(_CATALOGUE)), default="profiles", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON array, for programs.")
@click.option("--markdown", is_flag=True, help="A Markdown table, as in docs/rules.md.")
def list_(what: str, as_json: bool, markdown: bool) -> None:
    """List the shipped profiles, or the fields, actions or dissectors that rules can use.

    \b
    gfwemu list
    gfwemu list fields
    gfwemu list actions --json
    """
    entries = _CATALOGUE[what]()
    if as_json:
        click.echo(json.dumps(entries, indent=2))
        return
    columns = _COLUMNS[what]
    if markdown:
        click.echo("\n".join(_markdown(columns, entries)))
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for entry in entries:
        table.add_row(*(escape(_cell(column, entry[column])) for column in columns))
    Console(highlight=False).print(table)


_COLUMNS: dict[str, tuple[str, ...]] = {
    "profiles": ("name", "description"),
    "fields": ("name", "kind", "known", "description", "example"),
    "actions": ("name", "description"),
    "dissectors": ("name", "transports", "fields"),
}


def _markdown(columns: tuple[str, ...], entries: list[Entry]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for entry in entries:
        cells = [_cell(column, entry[column]).replace("|", "\\|") for column in columns]
        code = {"name", "example"}
        marked = [f"`{cell}`" if column in code else cell for column, cell in zip(columns, cells, strict=True)]
        lines.append(f"| {' | '.join(marked)} |")
    return lines


def _cell(column: str, value: Any) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return _first_sentence(text) if column == "description" else text


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def show(name: str, as_json: bool) -> None:
    """Show one profile, field, action or dissector with everything that it takes.

    \b
    gfwemu show sni-reset
    gfwemu show tls.sni
    gfwemu show reset
    gfwemu show throttle --json
    """
    if name in rule_fields():
        entry: Entry = {"what": "field", **_field_entry(rule_fields()[name])}
    elif name in ACTIONS:
        entry = {"what": "action", **_action_entry(name)}
    elif name in dissector_transports():
        entry = {"what": "dissector", **_dissector_entry(name)}
    elif name in profiles() or "/" in name or name.endswith((".yaml", ".yml")):
        path = find_profile(name)
        entry = {"what": "profile", "name": name, "path": str(path), "text": _text(path), "rules": _rule_entries(path)}
    else:
        known = [*profiles(), *rule_fields(), *ACTIONS, *dissector_transports()]
        near = suggestion(name, known) or "; see `gfwemu list profiles|fields|actions|dissectors`"
        raise UsageError(f"there is no profile, field, action or dissector '{name[:100]}'{near}")
    if as_json:
        click.echo(json.dumps(entry, indent=2))
    else:
        click.echo("\n".join(_lines(entry)))


def _rule_entries(path: Path) -> list[Entry]:
    """The rules of a profile with those that it includes; none where it is wrong."""
    try:
        rules = load_rules([path]).rules
    except RulesError:
        return []
    entries = {
        rule.name: {
            "name": rule.name,
            "box": rule.box,
            "action": rule.action_name,
            "observed": rule.observed,
            "evidence": rule.evidence,
            "guessed": list(rule.guessed),
            "file": Path(rule.place.file).name,
        }
        for rule in rules
    }
    return list(entries.values())


def _rule_lines(rules: list[Entry]) -> list[str]:
    """A comment in the form of a table, where some rule says how well it is known; else nothing."""
    if not any(rule["evidence"] for rule in rules):
        return []
    columns = ("name", "box", "action", "observed", "evidence", "file", "guessed")
    rows = [columns, *(tuple(_cell(column, rule[column]) for column in columns) for rule in rules)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return ["", "# All rules, included ones too:", *(f"# {line}" for line in table)]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read '{path}': {error}") from None


def _lines(entry: Entry) -> list[str]:
    match entry["what"]:
        case "profile":
            return [f"# {entry['path']}", entry["text"].rstrip(), *_rule_lines(entry["rules"])]
        case "field":
            return _field_lines(entry)
        case "action":
            return _action_lines(entry)
        case _:
            return [
                f"dissector {entry['name']}, over {' and '.join(entry['transports'])}",
                f"  match it with      protocol: {entry['name']}",
                *(f"  field              {name}" for name in entry["fields"]),
            ]


def _field_lines(entry: Entry) -> list[str]:
    lines = [
        f"field {entry['name']}: {entry['description']}",
        f"  kind       {entry['kind']}: {_KIND_HELP[entry['kind']]}",
        f"  known      {entry['known']}",
        f"  transports {', '.join(entry['transports']) or 'any'}",
    ]
    if entry["choices"]:
        lines.append(f"  values     {', '.join(entry['choices'])}")
    return [*lines, f"  example    match: {{{entry['name']}: {_quoted(entry['example'])}}}"]


_KIND_HELP: dict[str, str] = {
    "domain": "example.com (with subdomains), full:, *.example.com, keyword:, regexp:, '@list'; a list of them; {not:}",
    "address": "an address, a network, '@list'; a list of them; {not:}",
    "text": "the exact text (http.keyword: a part); a list of them; {is:, prefix:, suffix:, contains:, regex:, not:}",
    "texts": "several texts, one of which must match; otherwise as text",
    "enum": "one of the values; a list of them; {not:}",
    "number": "443, 1-1000, '>=149', '>3.4 <4.6'; a list of them; {not:}",
    "port": "443, 1-1000, '>=1024'; a list of them; {not:}",
    "flag": "true or false",
    "bytes": "see the example; a list of such; {not:}",
}


def _quoted(example: str) -> str:
    plain = re.fullmatch(r"[A-Za-z0-9./_-]+|\{.*\}", example)
    return example if plain else f'"{example}"'


def _action_lines(entry: Entry) -> list[str]:
    lines = [f"action {entry['name']}", *(f"  {line}" for line in entry["description"].split("\n"))]
    ends = "no later rule looks at the flow" if entry["terminal"] else "later rules still look at the flow"
    where = "on-path and in-path" if entry["on_path"] else "in-path only"
    lines += ["", f"  afterwards {ends}; possible {where}", ""]
    lines += _parameter_lines(entry["parameters"], "with")
    for name, inner in entry["nested"].items():
        lines += ["", f"  {name}:", *(f"    {line}" for line in inner["description"].split("\n")), ""]
        lines += _parameter_lines(inner["parameters"], name)
    return lines


def _parameter_lines(parameters: list[Entry], owner: str) -> list[str]:
    if not parameters:
        return [f"  {owner}: takes no parameters"]
    width = max(len(one["name"]) for one in parameters)
    kinds = max(len(one["kind"]) for one in parameters)
    return [
        f"  {one['name']:{width}}  {one['kind']:{kinds}}  "
        + ("must be given" if one["default"] is None else f"default {one['default']}")
        for one in parameters
    ]
