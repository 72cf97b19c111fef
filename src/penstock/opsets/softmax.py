"""Softmax, LogSoftmax and Hardmax: from opset 13 on along one axis, before that over all axes from one on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.opsets import down, up
from penstock.rewriting import Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.place import Place

FAMILY = ("Softmax", "LogSoftmax", "Hardmax")


@up(13, *FAMILY)
def along_one_axis(node: ir.Node, place: Place) -> Rewrite:
    """The axes from ``axis`` on are flattened into one, unless there is one alone."""
    x, axis = node.inputs[0], place.attribute(node, "axis", 1)
    assert x is not None
    shape = place.shape(x)
    if shape is not None:
        axis %= max(len(shape), 1)
        if all(size == 1 for size in shape[axis + 1 :]):
            return place.renew(node, f"axis={axis} is the only one that counts", axis=axis)
    flat = place.make("Flatten", [x], axis=axis)
    made = place.make(node.op_type, [flat], axis=1)
    static = place.static(x)
    back = place.make("Shape", [x]) if static is None or 0 in static else place.int64s(static)
    return Rewrite({node.outputs[0]: place.make("Reshape", [made, back])}, f"flattened from axis {axis} on and back")


@down(13, *FAMILY)
def over_the_last_axes(node: ir.Node, place: Place) -> Rewrite:
    """An inner axis is moved to the end and back, so that no other is flattened with it."""
    x, axis = node.inputs[0], place.attribute(node, "axis", -1)
    assert x is not None
    rank = place.need_rank(x)
    axis %= max(rank, 1)
    shape = place.shape(x)
    assert shape is not None
    if all(size == 1 for size in shape[axis + 1 :]):
        return place.renew(node, f"axis={axis} is the last that counts", axis=axis)
    order = [i for i in range(rank) if i != axis] + [axis]
    back = [order.index(i) for i in range(rank)]
    turned = place.make("Transpose", [x], perm=order)
    made = place.make(node.op_type, [turned], axis=rank - 1)
    what = f"axis {axis} is moved to the end and back"
    return Rewrite({node.outputs[0]: place.make("Transpose", [made], perm=back)}, what)
