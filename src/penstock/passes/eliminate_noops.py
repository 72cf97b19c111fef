"""Remove nodes that hand their input on unchanged.

1. Identity; Dropout in inference; Cast and CastLike to the type that is there.
2. Reshape, Flatten, Squeeze, Unsqueeze, Expand, Tile and Slice whose result has the shape of the input (a Slice with
   steps of 1 only: a reversed axis has the same shape).
3. Transpose that leaves every axis in place; Pad by nothing; Concat, Sum, Max, Min, Mean of one thing, Split into one.
4. Adding or subtracting 0, multiplying or dividing by 1, the power of 1, where broadcasting doesn't enlarge the result.
   Adding 0 turns −0 into +0, which are equal. The maximum with −∞, the minimum with +∞.
5. A pool with a window of 1, without strides or pads.
6. Where with a constant condition that is everywhere the same.

A node stays where the format wants one: to hand an input, a constant or a value of an outer graph out of a graph.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site, attribute
from penstock.rewriting.sizes import same

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "clean"
AFTER: tuple[str, ...] = ("lift-constants",)
_OF_SHAPE = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile", "Slice")
_OF_ONE = ("Concat", "Sum", "Max", "Min", "Mean", "Split")
_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0, "Pow": 1.0, "Max": -math.inf, "Min": math.inf}
_POOLS = ("MaxPool", "AveragePool")  # LpPool gives the absolute value
_OTHERS = ("Identity", "Dropout", "Cast", "CastLike", "Transpose", "Pad", "Where")
OPERATORS: tuple[str, ...] = tuple(dict.fromkeys([*_OTHERS, *_OF_SHAPE, *_OF_ONE, *_NEUTRAL, *_POOLS]))


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Let readers of the output read the input."""
    value = _same(node, site)
    if value is None:
        return None
    if any(other.uses() or other.is_graph_output() for other in node.outputs[1:]):
        raise Refusal("its second output is used")
    return Rewrite({node.outputs[0]: value}, f"{node.op_type} does nothing")


def _same(node: ir.Node, site: Site) -> ir.Value | None:
    """Return the value that the node's output is equal to."""
    op, inputs = node.op_type, node.inputs
    first = inputs[0] if inputs else None
    if op == "Where":
        return _chosen(node, site)
    if op in _NEUTRAL and len(inputs) == 2:
        return _neutral(node, site)
    if first is None:
        return None
    if op == "Identity":
        return first
    if op == "Dropout":
        return first if _is_off(node, site) else None
    if op in ("Cast", "CastLike"):
        wanted = node.outputs[0].dtype if op == "CastLike" else attribute(node, "to")
        return first if first.dtype is not None and first.dtype == wanted else None
    if op == "Transpose":
        order = attribute(node, "perm")
        rank = site.rank(first)
        order = list(reversed(range(rank))) if order is None and rank is not None else order
        return first if order is not None and list(order) == list(range(len(order))) else None
    if op == "Pad":
        pads = attribute(node, "pads") or (site.ints(inputs[1]) if len(inputs) > 1 else None)
        return first if pads is not None and not any(pads) else None
    if op in _OF_ONE:
        return first if len(node.outputs if op == "Split" else inputs) == 1 else None
    if op in _POOLS:
        return first if _is_point(node) and same(site.shape(first), site.shape(node.outputs[0])) else None
    if op == "Slice":
        steps = site.ints(inputs[4]) if len(inputs) > 4 else (1,)
        if steps is None or any(step != 1 for step in steps):
            return None
    if op == "Squeeze" and site.rank(first) is not None and site.rank(first) != site.rank(node.outputs[0]):
        return None
    return first if same(site.shape(first), site.shape(node.outputs[0])) else None


def _chosen(node: ir.Node, site: Site) -> ir.Value | None:
    if site.tensor(node.inputs[0]) is None:
        return None
    for place, truth in ((1, 1.0), (2, 0.0)):
        if site.filled_with(node.inputs[0], truth):
            value = node.inputs[place]
            return value if same(site.shape(value), site.shape(node.outputs[0])) else None
    return None


def _neutral(node: ir.Node, site: Site) -> ir.Value | None:
    number = _NEUTRAL[node.op_type]
    for kept, other in ((0, 1), (1, 0)):
        if other == 0 and node.op_type in ("Sub", "Div", "Pow"):
            continue
        value, constant = node.inputs[kept], node.inputs[other]
        if value is None or not site.filled_with(constant, number):
            continue
        if _keeps_shape(node, value, constant, site) and value.dtype == node.outputs[0].dtype:
            return value
    return None


def _keeps_shape(node: ir.Node, value: ir.Value, constant: ir.Value | None, site: Site) -> bool:
    tensor, rank = site.tensor(constant), site.rank(value)
    if tensor is not None and tensor.size == 1 and rank is not None and len(tensor.shape) <= rank:
        return True
    return same(site.shape(value), site.shape(node.outputs[0]))


def _is_off(node: ir.Node, site: Site) -> bool:
    if site.opset < 7 and not attribute(node, "is_test", 0):
        return False
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is None:
        return True
    if site.tensor(mode) is None:
        raise Refusal("training_mode is not constant")
    if not site.filled_with(mode, 0.0):
        raise Refusal("training_mode is true")
    return True


def _is_point(node: ir.Node) -> bool:
    """Whether a pool looks at one position at a time."""
    kernel, strides, pads = (attribute(node, name) or () for name in ("kernel_shape", "strides", "pads"))
    return bool(kernel) and all(size == 1 for size in (*kernel, *strides)) and not any(pads)
