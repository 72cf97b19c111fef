"""What is known of the values inside the bodies of If, Loop and Scan, and of what comes out of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.rewriting.knowledge import Knowledge, Rule, Shape, declared
from penstock.rewriting.sizes import equal

if TYPE_CHECKING:
    import onnx_ir as ir


def _if(node: ir.Node, known: Knowledge) -> None:
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for branch in branches:
        known.learn(branch)
    for index, value in enumerate(node.outputs):
        a, b = (branch.outputs[index] for branch in branches)
        value.type = value.type or a.type or b.type
        one, other = known.shape(a), known.shape(b)
        if one is not None and other is not None and len(one) == len(other):
            known.put(value, [x if equal(x, y) else None for x, y in zip(one, other, strict=True)])


def _enter(value: ir.Value, known: Knowledge, shape: Shape | None, like: ir.Value | ir.DataType | None) -> None:
    """Note what a body's input is; what the body declares of it comes second."""
    if shape is None and value.shape is not None:
        shape = declared(value.shape)
    known.put(value, shape, like)


def _loop(node: ir.Node, known: Knowledge) -> None:
    import onnx_ir as ir

    body = node.attributes["body"].as_graph()
    carried = node.inputs[2:]
    _enter(body.inputs[0], known, (), ir.DataType.INT64)
    _enter(body.inputs[1], known, (), ir.DataType.BOOL)
    for inner, outer in zip(body.inputs[2:], carried, strict=True):
        _enter(inner, known, None, outer)  # the shape may change from turn to turn
    known.learn(body)
    for place, value in enumerate(node.outputs):
        end = body.outputs[1 + place]
        if place < len(carried):
            known.put(value, None, end)
            continue
        shape = known.shape(end)
        known.put(value, None if shape is None else (None, *shape), end)


def _scan(node: ir.Node, known: Knowledge) -> None:
    body = node.attributes["body"].as_graph()
    scanned = int(node.attributes["num_scan_inputs"].value)
    states = len(body.inputs) - scanned
    outer = node.inputs[-len(body.inputs) :]  # opset 8 has the sequence lengths before
    if known.opset >= 9:
        axes = node.attributes["scan_input_axes"].value if "scan_input_axes" in node.attributes else [0] * scanned
        for place, (inner, value) in enumerate(zip(body.inputs, outer, strict=True)):
            shape = known.shape(value)
            if place >= states and shape is not None:
                axis = int(axes[place - states]) % len(shape)
                shape = (*shape[:axis], *shape[axis + 1 :])
            _enter(inner, known, shape if place >= states else None, value)
    known.learn(body)
    for place, value in enumerate(node.outputs):
        end = body.outputs[place]
        shape = known.shape(end)
        if place < states:
            known.put(value, None, end)
        elif known.opset >= 9 and "scan_output_axes" not in node.attributes:
            known.put(value, None if shape is None else (None, *shape), end)
        else:
            known.put(value, None, end)


RULES: dict[str, Rule] = {"If": _if, "Loop": _loop, "Scan": _scan}
