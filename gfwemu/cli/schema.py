"""`gfwemu schema`: the JSON Schema of rule files."""

from __future__ import annotations

import json

import click

from gfwemu.rules.jsonschema import rule_file_schema


@click.command()
def schema() -> None:
    """Print the JSON Schema of rule files, for editors.

    With it, an editor that speaks yaml-language-server completes keys and marks mistakes while you type:

    \b
    gfwemu schema > gfwemu.schema.json
    echo '# yaml-language-server: $schema=gfwemu.schema.json' | cat - my-rules.yaml
    """
    click.echo(json.dumps(rule_file_schema(), indent=2))
