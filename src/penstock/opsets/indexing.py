"""Slice (10), TopK (10, 11), Gather, Scatter and OneHot with indices from the back (11), DepthToSpace (11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.opsets import down, up
from penstock.rewriting import Refusal, Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.place import Place

END = 2**63 - 1


@up(10, "Slice")
def bounds_as_inputs(node: ir.Node, place: Place) -> Rewrite:
    """Starts, ends and axes became inputs."""
    starts, ends, axes = (place.attribute(node, name) for name in ("starts", "ends", "axes"))
    inputs = [node.inputs[0], place.int64s(starts), place.int64s(ends)]
    if axes is not None:
        inputs.append(place.int64s(axes))
    return place.renew(node, "starts, ends and axes became inputs", inputs, starts=None, ends=None, axes=None)


@down(11, "Slice")
def slice_axes_from_the_front(node: ir.Node, place: Place) -> Rewrite | None:
    """Axes counted from the back are counted from the front."""
    given = place.input(node, 3)
    if given is None:
        return None
    axes = place.need_ints(given, "axes")
    if all(axis >= 0 for axis in axes):
        return None
    rank = place.need_rank(node.inputs[0])
    front = place.int64s([axis % rank for axis in axes])
    return place.renew(node, "its axes are counted from the front", [*node.inputs[:3], front, *node.inputs[4:]])


@down(10, "Slice")
def bounds_as_attributes(node: ir.Node, place: Place) -> Rewrite:
    """Constant bounds become attributes; along an axis with a step, the elements are gathered."""
    x = node.inputs[0]
    starts, ends = (list(place.need_ints(node.inputs[i], what)) for i, what in ((1, "starts"), (2, "ends")))
    given, steps = place.input(node, 3), place.input(node, 4)
    axes = list(range(len(starts))) if given is None else list(place.need_ints(given, "axes"))
    each = [1] * len(starts) if steps is None else list(place.need_ints(steps, "steps"))
    assert x is not None
    shape, made = place.shape(x), x
    for axis, start, end, step in zip(axes, starts, ends, each, strict=True):
        if step == 1:
            continue
        size = None if shape is None else shape[axis]
        if not isinstance(size, int):
            raise Refusal(f"its step is {step} along an axis of no fixed size, and older opsets have no steps")
        chosen = list(range(size))[slice(*_slice(start, end, step))]
        made = place.make("Gather", [made, place.int64s(chosen)], axis=axis)
        made.type = x.type
    plain = [i for i, step in enumerate(each) if step == 1]
    if plain:
        starts, ends, axes = ([numbers[i] for i in plain] for numbers in (starts, ends, axes))
        made = place.make("Slice", [made], starts=starts, ends=ends, axes=axes)
    return Rewrite({node.outputs[0]: made}, "starts, ends and axes became attributes")


def _slice(start: int, end: int, step: int) -> tuple[int, int | None, int]:
    return start, None if step < 0 and end < -(2**31) else end, step


@up(10, "TopK")
def k_as_input(node: ir.Node, place: Place) -> Rewrite:
    """``k`` became an input."""
    k = place.int64s([place.attribute(node, "k")])
    return place.renew(node, "k became an input", [node.inputs[0], k], k=None)


@down(10, "TopK")
def k_as_attribute(node: ir.Node, place: Place) -> Rewrite:
    """A constant ``k`` becomes an attribute."""
    return place.renew(node, "k became an attribute", [node.inputs[0]], k=place.need_ints(node.inputs[1], "k")[0])


@down(11, "TopK")
def largest_only(node: ir.Node, place: Place) -> Rewrite | None:
    """The smallest are the largest of the negatives; sorted is also in any order."""
    x, axis = node.inputs[0], place.attribute(node, "axis", -1)
    assert x is not None
    changed = {"sorted": None, "largest": None, "axis": axis if axis >= 0 else axis % place.need_rank(x)}
    if place.attribute(node, "largest", 1):
        if axis >= 0 and place.attribute(node, "sorted", 1):
            return None
        return place.renew(node, f"axis={changed['axis']}, sorted", **changed)
    if not place.dtype(x).is_floating_point():
        raise Refusal("the smallest of whole numbers: opset 10 has the largest only, and the least number no negative")
    negative = place.typed(place.make("Neg", [x]), place.dtype(x), x)
    values, indices = place.anew(node, [negative, *node.inputs[1:]], **changed)
    values.type = x.type
    named = {node.outputs[0]: place.make("Neg", [values]), node.outputs[1]: indices}
    return Rewrite(named, "the largest of the negatives")


@down(11, "Gather", "GatherElements", "ScatterElements", "ScatterND", "GatherND")
def indices_from_the_front(node: ir.Node, place: Place) -> Rewrite | None:
    """Indices counted from the back are counted from the front; Elements' scatter is called Scatter."""
    if node.op_type in ("GatherElements", "ScatterND", "GatherND"):
        raise Refusal(f"{node.op_type} came with opset 11, and nothing before says the same")
    x, indices = node.inputs[0], node.inputs[1]
    assert x is not None and indices is not None
    axis = place.attribute(node, "axis", 0)
    if axis < 0:
        axis %= place.need_rank(x)
    front = _front(place, x, indices, axis)
    op = "Scatter" if node.op_type == "ScatterElements" else node.op_type
    if front is indices and op == node.op_type and axis == place.attribute(node, "axis", 0):
        return None
    what = "its indices are counted from the front" if front is not indices else "axis and name of the older opset"
    return place.renew(node, what, [x, front, *node.inputs[2:]], op=op, axis=axis)


