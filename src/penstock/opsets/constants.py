"""Constant (12), Shape (15), Reshape (14), CastLike (15), ConstantOfShape (9), Range (11, 27), Trilu (14), Pad (11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.opsets import down, up
from penstock.rewriting import Refusal, Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.place import Place

MOST_ELEMENTS = 1 << 16  # of a result that becomes a constant


@down(9, "Constant")
def as_initializer(node: ir.Node, place: Place) -> Rewrite | None:
    """What is no float becomes an initializer: opset 8 has Constants of floats only."""
    tensor = place.tensor(node.outputs[0])
    if place.in_function(node) or tensor is None or tensor.dtype.is_floating_point():
        return None
    return Rewrite({node.outputs[0]: place.held(tensor)}, "an initializer: opset 8 has Constants of floats only")


@down(12, "Constant")
def as_tensor(node: ir.Node, place: Place) -> Rewrite | None:
    """Numbers and texts become a tensor."""
    return None if "value" in node.attributes else _as_tensor(node, place)


@down(11, "Constant")
def not_sparse(node: ir.Node, place: Place) -> Rewrite | None:
    """Refused: a sparse tensor."""
    if "sparse_value" in node.attributes:
        raise Refusal("sparse_value can be said from opset 11 on only")
    return None


def _as_tensor(node: ir.Node, place: Place) -> Rewrite | None:
    import onnx_ir as ir
    from onnx_ir import convenience

    if "sparse_value" in node.attributes or any(one.is_ref() for one in node.attributes.values()):
        return None
    tensor = convenience.get_const_tensor(node.outputs[0])
    if tensor is None:
        raise Refusal("its value can't be read")
    value = ir.tensor(tensor.numpy(), dtype=tensor.dtype)
    dropped: dict[str, Any] = {name: None for name in node.attributes if name != "value"}
    return place.renew(node, "its value became a tensor", value=value, **dropped)


@down(15, "Shape")
def whole_shape_sliced(node: ir.Node, place: Place) -> Rewrite | None:
    """``start`` and ``end`` become a Slice of the whole shape."""
    start, end = place.attribute(node, "start", 0), place.attribute(node, "end")
    if not start and end is None:
        return None
    whole = place.make("Shape", [node.inputs[0]])
    last = 2**31 - 1 if end is None else end
    made = place.make("Slice", [whole, place.int64s([start]), place.int64s([last]), place.int64s([0])])
    return Rewrite({node.outputs[0]: made}, "start and end became a Slice")


@down(14, "Reshape")
def zero_copies(node: ir.Node, place: Place) -> Rewrite | None:
    """``allowzero=1`` goes where no size of the shape can be 0, or the input's is 0 in the same place."""
    if not place.attribute(node, "allowzero", 0):
        return None
    x, shape = node.inputs[0], node.inputs[1]
    wanted, own = place.sizes(shape), place.shape(x)
    if wanted is None and (array := place.array(shape)) is not None:
        wanted = tuple(int(one) for one in array.reshape(-1))
    if wanted is None:
        raise Refusal("allowzero=1, and its shape may hold a 0, which opset 13 reads as a size to copy")
    open_: list[int] = []
    for index, size in enumerate(wanted):
        same = own is not None and index < len(own) and own[index] == size and size is not None
        if not same and (size is None or size == 0 or not isinstance(size, int)):
            open_.append(index)
    if not open_:
        return place.renew(node, "allowzero=1 is dropped, no 0 in its shape means another size", allowzero=None)
    if len(open_) == 1 and wanted[open_[0]] != 0 and -1 not in wanted and all(
            isinstance(size, int) and size > 0 for index, size in enumerate(wanted) if index != open_[0]):  # fmt: skip
        numbers = [-1 if index == open_[0] else size for index, size in enumerate(wanted)]
        new = place.int64s(numbers)  # type: ignore[arg-type]  # all others are numbers
        return place.renew(node, f"its shape became {numbers}", [x, new], allowzero=None)
    raise Refusal("allowzero=1, and its shape may hold a 0, which opset 13 reads as a size to copy")


@down(15, "CastLike")
def cast_to_the_type(node: ir.Node, place: Place) -> Rewrite:
    """The type of the second input is known: a Cast to it."""
    x = node.inputs[0]
    assert x is not None
    dtype = place.dtype(node.inputs[1])
    return Rewrite({node.outputs[0]: place.cast(x, dtype)}, f"a Cast to {dtype.name.lower()}")


@down(9, "ConstantOfShape")
def filled(node: ir.Node, place: Place) -> Rewrite:
    """A constant where the shape is fixed, else an Expand of the value."""
    import numpy as np
    import onnx_ir as ir

    value = place.attribute(node, "value")
    tensor = np.zeros(1, np.float32) if value is None else value.numpy()
    dtype = ir.DataType.FLOAT if value is None else value.dtype
    shape = node.inputs[0]
    assert shape is not None
    if (known := place.ints(shape)) is not None and np.prod(known) <= MOST_ELEMENTS:
        return place.fixed(node, np.full(known, tensor.reshape(-1)[0]), dtype, "a constant")
    made = place.make("Expand", [place.constant(tensor.reshape(1), dtype), shape])
    return Rewrite({node.outputs[0]: made}, "an Expand of its value")


