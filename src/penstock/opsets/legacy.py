"""Opsets before 7: attributes that became inputs, names and types that changed, and the old broadcasting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.opsets import up
from penstock.rewriting import Refusal, Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.place import Place


@up(7, "Add", "Sub", "Mul", "Div", "And", "Or", "Xor", "Equal", "Greater", "Less", "Pow")
def broadcast_as_numpy(node: ir.Node, place: Place) -> Rewrite | None:
    """The second operand's axes are written out as numpy's broadcasting wants them."""
    start = place.attribute(node, "axis")
    for name in ("broadcast", "axis"):
        node.attributes.pop(name, None)
    a, b = node.inputs[0], node.inputs[1]
    if start is None or a is None or b is None:
        return None
    rank, own = place.need_rank(a), place.need_rank(b)
    missing = rank - (start % rank if rank else 0) - own
    if missing <= 0:
        return None
    wide = place.axes("Unsqueeze", b, range(own, own + missing))
    return place.renew(node, f"axis={start} became an Unsqueeze of the second operand", [a, wide])


@up(7, "PRelu")
def slope_as_numpy(node: ir.Node, place: Place) -> Rewrite | None:
    """A slope for each channel gets the axes that stand behind the channel's."""
    x, slope = node.inputs[0], node.inputs[1]
    assert slope is not None
    rank, own = place.need_rank(x), place.need_rank(slope)
    if own != 1 or rank <= 2 or place.static(slope) == (1,):
        return None
    wide = place.axes("Unsqueeze", slope, range(1, rank - 1))
    return place.renew(node, "the slope got the axes behind the channel's", [x, wide])


@up(7, "Gemm")
def gemm_broadcasts(node: ir.Node, place: Place) -> Rewrite | None:
    """C broadcasts of itself."""
    node.attributes.pop("broadcast", None)
    return None


@up(7, "BatchNormalization", "Dropout")
def no_is_test(node: ir.Node, place: Place) -> Rewrite | None:
    """Inference is all there is, so a node set up for it loses the flag."""
    if not place.attribute(node, "is_test", 0):
        raise Refusal("it is set up for training (is_test=0), and opset 7 has inference only")
    del node.attributes["is_test"]
    return None


@up(5, "Reshape")
def shape_as_input(node: ir.Node, place: Place) -> Rewrite:
    """The shape became an input."""
    shape = place.attribute(node, "shape", ())
    return place.renew(node, "shape became an input", [node.inputs[0], place.int64s(shape)], shape=None,
                       consumed_inputs=None)  # fmt: skip


@up(6, "Cast")
def type_as_number(node: ir.Node, place: Place) -> Rewrite:
    """The type's name became its number."""
    import onnx_ir as ir

    name = str(place.attribute(node, "to", "")).upper()
    if name not in ir.DataType.__members__:
        raise Refusal(f"there is no type {name!r}")
    return place.renew(node, f"to={name} became the type's number", to=int(ir.DataType[name]))


@up(6, "Clip")
def no_bounds(node: ir.Node, place: Place) -> Rewrite | None:
    """A bound that isn't given is written out as infinite: opset 6 has the largest float as its default."""
    import math

    given: dict[str, Any] = {
        name: bound for name, bound in (("min", -math.inf), ("max", math.inf)) if name not in node.attributes
    }
    if not given:
        return None
    return place.renew(node, f"{' and '.join(given)} written out as infinite", consumed_inputs=None, **given)


@up(4, "Concat")
def concat_axis(node: ir.Node, place: Place) -> Rewrite | None:
    """The axis is written out: it was 1 by default."""
    if "axis" in node.attributes:
        return None
    return place.renew(node, "axis=1 is written out", axis=1)


@up(2, "Split")
def split_sizes_as_attribute(node: ir.Node, place: Place) -> Rewrite | None:
    """Sizes were an input."""
    sizes = place.input(node, 1)
    axis = place.attribute(node, "axis", 0)
    if sizes is None:
        return None
    numbers = place.need_ints(sizes, "sizes")
    return place.renew(node, "sizes became an attribute", [node.inputs[0]], split=list(numbers), axis=axis)


@up(2, "Pad")
def pads_by_name(node: ir.Node, place: Place) -> Rewrite:
    """``paddings`` became ``pads``."""
    pads = place.attribute(node, "paddings", ())
    return place.renew(node, "paddings became pads", paddings=None, pads=list(pads))


@up(6, "Tile")
def repeats_for_all_axes(node: ir.Node, place: Place) -> Rewrite:
    """Repeats are given for every axis."""
    import numpy as np

    tiles, axis = (int(place.need_number(place.input(node, i), what)) for i, what in ((1, "tiles"), (2, "axis")))
    repeats = np.ones(place.need_rank(node.inputs[0]), np.int64)
    repeats[axis] = tiles
    return place.renew(node, "tiles and axis became repeats", [node.inputs[0], place.constant(repeats)])


@up(7, "Upsample")
def scales_for_all_axes(node: ir.Node, place: Place) -> Rewrite:
    """Scales are given for every axis."""
    scales = [1.0, 1.0, *(float(place.attribute(node, f"{name}_scale")) for name in ("height", "width"))]
    return place.renew(node, "height_scale and width_scale became scales", scales=scales, height_scale=None,
                       width_scale=None)  # fmt: skip


@up(2, "LpPool", "GlobalLpPool")
def whole_power(node: ir.Node, place: Place) -> Rewrite:
    """The power is a whole number."""
    power = float(place.attribute(node, "p", 2.0))
    if power != int(power):
        raise Refusal(f"p={power:g} is no whole number, as opset 2 wants it")
    return place.renew(node, f"p={power:g} is a whole number", p=int(power))


@up(3, "GRU")
def direction_spelt(node: ir.Node, place: Place) -> Rewrite | None:
    """The default of ``direction`` was misspelt in opset 1."""
    if place.attribute(node, "direction", "foward") != "foward":
        return None
    return place.renew(node, "direction=forward", direction="forward")