def _front(place: Place, x: ir.Value, indices: ir.Value, axis: int) -> ir.Value:
    """Return indices of 0 or more: as they are where that is known, else with the size added to negative ones."""
    import numpy as np

    known = place.ints(indices)
    if known is None and place.tensor(indices) is not None and place.array(indices).size <= 1 << 20:  # type: ignore[union-attr]  # it is a tensor
        known = tuple(int(item) for item in place.array(indices).reshape(-1))  # type: ignore[union-attr]  # as above
    if known is not None and all(item >= 0 for item in known):
        return indices
    dtype, shape = place.dtype(indices), place.shape(x)
    size = None if shape is None else shape[axis]
    if known is not None and isinstance(size, int):
        own = place.static(indices)
        assert own is not None
        return place.constant(np.array([item % size for item in known], dtype.numpy()).reshape(own), dtype)
    dim = place.make("Gather", [place.make("Shape", [x]), place.constant(np.array(axis))], axis=0)
    import onnx_ir as ir

    place.typed(dim, ir.DataType.INT64)
    dim = dim if dtype == ir.DataType.INT64 else place.cast(dim, dtype)
    below = place.make("Less", [indices, place.scalar_constant(0, dtype)])
    moved = place.typed(place.make("Add", [indices, dim]), dtype, indices)
    return place.typed(place.make("Where", [below, moved, indices]), dtype, indices)


@up(11, "Scatter")
def scatter_elements(node: ir.Node, place: Place) -> Rewrite:
    """It is called ScatterElements."""
    return place.renew(node, "it is called ScatterElements", op="ScatterElements")


@up(11, "OneHot")
def below_zero_is_off(node: ir.Node, place: Place) -> Rewrite | None:
    """Negative indices stood for no element; they become an index beyond the last."""
    return _one_hot(node, place, "negative indices stay off", up=True)


@down(11, "OneHot")
def from_the_back_is_on(node: ir.Node, place: Place) -> Rewrite | None:
    """Negative indices, which count from the back, are counted from the front."""
    return _one_hot(node, place, "its indices are counted from the front", up=False)


def _one_hot(node: ir.Node, place: Place, what: str, *, up: bool) -> Rewrite | None:
    import numpy as np
    import onnx_ir as ir

    indices, depth = node.inputs[0], node.inputs[1]
    assert indices is not None and depth is not None
    axis = place.attribute(node, "axis", -1)
    front = axis if axis >= -1 or up else axis % (place.need_rank(indices) + 1)
    known = place.ints(indices)
    if known is not None and all(item >= 0 for item in known):
        return None if front == axis else place.renew(node, "its axis is counted from the front", axis=front)
    dtype = ir.DataType.INT64
    whole = indices if place.dtype(indices) == dtype else place.cast(indices, dtype)
    size = depth if place.dtype(depth) == dtype else place.cast(depth, dtype)
    size = place.make("Reshape", [size, place.constant(np.zeros(0, np.int64))])
    place.known.put(size, (), dtype)
    below = place.make("Less", [whole, place.scalar_constant(0, dtype)])
    other = size
    if not up:  # what is below the first from the back stays off
        moved = place.typed(place.make("Add", [whole, size]), dtype, whole)
        still = place.make("Less", [moved, place.scalar_constant(0, dtype)])
        other = place.typed(place.make("Where", [still, size, moved]), dtype, whole)
    chosen = place.typed(place.make("Where", [below, other, whole]), dtype, whole)
    return place.renew(node, what, [chosen, *node.inputs[1:]], axis=front)


@down(11, "DepthToSpace")
def columns_first(node: ir.Node, place: Place) -> Rewrite | None:
    """``mode="CRD"`` is a Reshape, a Transpose and a Reshape."""
    if place.attribute(node, "mode", "DCR") == "DCR":
        return None
    x, block = node.inputs[0], place.attribute(node, "blocksize")
    assert x is not None
    n, c, h, w = place.need_static(x)
    split = place.make("Reshape", [x, place.int64s([n, c // block**2, block, block, h, w])])
    turned = place.make("Transpose", [split], perm=[0, 1, 4, 2, 5, 3])
    made = place.make("Reshape", [turned, place.int64s([n, c // block**2, h * block, w * block])])
    return Rewrite({node.outputs[0]: made}, "mode=CRD spelt out")


@down(18, "ScatterElements", "ScatterND")
def fewer_reductions(node: ir.Node, place: Place) -> Rewrite | None:
    """Refused: ``reduction`` max and min."""
    if (word := place.attribute(node, "reduction", "none")) in ("max", "min"):
        raise Refusal(f"reduction={word} can be said from opset 18 on only")
    return None
