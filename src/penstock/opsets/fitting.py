"""Fit a node into another version of its operator where no adapter has anything to say.

1. An attribute that the version doesn't have is dropped where it says its default, or nothing for the node's types.
2. An attribute that isn't written, whose default changed, is written out.
3. Inputs and outputs that the version doesn't have must not be used.
4. Types that the version doesn't take: an operator that only compares or chooses among values computes in a type that
   holds all of them, with Casts around it; others are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.opsets import Direction, history
from penstock.rewriting import Refusal, Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.history import Schema
    from penstock.opsets.place import Place

MEANINGLESS = {"consumed_inputs", "output_sequence"}  # hints to memory planners of long ago
FLOAT8_ONLY = {"saturate", "round_mode"}  # they say nothing for other types, and float8 goes with them
# operators whose result is among their inputs' values, or says how these compare
CHOOSING = {
    "ArgMax", "ArgMin", "Clip", "Equal", "Expand", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "MaxPool",
    "Min", "NonZero", "ReduceMax", "ReduceMin", "Relu", "Sign", "TopK", "Where",
}  # fmt: skip
WIDER = {  # types that hold every value of another one
    "BOOL": ("INT32", "INT64", "FLOAT"),
    "INT8": ("INT32", "INT64", "FLOAT", "DOUBLE"), "UINT8": ("INT32", "INT64", "FLOAT", "DOUBLE"),
    "INT16": ("INT32", "INT64", "FLOAT", "DOUBLE"), "UINT16": ("INT32", "INT64", "FLOAT", "DOUBLE"),
    "INT32": ("INT64", "DOUBLE"), "UINT32": ("INT64", "DOUBLE"),
    "FLOAT16": ("FLOAT", "DOUBLE"), "BFLOAT16": ("FLOAT", "DOUBLE"),
}  # fmt: skip


def fit(
    node: ir.Node, place: Place, before: Schema | None, after: Schema, way: Direction, boundary: int
) -> Rewrite | str | None:
    """Change a node in place and return a few words where something changed, or return a rewrite."""
    if boundary > history.REVIEWED and (before is None or not history.same_form(before, after)):
        raise Refusal(f"{node.op_type} changed with opset {boundary}, which is newer than this Penstock")
    told = [_attribute(node, place, name, before, after, boundary) for name in [*node.attributes]]
    for name, attribute in after.attributes.items():
        if name in node.attributes:
            continue
        if before is not None and name in before.attributes and (old := history.default(before, name)) is not None \
                and old != history.default(after, name):  # fmt: skip
            _write(node, name, old)
            told.append(f"{name}={old} is written out")
        elif attribute.required:
            raise Refusal(f"opset {place.opset} wants its {name}")
    _inputs_and_outputs(node, place, after, way, boundary)
    what = "; ".join(filter(None, told)) or None
    if problem := wrong_type(node, place, after, before):
        return _cast_around(node, place, after, problem)
    return what


def _attribute(node: ir.Node, place: Place, name: str, before: Schema | None, after: Schema, boundary: int) -> str:
    """Drop an attribute that the version doesn't have."""
    if name in after.attributes:
        return ""
    if name in MEANINGLESS or name in FLOAT8_ONLY:
        del node.attributes[name]
        return f"{name} is dropped, which says nothing here"
    value = place.attribute(node, name)
    usual = history.default(before, name) if before is not None and name in before.attributes else None
    neutral = name in ("dilations",) and all(item == 1 for item in value)
    if not neutral and (usual is None or list_or(value) != list_or(usual)):
        raise Refusal(f"{name}={_short(value)} can be said from opset {boundary} on only")
    del node.attributes[name]
    return f"{name}={_short(value)} is dropped, which is how it always was"


def list_or(value: object) -> object:
    """Return sequences as lists, to compare them."""
    return list(value) if isinstance(value, list | tuple) else value


def _short(value: object) -> str:
    return str(list_or(value))[:40]


def _write(node: ir.Node, name: str, value: object) -> None:
    from penstock.rewriting.site import _attribute as made

    node.attributes.add(made(name, value))


def _inputs_and_outputs(node: ir.Node, place: Place, after: Schema, way: Direction, boundary: int) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None and history.parameter(after.inputs, index) is None:
            raise Refusal(f"its input {index + 1} can be given from opset {boundary} on only" if way == "down" else
                          f"its input {index + 1} went with opset {boundary}")  # fmt: skip
    while len(node.inputs) > len(after.inputs) and node.inputs[-1] is None:
        node.resize_inputs(len(node.inputs) - 1)
    for index, one in enumerate(after.inputs):
        if place.input(node, index) is None and not history.optional(one):
            raise Refusal(f"opset {place.opset} wants its input {one.name}")
    for index in range(len(node.outputs)):
        if history.parameter(after.outputs, index) is None and place.reads(node, index):
            raise Refusal(f"its output {index + 1} is not there in opset {place.opset}")
    while node.outputs and history.parameter(after.outputs, len(node.outputs) - 1) is None:
        node.resize_outputs(len(node.outputs) - 1)


