"""Operators on integers: what stands for a float operator between Q/DQ pairs, its inputs in their order, its limits.

The standard has QLinearConv and QLinearMatMul; the others are com.microsoft's. All take 8 bits, with one scale for an
activation, and one or one for each channel of the result for weights. Source: the operators' schemas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.quantization.placement import constant
from penstock.quantization.writing import MICROSOFT

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

EXACT = 1e-5  # relative, between the scale of a bias and the products' that it is added to
SPANS = {"UINT8": (0, 255), "INT8": (-128, 127)}


@dataclass(frozen=True, slots=True)
class Integers:
    """A quantized tensor: its integers, scale and zero point (``None``: 0), and the name of their type."""

    whole: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    kind: str

    @property
    def parts(self) -> list[ir.Value | None]:
        """The three, as most operators read them."""
        return [self.whole, self.scale, self.zero]

    @property
    def numbers(self) -> tuple[Array, Array]:
        """The scale and the zero point, float32 and int64."""
        assert self.scale.const_value is not None
        scale = self.scale.const_value.numpy()
        if self.zero is None or self.zero.const_value is None:
            return scale, np.zeros(scale.shape, np.int64)
        return scale, self.zero.const_value.numpy().astype(np.int64)

    def same(self, other: Integers) -> bool:
        """Whether both lie on one grid."""
        pairs = zip(self.numbers, other.numbers, strict=True)
        return self.kind == other.kind and all(np.array_equal(one, two) for one, two in pairs)

    def rounded(self, real: np.float32) -> Array:
        """Return the integer for a number; infinities are the ends."""
        scale, zero = self.numbers
        low, high = SPANS[self.kind]
        whole = np.clip(np.rint(real / scale) + zero, low, high)
        return np.array(whole.reshape(()), np.uint8 if self.kind == "UINT8" else np.int8)


Read = Sequence[Integers | None]
Inputs = list["ir.Value | None"]


@dataclass(frozen=True, slots=True)
class Form:
    """One operator on integers, and the one that gives a float result where there is one."""

    op: str
    reason: Callable[[ir.Node, Read, Integers | None], str]
    inputs: Callable[[ir.Node, Read, Integers], Inputs]
    attributes: Callable[[ir.Node], dict[str, Any]]
    domain: str = MICROSOFT
    float_op: str = ""
    float_inputs: Callable[[ir.Node, Read, ir.Value | None], Inputs] = lambda node, read, bias: []
    float_domain: str = MICROSOFT
    takes_row: bool = False  # the float form can add a row


def columns(node: ir.Node) -> int:
    """Return how many columns the result of a MatMul with a matrix has; 0 for other nodes."""
    value = node.inputs[1] if node.op_type == "MatMul" else None
    if value is None or value.shape is None or len(value.shape) != 2 or not isinstance(value.shape[1], int):
        return 0
    return value.shape[1]


# -- reasons -----------------------------------------------------------------------------------------------------------


def _weighted(node: ir.Node, read: Read, end: Integers | None) -> str:
    """Say why a Conv, Gemm or MatMul has no form on integers."""
    data, weights = read[0], read[1]
    if data is None or weights is None:
        return "one of its factors is in float"
    if not constant(weights.whole) and weights.scale.shape is not None and len(weights.scale.shape):
        return "it has a scale for each channel of an activation"
    bias = read[2] if len(read) > 2 else None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if bias is None:
            return "its bias is in float"
        products = data.numbers[0].reshape(-1) * weights.numbers[0].reshape(-1)
        if bias.kind != "INT32" or not np.allclose(bias.numbers[0].reshape(-1), products, rtol=EXACT, atol=0):
            return "its bias isn't on the grid of its products"
    if node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0):
            return "its first factor is transposed"
        if node.attributes.get_float("alpha", 1.0) != 1 or node.attributes.get_float("beta", 1.0) != 1:
            return "its alpha or beta isn't 1"
    return _signs(node, [data], end)


def _signs(node: ir.Node, read: Read, end: Integers | None) -> str:
    """Say why integers of several types don't go together."""
    kinds = {one.kind for one in read if one is not None} | ({end.kind} if end is not None else set())
    return f"{node.op_type} on integers takes one type, not {' and '.join(sorted(kinds))}" if len(kinds) > 1 else ""


