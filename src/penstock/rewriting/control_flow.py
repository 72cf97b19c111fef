"""What is known of the values inside the bodies of If, Loop and Scan, and of what comes out of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.rewriting.knowledge import Knowledge, Rule, Shape
from penstock.rewriting.sizes import equal
from penstock.rewriting.walk import bodies_in, nodes_in

if TYPE_CHECKING:
    import onnx_ir as ir

MOST_ATTEMPTS = 4  # at the shapes of what a body carries from turn to turn


def _if(node: ir.Node, known: Knowledge) -> None:
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for branch in branches:
        known.learn(branch)
    for index, value in enumerate(node.outputs):
        a, b = (branch.outputs[index] for branch in branches)
        value.type = value.type or a.type or b.type
        if (shape := _common(known.shape(a), known.shape(b))) is not None:
            known.put(value, shape)


def _loop(node: ir.Node, known: Knowledge) -> None:
    import onnx_ir as ir

    body = node.attributes["body"].as_graph()
    known.put(body.inputs[0], (), ir.DataType.INT64)
    known.put(body.inputs[1], (), ir.DataType.BOOL)
    carried = node.inputs[2:]
    held = _settle(body, body.inputs[2:], carried, body.outputs[1 : 1 + len(carried)], known)
    for place, value in enumerate(node.outputs):
        end = body.outputs[1 + place]
        if place < len(carried):
            known.put(value, held[place], end)
            continue
        shape = known.shape(end)
        known.put(value, None if shape is None else (None, *shape), end)


def _scan(node: ir.Node, known: Knowledge) -> None:
    body = node.attributes["body"].as_graph()
    scanned = int(node.attributes["num_scan_inputs"].value)
    states = len(body.inputs) - scanned
    outer = node.inputs[-len(body.inputs) :]  # opset 8 has the sequence lengths before
    held: list[Shape | None] = [None] * states
    if known.opset >= 9:
        axes = node.attributes["scan_input_axes"].value if "scan_input_axes" in node.attributes else [0] * scanned
        for inner, value, axis in zip(body.inputs[states:], outer[states:], axes, strict=True):
            shape = known.shape(value)
            if shape is not None:
                at = int(axis) % len(shape)
                shape = (*shape[:at], *shape[at + 1 :])
            known.put(inner, shape, value)
        held = _settle(body, body.inputs[:states], outer[:states], body.outputs[:states], known)
    else:
        known.learn(body, believed=False)
    for place, value in enumerate(node.outputs):
        end = body.outputs[place]
        shape = known.shape(end)
        if place < states:
            known.put(value, held[place], end)
        elif known.opset >= 9 and "scan_output_axes" not in node.attributes:
            known.put(value, None if shape is None else (None, *shape), end)
        else:
            known.put(value, None, end)


def _settle(
    body: ir.Graph, inner: Sequence[ir.Value], outer: Sequence[ir.Value | None], ends: Sequence[ir.Value],
    known: Knowledge,
) -> list[Shape | None]:  # fmt: skip
    """Learn a body that is run over and over; return the shapes that its carried values have at every turn.

    A value begins with the shape of what is handed in. If every turn then ends with the shapes that it began with, they
    hold for all turns, by induction; sizes in which a turn differs are let go, and the body is looked at once more.
    """
    nodes = nodes_in(body)
    assumed = [known.shape(value) for value in outer]
    for attempt in range(MOST_ATTEMPTS):
        if attempt == MOST_ATTEMPTS - 1 or not known.spend(len(nodes)):
            assumed = [None] * len(assumed)
        for value, shape, start in zip(inner, assumed, outer, strict=True):
            known.shapes.pop(value, None)
            known.put(value, shape, start)
        known.learn(body, believed=False)
        kept = [_common(shape, known.shape(end)) for shape, end in zip(assumed, ends, strict=True)]
        if all(one == other for one, other in zip(kept, assumed, strict=True)):
            break
        assumed = kept
        for node in nodes:
            for value in (*node.outputs, *(v for one in bodies_in(node) for v in one.inputs)):
                known.shapes.pop(value, None)
                known.elements.pop(value, None)
    return assumed


def _common(one: Shape | None, other: Shape | None) -> Shape | None:
    """Return what two shapes have in common."""
    if one is None or other is None or len(one) != len(other):
        return None
    return tuple(x if equal(x, y) else None for x, y in zip(one, other, strict=True))


RULES: dict[str, Rule] = {"If": _if, "Loop": _loop, "Scan": _scan}
