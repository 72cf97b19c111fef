"""Make a Softmax of exp(x − max(x)) / sum(exp(x − max(x))).

1. Maximum and sum over one axis, kept as an axis of size 1, or brought back by a Reshape or Unsqueeze.
2. Below opset 13 Softmax runs over all axes from one on: there only the last axis.
3. Without the maximum (exp(x) / sum(exp(x))) as well: Softmax is that, and doesn't overflow.

Source: the function body of Softmax-13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import need_enclosed
from penstock.rewriting import Rewrite
from penstock.rewriting.site import Site, attribute
from penstock.rewriting.sizes import equal

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.rewriting.knowledge import Shape

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("Div",)


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from its division."""
    power = site.maker(node.inputs[0], "Exp")
    total = _reduced(node.inputs[1], "ReduceSum", site)
    if power is None or total is None or total[0] is not power.outputs[0]:
        return None
    _, axis, parts = total
    nodes, x = [power, *parts], power.inputs[0]
    less = site.maker(x, "Sub")
    largest = None if less is None else _reduced(less.inputs[1], "ReduceMax", site)
    if less is not None and largest is not None and largest[0] is less.inputs[0] and largest[1] == axis:
        nodes += [less, *largest[2]]
        x = less.inputs[0]
    rank = site.rank(x)
    if x is None or rank is None or (site.opset < 13 and axis != rank - 1):
        return None
    need_enclosed(nodes, node)
    return site.instead(node, site.make("Softmax", [x], axis=axis), f"{len(nodes) + 1} nodes are a Softmax")


def _reduced(value: ir.Value | None, op: str, site: Site) -> tuple[ir.Value, int, list[ir.Node]] | None:
    """Return what is reduced over which one axis, and by which nodes, where the axis is there afterwards."""
    nodes = []
    wanted = site.shape(value)
    if back := site.maker(value, "Reshape", "Unsqueeze"):
        nodes.append(back)
        value = back.inputs[0]
    node = site.maker(value, op)
    shape = None if node is None else site.shape(node.inputs[0])
    if node is None or shape is None or node.inputs[0] is None:
        return None
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1:
        axes = site.ints(node.inputs[1])
    if axes is None or len(axes) != 1:
        return None
    axis = int(axes[0]) % len(shape)
    if back is None:
        return (node.inputs[0], axis, [node]) if attribute(node, "keepdims", 1) else None
    kept = _same_but_one((*shape[:axis], 1, *shape[axis + 1 :]), wanted)
    return (node.inputs[0], axis, [*nodes, node]) if kept else None


def _same_but_one(a: Shape, b: Shape | None) -> bool:
    """Whether two shapes of as many elements are the same: all sizes, one that isn't known left aside."""
    if b is None or len(a) != len(b) or 0 in a:
        return False
    differ = [(x, y) for x, y in zip(a, b, strict=True) if not equal(x, y)]
    return not differ or (len(differ) == 1 and None in differ[0])