def wrong_type(node: ir.Node, place: Place, after: Schema, before: Schema | None) -> str:
    """Say which input or output has a type that the version doesn't take; empty where all fit.

    Types that aren't known are let through where the version takes all that the one before took.
    """
    bound: dict[str, str] = {}
    for side, values, parameters in (("input", node.inputs, after.inputs), ("output", node.outputs, after.outputs)):
        for index, value in enumerate(values):
            one = history.parameter(parameters, index)
            if value is None or one is None:
                continue
            name = type_name(value, place)
            if name is None:
                if before is not None and not _narrower(before, after, side, index):
                    continue
                if before is None:
                    continue  # a new node's: onnx's inference doesn't know it, and the checker has the last word
                return f"can't be judged: the type of its {side} {index + 1} isn't known"
            if name not in one.types:
                return f"doesn't take {name[7:-1] if name.startswith('tensor(') else name} as its {side} {one.name}"
            if one.is_homogeneous and bound.setdefault(one.type_str, name) != name:
                return f"wants one type for its inputs; {one.name} has another"
    return ""


def _narrower(before: Schema, after: Schema, side: str, index: int) -> bool:
    a = history.parameter(before.inputs if side == "input" else before.outputs, index)
    b = history.parameter(after.inputs if side == "input" else after.outputs, index)
    return a is None or b is None or not set(a.types) <= set(b.types)


def type_name(value: ir.Value, place: Place) -> str | None:
    """Write a value's type as schemas do: ``tensor(float)``, ``seq(tensor(float))``."""
    import onnx_ir as ir

    type_ = value.type
    if type_ is None and (tensor := place.tensor(value)) is not None:
        type_ = ir.TensorType(tensor.dtype)
    maker = value.producer()
    if type_ is None and maker is not None and maker.op_type == "Constant" and len(maker.attributes) == 1:
        name = next(iter(maker.attributes))  # the number may be the caller's of a function, its kind is known
        kinds = {"value_int": "INT64", "value_ints": "INT64", "value_float": "FLOAT", "value_floats": "FLOAT"}
        type_ = ir.TensorType(ir.DataType[kinds[name]]) if name in kinds else None
    return None if type_ is None else _written(type_)


def _written(type_: ir.TypeProtocol) -> str | None:
    import onnx_ir as ir

    if isinstance(type_, ir.SequenceType | ir.OptionalType):
        inner = _written(type_.elem_type)
        word = "seq" if isinstance(type_, ir.SequenceType) else "optional"
        return None if inner is None else f"{word}({inner})"
    return f"tensor({type_.dtype.name.lower()})" if isinstance(type_, ir.TensorType) else None


def _cast_around(node: ir.Node, place: Place, after: Schema, problem: str) -> Rewrite:
    """Let an operator that only chooses work in a wider type that its version takes."""
    import onnx_ir as ir

    refusal = Refusal(f"{node.op_type} of opset {place.opset} {problem}")
    if node.op_type not in CHOOSING:
        raise refusal
    variable = after.inputs[1 if node.op_type == "Where" else 0].type_str
    places = [index for index, value in enumerate(node.inputs)
              if value is not None and _variable(after.inputs, index) == variable]  # fmt: skip
    if node.op_type in ("ReduceMax", "ReduceMin") and not all(place.static(node.inputs[0]) or (0,)):
        raise refusal  # of nothing, the result is the type's own least or greatest value
    narrow = {place.dtype(node.inputs[index]) for index in places}
    if len(narrow) != 1:
        raise refusal
    dtype = narrow.pop()
    one = after.inputs[places[0]]
    taken = [name for name in WIDER.get(dtype.name, ()) if f"tensor({name.lower()})" in one.types]
    wide = ir.DataType[taken[0]] if taken else None
    if wide is None:
        raise refusal
    inputs = list(node.inputs)
    for index in places:
        value = inputs[index]
        assert value is not None
        inputs[index] = place.cast(value, wide)
    values = {}
    for index, (old, new) in enumerate(zip(node.outputs, place.anew(node, inputs), strict=True)):
        if _variable(after.outputs, index) == variable:
            place.typed(new, wide, old)
            values[old] = place.cast(new, dtype)
        else:
            if old.dtype is not None:
                place.typed(new, old.dtype, old)
            values[old] = new
    return Rewrite(values, f"it computes in {wide.name.lower()}, with Casts around it, which holds every value")


def _variable(parameters: object, index: int) -> str:
    one = history.parameter(parameters, index)
    return "" if one is None else one.type_str
