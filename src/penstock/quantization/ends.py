"""Ends: the last layers of a model, and which tensor is the result of a layer.

1. Of a MatMul it is what the Add of a row behind it makes, which takes the bias.
2. Where a Relu or Clip alone reads that, it is what the clip makes: the grid needn't hold more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

CLIPS = ("Relu", "Clip")


def leading(nodes: Sequence[ir.Node], weighted: Collection[str]) -> set[ir.Node]:
    """Return the nodes, given in order, whose results go into operators of the types ``weighted`` further on."""
    found: set[ir.Node] = set()
    for node in reversed(nodes):
        if any(use.node in found or use.node.op_type in weighted for out in node.outputs for use in out.uses()):
            found.add(node)
    return found


def result(node: ir.Node) -> ir.Value:
    """Return the tensor that is a layer's result."""
    home = bias_home(node)
    found = node.outputs[0] if home is None else home[0].outputs[0]
    uses = [*found.uses()]
    if len(uses) != 1 or found.is_graph_output():
        return found
    reader = uses[0].node
    if reader.op_type not in CLIPS or reader.domain != "" or uses[0].idx:
        return found
    bounds = [value for value in reader.inputs[1:] if value is not None]
    return reader.outputs[0] if all(value.const_value is not None for value in bounds) else found


def bias_home(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Return where a node takes a row to add to its result; of a MatMul that is the Add behind it, if there is one."""
    if node.op_type != "MatMul":
        return node, 2
    uses = [*node.outputs[0].uses()]
    if len(uses) != 1 or uses[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    add = uses[0].node
    other = add.inputs[1 - uses[0].idx]
    if other is None or other.const_value is None or other.is_graph_input() or len(other.const_value.shape) != 1:
        return None
    return add, 1 - uses[0].idx