def _all_read(node: ir.Node, read: Read, end: Integers | None) -> str:
    if any(one is None for one in read):
        return "one of its inputs is in float"
    return _signs(node, read, end)


def _pooled(node: ir.Node, read: Read, end: Integers | None) -> str:
    if any(int(size) != 1 for size in node.attributes.get_ints("dilations", ())):
        return "no AveragePool on integers has dilations"
    return _all_read(node, read, end)


# -- inputs and attributes ---------------------------------------------------------------------------------------------


def _parts(read: Read, *which: int) -> Inputs:
    found: Inputs = []
    for index in which:
        one = read[index]
        assert one is not None
        found += one.parts
    return found


def _bias(read: Read) -> Inputs:
    one = read[2] if len(read) > 2 else None
    return [] if one is None else [one.whole]


def _conv(node: ir.Node, read: Read, end: Integers) -> Inputs:
    return [*_parts(read, 0, 1), end.scale, end.zero, *_bias(read)]


def _matmul(node: ir.Node, read: Read, end: Integers) -> Inputs:
    return [*_parts(read, 0, 1), end.scale, end.zero]


def _matmul_to_float(node: ir.Node, read: Read, bias: ir.Value | None) -> Inputs:
    data, weights = read[0], read[1]
    assert data is not None and weights is not None
    tail = [bias] if bias is not None else []
    return [data.whole, weights.whole, data.scale, weights.scale, data.zero, weights.zero, *tail]


def _gemm(node: ir.Node, read: Read, end: Integers) -> Inputs:
    return [*_parts(read, 0, 1), *(_bias(read) or [None]), end.scale, end.zero]


def _gemm_to_float(node: ir.Node, read: Read, bias: ir.Value | None) -> Inputs:
    return [*_parts(read, 0, 1), *_bias(read)]


def _one(node: ir.Node, read: Read, end: Integers) -> Inputs:
    return [*_parts(read, 0), end.scale, end.zero]


def _two(node: ir.Node, read: Read, end: Integers) -> Inputs:
    return [*_parts(read, 0, 1), end.scale, end.zero]


def _many(node: ir.Node, read: Read, end: Integers) -> Inputs:
    return [end.scale, end.zero, *_parts(read, *range(len(read)))]


def _own(*names: str) -> Callable[[ir.Node], dict[str, Any]]:
    """Return what takes those attributes over that a node has."""
    return lambda node: {name: node.attributes[name].value for name in names if name in node.attributes}


def _gemm_attributes(node: ir.Node) -> dict[str, Any]:
    return {"alpha": 1.0, "transA": 0, "transB": node.attributes.get_int("transB", 0)}


_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")

# by the float operator; "move": it works on integers as it is
FORMS: dict[str, Form | str] = {
    "Conv": Form(
        "QLinearConv", _weighted, _conv,
        _own("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"), domain="",
    ),
    "MatMul": Form(
        "QLinearMatMul", _weighted, _matmul, _own(), domain="", float_op="MatMulIntegerToFloat",
        float_inputs=_matmul_to_float, takes_row=True,
    ),
    "Gemm": Form("QGemm", _weighted, _gemm, _gemm_attributes, float_op="QGemm", float_inputs=_gemm_to_float),
    "Add": Form("QLinearAdd", _all_read, _two, _own()),
    "Mul": Form("QLinearMul", _all_read, _two, _own()),
    "AveragePool": Form("QLinearAveragePool", _pooled, _one, lambda node: {"channels_last": 0, **_own(*_POOL)(node)}),
    "GlobalAveragePool": Form("QLinearGlobalAveragePool", _all_read, _one, lambda node: {"channels_last": 0}),
    "Sigmoid": Form("QLinearSigmoid", _all_read, _one, _own()),
    "LeakyRelu": Form("QLinearLeakyRelu", _all_read, _one, _own("alpha")),
    "Concat": Form("QLinearConcat", _all_read, _many, _own("axis")),
    **dict.fromkeys((
        "DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split",
        "Squeeze", "Tile", "Transpose", "Unsqueeze",
    ), "move"),
}  # fmt: skip
