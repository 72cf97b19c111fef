"""Models of operators on integers, made fit for cuts: a float tensor between the layers for each tensor of integers.

A QLinearConv reads and makes integers, and no tensor of its model has the numbers of the float model's. Behind each
tensor of integers whose grid is known stands a DequantizeLinear here, and before each that reads them a QuantizeLinear
that gives them back: the same integers, bit by bit, by the same operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import onnx_ir as ir

SUFFIX = "_quantized"  # of the integers of a tensor, as quantizers name them
# where the scale of what they make stands; its zero point is the next input
_SCALES = {
    "QuantizeLinear": 1, "QLinearConv": 6, "QLinearMatMul": 6, "QGemm": 7, "QLinearAdd": 6, "QLinearMul": 6,
    "QLinearAveragePool": 3, "QLinearGlobalAveragePool": 3, "QLinearSigmoid": 3, "QLinearLeakyRelu": 3,
    "QLinearSoftmax": 3, "QLinearConcat": 0,
}  # fmt: skip
_MOVING = frozenset({
    "Clip", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip


class _Grid(NamedTuple):
    scale: ir.Value
    zero: ir.Value


def on_integers(model: ir.Model) -> bool:
    """Whether a model has operators that make integers of integers."""
    return any(node.op_type in _SCALES and node.op_type != "QuantizeLinear" for node in model.graph)


def open_up(model: ir.Model) -> None:
    """Put a pair behind each tensor of integers whose grid is known. Its floats go by the tensor's name in float."""
    import onnx_ir as ir

    grids: dict[ir.Value, _Grid] = {}
    taken = {str(value.name) for value in model.graph.inputs}
    taken |= {str(value.name) for node in model.graph for value in node.outputs} | {*model.graph.initializers}
    for node in [*model.graph]:
        grid = _made_by(node, grids)
        if grid is None:
            continue
        for value in node.outputs if node.op_type == "Split" else node.outputs[:1]:
            grids[value] = grid
            users = [use for use in value.uses() if use.node.op_type != "DequantizeLinear"]
            if node.op_type == "QuantizeLinear" or value.is_graph_output() or not users:
                continue  # what is quantized has its float tensor, and what comes out is no place to cut at
            if any(use.node.graph is not model.graph for use in users):
                continue
            name = str(value.name).removesuffix(SUFFIX)
            name = _free(name, taken)
            floats = ir.Value(name=name)
            opened = ir.Node("", "DequantizeLinear", [value, *grid], outputs=[floats], name=f"{name}_dequantize")
            model.graph.insert_after(node, opened)
            # one for each that reads them, right before it: between two of them the floats alone go through a cut
            for number, (user, index) in enumerate(users):
                back = ir.Value(name=_free(f"{value.name}_{number}", taken), type=value.type)
                given = ir.Node("", "QuantizeLinear", [floats, *grid], outputs=[back], name=f"{name}_quantize_{number}")
                model.graph.insert_before(user, given)
                user.replace_input_with(index, back)
                grids[back] = grid


def _free(name: str, taken: set[str]) -> str:
    """Return a name that no tensor has, and take it."""
    found = next(one for one in (name, *(f"{name}_in_float_{i}" for i in range(len(taken) + 1))) if one not in taken)
    taken.add(found)
    return found


def _made_by(node: ir.Node, grids: dict[ir.Value, _Grid]) -> _Grid | None:
    """Return the grid of what a node makes, ``None`` where it makes no integers of a constant grid."""
    place = _SCALES.get(node.op_type)
    if place is not None and len(node.inputs) > place + 1:
        scale, zero = node.inputs[place], node.inputs[place + 1]
        if scale is None or zero is None or scale.const_value is None or scale.const_value.size != 1:
            return None
        return _Grid(scale, zero)
    if node.op_type in _MOVING and node.inputs and node.inputs[0] is not None:
        return grids.get(node.inputs[0])
    return None
