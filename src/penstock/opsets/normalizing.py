"""BatchNormalization (9, 14, 15), and LayerNormalization, RMSNormalization, GroupNormalization spelt out.

y = (x - μ) / √(σ² + ε) · γ + β; RMSNormalization is without μ and β (Ba et al. 2016, Zhang and Sennrich 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.opsets import down, up
from penstock.rewriting import Refusal, Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.place import Place


@up(9, "BatchNormalization")
def per_channel(node: ir.Node, place: Place) -> Rewrite | None:
    """Statistics are per channel. Refused: ``spatial=0``, which has them per element."""
    if not place.attribute(node, "spatial", 1):
        raise Refusal("spatial=0 has statistics for each element, which opset 9 has no longer")
    node.attributes.pop("spatial", None)
    return None


@up(14, "BatchNormalization")
@down(14, "BatchNormalization")
def inference_only(node: ir.Node, place: Place) -> Rewrite | None:
    """In inference nothing changed. Refused: training, whose outputs differ."""
    if place.attribute(node, "training_mode", 0):
        raise Refusal("training_mode=1 can be said from opset 14 on only")
    if any(place.reads(node, index) for index in range(1, len(node.outputs))):
        raise Refusal("its outputs of training are read, which opset 14 has changed")
    if len(node.outputs) > 1:
        node.resize_outputs(1)
    return None


@down(15, "BatchNormalization")
def one_type(node: ir.Node, place: Place) -> Rewrite | None:
    """Where data and parameters have other types, it computes in the parameters' type."""
    x = node.inputs[0]
    assert x is not None
    dtype, others = place.dtype(x), {place.dtype(value) for value in node.inputs[1:]}
    if others == {dtype}:
        return None
    if len(others) != 1 or others != {max((*others, dtype), key=lambda one: one.itemsize)}:
        raise Refusal("its parameters have types that opset 14 doesn't take together")
    wide = others.pop()
    made = place.anew(node, [place.cast(x, wide), *node.inputs[1:]])[0]
    place.typed(made, wide, x)
    return Rewrite({node.outputs[0]: place.cast(made, dtype)}, f"it computes in {wide.name.lower()}")


@down(17, "LayerNormalization")
def layer_normalization_spelt(node: ir.Node, place: Place) -> Rewrite:
    """Means of the last axes, and a sum of products."""
    x, scale, bias = (place.input(node, index) for index in range(3))
    assert x is not None and scale is not None
    dtype, stash = place.dtype(x), _stash(node, place)
    axes = _axes(node, place, x)
    wide = x if dtype == stash else place.cast(x, stash)
    mean = place.axes("ReduceMean", wide, axes, keepdims=1)
    centred = place.typed(place.make("Sub", [wide, mean]), stash, x)
    square = place.axes("ReduceMean", place.typed(place.make("Mul", [centred, centred]), stash, x), axes, keepdims=1)
    deviation = _root(node, place, square, stash)
    values = {}
    if place.reads(node, 1):
        values[node.outputs[1]] = mean
    if place.reads(node, 2):
        values[node.outputs[2]] = place.make("Reciprocal", [deviation])
    made = _narrow(place, place.make("Div", [centred, deviation]), stash, dtype, x)
    return Rewrite({node.outputs[0]: _scaled(place, made, scale, bias)} | values, "spelt out")


@down(23, "RMSNormalization")
def rms_normalization_spelt(node: ir.Node, place: Place) -> Rewrite:
    """The mean of the squares of the last axes."""
    x, scale = node.inputs[0], node.inputs[1]
    assert x is not None and scale is not None
    dtype, stash = place.dtype(x), _stash(node, place)
    wide = x if dtype == stash else place.cast(x, stash)
    square = place.typed(place.make("Mul", [wide, wide]), stash, x)
    deviation = _root(node, place, place.axes("ReduceMean", square, _axes(node, place, x), keepdims=1), stash)
    made = _narrow(place, place.make("Div", [wide, deviation]), stash, dtype, x)
    return Rewrite({node.outputs[0]: _scaled(place, made, scale, None)}, "spelt out")


def _stash(node: ir.Node, place: Place) -> ir.DataType:
    import onnx_ir as ir

    return ir.DataType(place.attribute(node, "stash_type", 1))


