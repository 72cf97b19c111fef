"""Axes that became inputs (13, 18), axes counted from the back (11), and the sizes of Split (13, 18)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.opsets import down, up
from penstock.rewriting import Refusal, Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.place import Place

REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
              "ReduceProd", "ReduceSumSquare")  # fmt: skip
PLAIN = ("ReduceSum", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")  # of one element it is the element itself


@up(13, "Squeeze", "Unsqueeze", "ReduceSum")
def axes_as_input_13(node: ir.Node, place: Place) -> Rewrite | None:
    """Axes became an input."""
    return _axes_as_input(node, place)


@up(18, *REDUCTIONS)
def axes_as_input_18(node: ir.Node, place: Place) -> Rewrite | None:
    """Axes became an input."""
    return _axes_as_input(node, place)


def _axes_as_input(node: ir.Node, place: Place) -> Rewrite | None:
    axes = place.attribute(node, "axes")
    if axes is None:
        return None
    inputs = [node.inputs[0], place.int64s(axes)] if axes else [node.inputs[0]]
    return place.renew(node, "axes became an input", inputs, axes=None)


@down(13, "Squeeze", "Unsqueeze", "ReduceSum")
def axes_as_attribute_13(node: ir.Node, place: Place) -> Rewrite | None:
    """Constant axes become an attribute."""
    return _axes_as_attribute(node, place)


@down(18, *REDUCTIONS)
def axes_as_attribute_18(node: ir.Node, place: Place) -> Rewrite | None:
    """Constant axes become an attribute."""
    return _axes_as_attribute(node, place)


def _axes_as_attribute(node: ir.Node, place: Place) -> Rewrite | None:
    given = place.input(node, 1)
    noop = place.attribute(node, "noop_with_empty_axes", 0)
    axes = None if given is None else place.need_ints(given, "axes")
    if not axes and noop:
        if node.op_type not in PLAIN:
            raise Refusal("noop_with_empty_axes=1 without axes has no form in older opsets")
        return place.renew(node, "no axes to reduce: an Identity", [node.inputs[0]], op="Identity", keepdims=None,
                           noop_with_empty_axes=None)  # fmt: skip
    if given is None and not node.attributes.get("noop_with_empty_axes"):
        return None
    if not axes and node.op_type == "Unsqueeze":
        return place.renew(node, "no axes: an Identity", [node.inputs[0]], op="Identity")
    return place.renew(node, "axes became an attribute", [node.inputs[0]], axes=list(axes) if axes else None,
                       noop_with_empty_axes=None)  # fmt: skip


COUNTED = ("ArgMax", "ArgMin", "Concat", "Flatten", "Hardmax", "LogSoftmax", "Softmax", "ReduceSum", "Split",
           "Compress", *REDUCTIONS)  # fmt: skip


@down(11, "Squeeze", "Unsqueeze", *COUNTED)
def axes_from_the_front(node: ir.Node, place: Place) -> Rewrite | None:
    """Axes counted from the back are counted from the front."""
    name = "axes" if "axes" in node.attributes else "axis"
    value = place.attribute(node, name)
    numbers = [value] if isinstance(value, int) else list(value or ())
    if all(number >= 0 for number in numbers):
        return None
    if node.op_type == "Unsqueeze":
        rank = place.need_rank(node.inputs[0]) + len(numbers)
    else:
        rank = place.need_rank(node.inputs[0])
    front = [number % rank for number in numbers]
    changed: dict[str, Any] = {name: front[0] if isinstance(value, int) else front}
    return place.renew(node, f"{name}={front} is counted from the front", **changed)


# -- Split -------------------------------------------------------------------------------------------------------------


@up(13, "Split")
def sizes_as_input(node: ir.Node, place: Place) -> Rewrite | None:
    """The sizes became an input."""
    sizes = place.attribute(node, "split")
    if sizes is None:
        return None
    return place.renew(node, "split became an input", [node.inputs[0], place.int64s(sizes)], split=None)


@down(13, "Split")
def sizes_as_attribute(node: ir.Node, place: Place) -> Rewrite | None:
    """Constant sizes become an attribute."""
    sizes = place.input(node, 1)
    if sizes is None:
        return None
    return place.renew(node, "split became an attribute", [node.inputs[0]],
                       split=list(place.need_ints(sizes, "sizes")))  # fmt: skip


@up(18, "Split")
def number_of_outputs(node: ir.Node, place: Place) -> Rewrite | None:
    """Where no sizes are given, the number of outputs is."""
    if place.input(node, 1) is not None:
        return None
    return place.renew(node, f"num_outputs={len(node.outputs)}", [node.inputs[0]], num_outputs=len(node.outputs))


@down(18, "Split")
def no_number_of_outputs(node: ir.Node, place: Place) -> Rewrite | None:
    """Equal parts need no word; unequal ones are given by their sizes, computed where the size isn't fixed."""
    from penstock.rewriting.sizes import Product

    parts = place.attribute(node, "num_outputs")
    if parts is None:
        return None
    x, axis = node.inputs[0], place.attribute(node, "axis", 0)
    assert x is not None
    shape = place.shape(x)
    size = None if shape is None else shape[axis]
    whole = size if isinstance(size, int) else size.factor if isinstance(size, Product) else None
    if whole is not None and whole % parts == 0:
        return place.renew(node, "num_outputs is dropped: the parts are equal", [x], num_outputs=None)
    if isinstance(size, int):
        most = -(-size // parts)
        sizes = [max(0, min(most, size - most * i)) for i in range(parts)]
        return place.renew(node, f"the sizes {sizes} are written out", [x, place.int64s(sizes)], num_outputs=None)
    # the largest part, and what is left for the last: ceil(n / parts) = (n + parts - 1) / parts
    dim = place.make("Gather", [place.make("Shape", [x]), place.int64s([axis])], axis=0)
    most_ = place.make("Div", [place.make("Add", [dim, place.int64s([parts - 1])]), place.int64s([parts])])
    last = place.make("Sub", [dim, place.make("Mul", [most_, place.int64s([parts - 1])])])
    given = place.make("Concat", [most_] * (parts - 1) + [last], axis=0)
    return place.renew(node, "the sizes of the parts are computed", [x, given], num_outputs=None)
