"""QuantizeLinear and DequantizeLinear: axes (13), types of scales (19), blocks (21), output types (21, 23).

Quantize: saturate(round(x / scale) + zero). Dequantize: (x - zero) · scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.opsets import down, up
from penstock.rewriting import Refusal, Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.place import Place


@up(13, "QuantizeLinear", "DequantizeLinear")
def whole_tensor(node: ir.Node, place: Place) -> Rewrite | None:
    """One scale is one scale."""
    return None


@down(13, "QuantizeLinear", "DequantizeLinear")
def one_scale(node: ir.Node, place: Place) -> Rewrite | None:
    """A scale for each channel is refused when quantizing, and spelt out when dequantizing."""
    shape = place.static(node.inputs[1])
    if shape is not None and shape in ((), (1,)):
        if "axis" not in node.attributes:
            return None
        return place.renew(node, "axis is dropped, which says nothing for one scale", axis=None)
    if node.op_type == "QuantizeLinear":
        raise Refusal("a scale for each channel can be said from opset 13 on only")
    x, scale, zero = (place.input(node, index) for index in range(3))
    assert x is not None and scale is not None
    rank = place.need_rank(x)
    behind = range(1, rank - place.attribute(node, "axis", 1) % max(rank, 1))
    made = place.cast(x, place.dtype(scale))
    for op, value in (("Sub", zero), ("Mul", scale)):
        if value is not None:
            value = value if op == "Mul" else place.cast(value, place.dtype(scale))
            made = place.make(op, [made, place.axes("Unsqueeze", value, behind) if behind else value])
    return Rewrite({node.outputs[0]: made}, "(x - zero) · scale spelt out")


@down(10, "DequantizeLinear")
def dequantize_spelt(node: ir.Node, place: Place) -> Rewrite:
    """(x - zero) · scale."""
    x, scale, zero = (place.input(node, index) for index in range(3))
    assert x is not None and scale is not None
    made = place.cast(x, place.dtype(scale))
    if zero is not None:
        made = place.make("Sub", [made, place.cast(zero, place.dtype(scale))])
    return Rewrite({node.outputs[0]: place.make("Mul", [made, scale])}, "(x - zero) · scale spelt out")


@down(19, "DequantizeLinear")
def float_scale(node: ir.Node, place: Place) -> Rewrite | None:
    """A scale of 16 bits works as a float, and the result is cast: it is rounded once, as before."""
    import onnx_ir as ir

    dtype = place.dtype(node.inputs[1])
    if dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return None
    scale = node.inputs[1]
    assert scale is not None
    wide = place.cast(scale, ir.DataType.FLOAT)
    made = place.anew(node, [node.inputs[0], wide, *node.inputs[2:]])[0]
    place.typed(made, ir.DataType.FLOAT, node.outputs[0])
    return Rewrite({node.outputs[0]: place.cast(made, dtype)}, "it computes in float, and the result is cast")


@down(21, "QuantizeLinear")
def zero_says_the_type(node: ir.Node, place: Place) -> Rewrite | None:
    """The zero point says the type of the output. Refused: blocks."""
    import numpy as np
    import onnx_ir as ir

    if place.attribute(node, "block_size", 0):
        raise Refusal("block_size can be said from opset 21 on only")
    code = place.attribute(node, "output_dtype", 0)
    dropped: dict[str, Any] = {"block_size": None, "output_dtype": None}
    if not code or place.input(node, 2) is not None:
        return place.renew(node, "output_dtype is dropped: the zero point says it", **dropped) if (
            dropped.keys() & node.attributes.keys()) else None  # fmt: skip
    dtype = ir.DataType(code)
    zeros = place.constant(np.zeros(place.need_static(node.inputs[1])).astype(dtype.numpy()), dtype)
    return place.renew(node, "output_dtype became the type of a zero point", [*node.inputs[:2], zeros], **dropped)


@down(21, "DequantizeLinear")
def scales_of_blocks_repeated(node: ir.Node, place: Place) -> Rewrite | None:
    """Scales of blocks are repeated for all elements, and the formula is spelt out."""
    size = place.attribute(node, "block_size", 0)
    if not size:
        return None
    x, scale, zero = (place.input(node, index) for index in range(3))
    assert x is not None and scale is not None
    axis, length = place.attribute(node, "axis", 1) % place.need_rank(x), place.need_static(x)
    if length[axis] % size:
        raise Refusal("its last block isn't whole, and blocks can be said from opset 21 on only")

    def repeated(value: ir.Value) -> ir.Value:
        wide = place.axes("Unsqueeze", value, [axis + 1])
        shape = [*length[:axis], length[axis] // size, size, *length[axis + 1 :]]
        return place.make("Reshape", [place.make("Expand", [wide, place.int64s(shape)]), place.int64s(length)])

    dtype = place.dtype(scale)
    made = place.cast(x, dtype)
    if zero is not None:
        made = place.make("Sub", [made, repeated(place.cast(zero, dtype))])
    made = place.make("Mul", [made, repeated(scale)])
    return Rewrite({node.outputs[0]: made}, "scales are repeated for the elements")


@down(23, "DequantizeLinear")
def output_cast(node: ir.Node, place: Place) -> Rewrite | None:
    """Another output type than the scale's: the scale is cast where that loses nothing."""
    import onnx_ir as ir

    code = place.attribute(node, "output_dtype", 0)
    scale = node.inputs[1]
    assert scale is not None
    dtype = place.dtype(scale)
    if not code or ir.DataType(code) == dtype:
        return place.renew(node, "output_dtype is dropped, it is the scale's", output_dtype=None) if code else None
    wanted = ir.DataType(code)
    if wanted != ir.DataType.FLOAT:
        raise Refusal("output_dtype can be said from opset 23 on only")
    inputs = [node.inputs[0], place.cast(scale, wanted), *node.inputs[2:]]
    return place.renew(node, "output_dtype became a Cast of the scale", inputs, output_dtype=None)


@down(23, "QuantizeLinear")
def same_precision(node: ir.Node, place: Place) -> Rewrite | None:
    """Refused: a precision of its own."""
    import onnx_ir as ir

    code = place.attribute(node, "precision", 0)
    if not code:
        return None
    if ir.DataType(code) != place.dtype(node.inputs[1]):
        raise Refusal("precision can be said from opset 23 on only")
    return place.renew(node, "precision is dropped, it is the scale's", precision=None)
