"""The JSON Schema of rule files, for editors: the models, with every field under `match:` and every action."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from gfwemu.dissect.fields import FieldKind
from gfwemu.rules.actions import ACTIONS
from gfwemu.rules.conditions import ALTERNATIVE_LIMIT
from gfwemu.rules.fields import RuleField, rule_fields
from gfwemu.rules.models import RuleFile
from gfwemu.rules.values import TEXT_OPERATORS

Schema = dict[str, Any]

_SCALAR: Schema = {"type": ["string", "number"]}
_KINDS: dict[FieldKind, Schema] = {
    FieldKind.DOMAIN: {"type": "string"},
    FieldKind.ADDRESS: {"type": "string"},
    FieldKind.TEXT: _SCALAR,
    FieldKind.TEXTS: _SCALAR,
    FieldKind.ENUM: _SCALAR,
    FieldKind.NUMBER: _SCALAR,
    FieldKind.PORT: _SCALAR,
    FieldKind.FLAG: {"type": "boolean"},
    FieldKind.BYTES: {"type": ["string", "number", "object"]},
}


class _Quantities(GenerateJsonSchema):
    """Quantities are read by functions of ours; for editors they are texts, numbers, lists or mappings."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        if schema["schema"]["type"] == "float":
            return {"type": ["string", "number"]}
        return {"type": ["string", "number", "array", "object"]}

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Defaults stand in `gfwemu show`: as JSON, a drawn quantity would not be what one writes."""
        return self.generate_inner(schema["schema"])


def rule_file_schema() -> Schema:
    """The whole schema (draft 2020-12)."""
    schema = RuleFile.model_json_schema(by_alias=True, schema_generator=_Quantities)
    definitions: Schema = schema["$defs"]
    rule: Schema = definitions["RuleEntry"]
    names = sorted(ACTIONS)
    rule["properties"]["match"] = {"$ref": "#/$defs/Match"}
    rule["properties"]["action"] = {"enum": names}
    definitions["Match"] = _match_schema()
    for name in names:
        model = ACTIONS[name].model_json_schema(schema_generator=_Quantities, ref_template="#/$defs/{model}")
        definitions.update(model.pop("$defs", {}))
        definitions[f"with_{name}"] = model
    rule["allOf"] = [
        {
            "if": {"properties": {"action": {"const": name}}, "required": ["action"]},
            "then": {"properties": {"with": {"$ref": f"#/$defs/with_{name}"}}},
        }
        for name in names
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gfwemu rule file",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def _match_schema() -> Schema:
    fields = {name: _field_schema(entry) for name, entry in rule_fields().items()}
    spaces: Schema = {}
    for name in fields:
        space, dot, rest = name.partition(".")
        if dot and space not in fields:
            spaces.setdefault(space, {"type": "object", "additionalProperties": False, "properties": {}})
            spaces[space]["properties"][rest] = fields[name]
    hook = {"type": "string", "description": "file.py:function, beside the rule file; the last resort"}
    inner: Schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {**fields, **spaces, "python": {"anyOf": [hook, {"type": "array", "items": hook}]}},
    }
    alternatives = {"type": "array", "minItems": 1, "maxItems": ALTERNATIVE_LIMIT, "items": dict(inner)}
    return {**inner, "properties": {**inner["properties"], "any": alternatives}}


def _field_schema(entry: RuleField) -> Schema:
    value: Schema = dict(_KINDS[entry.kind])
    if entry.field.choices:
        numbers = [int(choice) for choice in entry.field.choices if choice.isdigit()]
        value = {"enum": [*entry.field.choices, *numbers]}
    plain: Schema = {"anyOf": [value, {"type": "array", "minItems": 1, "items": value}]}
    operators = ("is", "not")
    if entry.kind in (FieldKind.TEXT, FieldKind.TEXTS):
        operators = ("is", *TEXT_OPERATORS, "not")  # type: ignore[assignment]
    mapping: Schema = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {
            name: {"anyOf": [*plain["anyOf"], {"type": "object"}]} if name == "not" else plain for name in operators
        },
    }
    if entry.kind is FieldKind.BYTES:
        mapping = {"type": "object"}
    return {
        "description": f"{entry.field.description}; for example {entry.field.example}",
        "anyOf": [*plain["anyOf"], mapping],
    }