def _axes(node: ir.Node, place: Place, x: ir.Value) -> Sequence[int]:
    axis = place.attribute(node, "axis", -1)
    return range(axis, 0) if axis < 0 else range(axis, place.need_rank(x))


def _root(node: ir.Node, place: Place, square: ir.Value, dtype: ir.DataType) -> ir.Value:
    import numpy as np

    epsilon = place.scalar_constant(float(np.float32(place.attribute(node, "epsilon", 1e-5))), dtype)
    return place.make("Sqrt", [place.make("Add", [square, epsilon])])


def _narrow(place: Place, value: ir.Value, stash: ir.DataType, dtype: ir.DataType, like: ir.Value) -> ir.Value:
    place.typed(value, stash, like)
    return value if stash == dtype else place.cast(value, dtype)


def _scaled(place: Place, value: ir.Value, scale: ir.Value, bias: ir.Value | None) -> ir.Value:
    made = place.make("Mul", [value, scale])
    return made if bias is None else place.make("Add", [made, bias])


# -- groups ------------------------------------------------------------------------------------------------------------


@down(18, "GroupNormalization")
def groups_as_instances(node: ir.Node, place: Place) -> Rewrite:
    """Each group is an instance of one channel, with a scale and a bias of its own."""
    x, scale, bias = node.inputs[:3]
    assert x is not None
    made = _by_groups(node, place, x, scale, bias)
    return Rewrite({node.outputs[0]: _as_before(place, made, x)}, "an InstanceNormalization of the groups")


@down(21, "GroupNormalization")
def scale_by_channel_apart(node: ir.Node, place: Place) -> Rewrite:
    """Each group is an instance of one channel; scale and bias of the channels come after."""
    import numpy as np

    x, scale, bias = node.inputs[:3]
    assert x is not None and scale is not None
    dtype, stash, groups = place.dtype(x), _stash(node, place), place.attribute(node, "num_groups")
    wide = x if dtype == stash else place.cast(x, stash)
    ones, zeros = (place.constant(filled(groups, stash.numpy()), stash) for filled in (np.ones, np.zeros))
    made = _as_before(place, place.typed(_by_groups(node, place, wide, ones, zeros), stash), x)
    made = _narrow(place, made, stash, dtype, x)
    inner = range(1, place.need_rank(x) - 1)
    if inner:
        scale, bias = (place.axes("Unsqueeze", one, inner) for one in (scale, bias) if one is not None)
    return Rewrite({node.outputs[0]: _scaled(place, made, scale, bias)}, "an InstanceNormalization of the groups")


def _by_groups(node: ir.Node, place: Place, x: ir.Value, scale: ir.Value | None, bias: ir.Value | None) -> ir.Value:
    groups, epsilon = place.attribute(node, "num_groups"), float(place.attribute(node, "epsilon", 1e-5))
    grouped = place.make("Reshape", [x, place.int64s([0, groups, -1])])
    return place.make("InstanceNormalization", [grouped, scale, bias], epsilon=epsilon)


def _as_before(place: Place, value: ir.Value, x: ir.Value) -> ir.Value:
    static = place.static(x)
    return place.make("Reshape", [value, place.make("Shape", [x]) if static is None else place.int64s(static)])


@up(21, "GroupNormalization")
def by_channel(node: ir.Node, place: Place) -> Rewrite:
    """Scale and bias of a group are repeated for its channels."""
    x = node.inputs[0]
    shape, groups = place.shape(x), place.attribute(node, "num_groups")
    channels = None if shape is None else shape[1]
    if not isinstance(channels, int):
        raise Refusal("the number of its channels isn't fixed, and opset 21 wants a scale for each")
    repeated = []
    for value in node.inputs[1:3]:
        assert value is not None
        column = place.axes("Unsqueeze", value, [1])
        wide = place.make("Expand", [column, place.int64s([groups, channels // groups])])
        repeated.append(place.make("Reshape", [wide, place.int64s([channels])]))
    stash = int(place.dtype(x))
    return place.renew(node, "scale and bias are repeated for the channels of a group", [x, *repeated],
                       stash_type=stash)  # fmt: skip
