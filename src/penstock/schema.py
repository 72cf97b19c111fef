"""The JSON Schema of the settings file, for editors: made from the settings' own fields."""

from __future__ import annotations

from typing import Any

from penstock import settings
from penstock.settings import Field

TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}
TOP = {
    "source": ("string", "model.onnx, file.py:Class, package.module:factory, program.pt2 or zoo:NAME"),
    "weights": ("string", "weights of a PyTorch source: .safetensors, or .pt with tensors only"),
    "seed": ("integer", "seed of the data roles and of made-up inputs"),
}


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of ``penstock.toml`` and of lock files; unknown names are errors in it."""
    names = {
        "type": "array",
        "items": {"type": "string"},
        "description": "backends to deploy on; empty: all that can run",
    }
    properties: dict[str, Any] = {name: {"type": kind, "description": text} for name, (kind, text) in TOP.items()}
    properties["seed"] |= {"minimum": 0, "maximum": 2**31 - 1}
    properties["backends"] = {"anyOf": [names, {"type": "string"}]}
    for name in ("input", "example"):  # they belong to the export, and may stand at the file's head
        properties[name] = next(_field(field) for field in settings.fields("export") if field.name == name)
    for section in settings.SECTIONS:
        doc = (settings.section_class(section).__doc__ or "").strip().splitlines()
        fields = {spelt: _field(field) for field in settings.fields(section) for spelt in _spellings(field)}
        properties[section] = {
            "type": "object", "description": doc[0] if doc else "", "properties": fields, "additionalProperties": False,
        }  # fmt: skip
    written = {"tools": "versions of the tools of a build", "inputs": "what a build read"}
    written["libraries"] = "digests of the libraries of custom operators"
    for section, text in written.items():
        properties[section] = {"type": "object", "description": f"{text}; written into lock files"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Penstock settings",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _spellings(field: Field) -> list[str]:
    return list(dict.fromkeys([field.name, field.name.replace("_", "-")]))


def _field(field: Field) -> dict[str, Any]:
    one: dict[str, Any] = {"type": TYPES[field.kind]}
    if field.choices:
        one["enum"] = list(field.choices)
    if field.minimum is not None:
        one["minimum"] = int(field.minimum) if field.kind is int else field.minimum
    if field.maximum is not None:
        one["maximum"] = int(field.maximum) if field.kind is int else field.maximum
    shown: dict[str, Any] = {"type": "array", "items": one} if field.many else one
    shown = {**shown, "description": field.help}
    if field.default not in (None, (), ""):
        shown["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
    return shown