@down(11, "Range")
def numbers_written_out(node: ir.Node, place: Place) -> Rewrite | None:
    """Fixed numbers become a Constant; others keep the loop of the function body."""
    import numpy as np

    numbers = [place.array(value) for value in node.inputs]
    if any(number is None for number in numbers):
        return None
    dtype = place.dtype(node.inputs[0])
    found = np.arange(*[number.reshape(-1)[0] for number in numbers if number is not None]).astype(dtype.numpy())
    if found.size > MOST_ELEMENTS or not dtype.is_integer():
        return None
    return place.fixed(node, found, dtype, "a constant")


@up(27, "Range")
@down(27, "Range")
def steps_of_16_bits(node: ir.Node, place: Place) -> Rewrite | None:
    """How 16-bit floats are added up changed; they are refused, other types stay."""
    if place.dtype(node.inputs[0]).itemsize == 2 and place.dtype(node.inputs[0]).is_floating_point():
        raise Refusal("how its 16-bit floats are added up changed with opset 27 (stash_type)")
    if "stash_type" in node.attributes:
        return place.renew(node, "stash_type is dropped, which says nothing for this type", stash_type=None)
    return None


@down(14, "Trilu")
def triangle_masked(node: ir.Node, place: Place) -> Rewrite:
    """A Where of a mask: whether the column is beyond the row, shifted by ``k``."""
    import numpy as np
    import onnx_ir as ir

    x, k = node.inputs[0], place.input(node, 1)
    assert x is not None
    upper, shape, shift = place.attribute(node, "upper", 1), place.shape(x), 0.0 if k is None else place.scalar(k)
    dtype = place.dtype(x)
    if shape is None:
        raise Refusal("there is no Trilu before opset 14, and its rank isn't known")
    rows, columns = shape[-2:]
    if isinstance(rows, int) and isinstance(columns, int) and shift is not None and rows * columns <= MOST_ELEMENTS:
        kept = np.triu(np.ones((rows, columns)), int(shift)) if upper else np.tril(np.ones((rows, columns)), int(shift))
        mask = place.constant(kept > 0)
    else:
        sizes = place.make("Shape", [x])
        counted = [place.make("Gather", [sizes, place.constant(np.array(axis))], axis=0) for axis in (-2, -1)]
        zero, one = (place.constant(np.array(number)) for number in (0, 1))
        ranges = [place.typed(place.make("Range", [zero, size, one]), ir.DataType.INT64) for size in counted]
        down_ = place.axes("Unsqueeze", ranges[0], [1])
        down_ = down_ if k is None else place.make("Add", [down_, k])
        outside = place.make("Less", [ranges[1], down_] if upper else [down_, ranges[1]])
        mask = place.make("Not", [outside])
    nothing = place.scalar_constant(0, dtype)
    return Rewrite({node.outputs[0]: place.make("Where", [mask, x, nothing])}, "a Where of a mask")


# -- Pad ---------------------------------------------------------------------------------------------------------------


@up(11, "Pad")
def pads_as_input(node: ir.Node, place: Place) -> Rewrite:
    """The pads and the value became inputs."""
    value = float(place.attribute(node, "value", 0.0))
    inputs = [node.inputs[0], place.int64s(place.attribute(node, "pads"))]
    if value:
        inputs.append(place.scalar_constant(value, place.dtype(node.inputs[0])))
    return place.renew(node, "pads and value became inputs", inputs, pads=None, value=None)


@down(11, "Pad")
def pads_as_attribute(node: ir.Node, place: Place) -> Rewrite:
    """Constant pads and value become attributes."""
    pads, given = place.need_ints(node.inputs[1], "pads"), place.input(node, 2)
    value = 0.0 if given is None else place.need_number(given, "value")
    return place.renew(node, "pads and value became attributes", [node.inputs[0]], pads=list(pads), value=float(value))


@down(18, "Pad")
def pads_of_all_axes(node: ir.Node, place: Place) -> Rewrite | None:
    """Constant pads of some axes are given for all."""
    given = place.input(node, 3)
    if given is None:
        return None
    rank, axes, pads = place.need_rank(node.inputs[0]), place.need_ints(given, "axes"), node.inputs[1]
    numbers = place.need_ints(pads, "pads")
    found = [0] * 2 * rank
    for index, axis in enumerate(axes):
        found[axis % rank], found[axis % rank + rank] = numbers[index], numbers[index + len(axes)]
    return place.renew(node, "pads are given for all axes", [node.inputs[0], place.int64s(found), place.input(node, 2)])


@down(19, "Pad")
def no_wrapping(node: ir.Node, place: Place) -> Rewrite | None:
    """Refused: ``mode="wrap"``."""
    if place.attribute(node, "mode", "constant") == "wrap":
        raise Refusal("mode=wrap can be said from opset 19 on only")
    return None
