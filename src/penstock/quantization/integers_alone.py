"""Integers alone: a model for a target without float arithmetic is refused where something would stay in float.

1. A node stays in float that reads or makes floats and computes on no integers. The target couldn't run it.
2. Sizes are no floats, nor is the place of the greatest value: what takes these of a quantized tensor finds the same in
   its integers. The conversions at the model's inputs and outputs are the caller's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import InputError
from penstock.quantization.placement import Layer, Placement, constant
from penstock.rewriting.knowledge import Knowledge

if TYPE_CHECKING:
    import onnx_ir as ir

FINDING = frozenset({"ArgMax", "ArgMin", "Shape", "Size"})  # the same in the integers
MOST_NAMES = 3  # of nodes that the message lists


def check(model: ir.Model, placement: Placement, path: Path) -> None:
    """Raise ``InputError`` where nodes would stay in float, and the consumer has no float arithmetic."""
    if not placement.consumer.everything or not (left := floats(model, placement)):
        return
    listed = ", ".join(f"{one.op} {one.node!r} ({one.reason})" for one in left[:MOST_NAMES])
    more = f" and {len(left) - MOST_NAMES} more" if len(left) > MOST_NAMES else ""
    count = "1 node" if len(left) == 1 else f"{len(left)} nodes"
    what = f"{placement.consumer.name} has no float arithmetic, and {count} would stay in float: {listed}{more}"
    do = "build the model of operators that it has on integers, or choose another --consumer"
    raise InputError("stays-in-float", what, where=str(path), do=do)


def floats(model: ir.Model, placement: Placement) -> list[Layer]:
    """Return the nodes that would compute in float."""
    known = model.clone()  # what is found out of types stays out of the model
    Knowledge(known).learn(known.graph)
    nodes = {str(node.name): node for node in known.graph}
    return [one for one in placement.layers if one.state == "float" and _computes(nodes[one.node])]


def _computes(node: ir.Node) -> bool:
    """Whether a node reads floats to compute with, or makes some. What isn't known is taken for floats."""
    read = [] if node.op_type in FINDING else [value for value in node.inputs if value and not constant(value)]
    return any(value.dtype is None or value.dtype.is_floating_point() for value in (*read, *node.outputs))
