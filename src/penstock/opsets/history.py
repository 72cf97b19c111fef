"""What each operator was in each opset, as the installed onnx knows it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    Schema = onnx.defs.OpSchema

REVIEWED = 28  # the changes up to this opset were read: where none of our adapters speaks, the meaning stayed
LOWEST = 7  # before it, broadcasting was something else; nothing is converted to there


def newest() -> int:
    """Return the newest opset that onnx knows."""
    import onnx

    return int(onnx.defs.onnx_opset_version())


@cache
def versions(op: str, domain: str = "") -> tuple[Schema, ...]:
    """Return an operator's schemas, the oldest first; none for an unknown operator."""
    return _all().get((domain, op), ())


@cache
def _all() -> dict[tuple[str, str], tuple[Schema, ...]]:
    import onnx

    found: dict[tuple[str, str], list[Schema]] = {}
    for one in onnx.defs.get_all_schemas_with_history():
        found.setdefault((one.domain, one.name), []).append(one)
    return {key: tuple(sorted(all_, key=lambda one: one.since_version)) for key, all_ in found.items()}


def operators() -> list[tuple[str, str]]:
    """Return (domain, operator) of everything that onnx knows, sorted."""
    return sorted(_all())


@cache
def schema(op: str, opset: int) -> Schema | None:
    """Return the schema that a standard operator has in an opset; ``None`` where it isn't there, or no longer."""
    known = [one for one in versions(op) if one.since_version <= opset]
    return known[-1] if known and not known[-1].deprecated else None


@cache
def changed_at(opset: int) -> frozenset[str]:
    """Return the standard operators that came, changed or went with an opset."""
    return frozenset(op for (domain, op), all_ in _all().items() if domain == "" for one in all_
                     if one.since_version == opset)  # fmt: skip


def default(schema: Schema, name: str) -> Any:
    """Return an attribute's default, ``None`` where there is none; texts as ``str``."""
    import onnx

    proto = schema.attributes[name].default_value
    if not proto.name:
        return None
    value = onnx.helper.get_attribute_value(proto)
    return value.decode() if isinstance(value, bytes) else value


def same_form(a: Schema, b: Schema) -> bool:
    """Whether two versions have the same inputs, outputs and attributes, apart from their types."""
    return _form(a) == _form(b) and not a.deprecated and not b.deprecated


def _form(one: Schema) -> object:
    parameters = [[(p.option, p.is_homogeneous) for p in side] for side in (one.inputs, one.outputs)]
    attributes = {name: (a.type, a.required, str(default(one, name))) for name, a in one.attributes.items()}
    return parameters, attributes


def parameter(parameters: Any, index: int) -> onnx.defs.OpSchema.FormalParameter | None:
    """Return the formal input or output at a place; the last one may stand for many."""
    import onnx

    if index < len(parameters):
        return parameters[index]  # type: ignore[no-any-return]  # onnx's sequence isn't typed
    if parameters and parameters[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic:
        return parameters[-1]  # type: ignore[no-any-return]  # as above
    return None


def optional(parameter: onnx.defs.OpSchema.FormalParameter) -> bool:
    """Whether an input or output may be left out."""
    import onnx

    return parameter.option != onnx.defs.OpSchema.FormalParameterOption.Single
