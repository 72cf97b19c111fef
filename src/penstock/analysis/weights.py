"""What a model's constant tensors are for: parameters, statistics, quantization numbers, settings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx_ir as ir

Role = Literal["parameter", "statistic", "quantization", "setting"]
_FLOATS = {"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"}
_SMALL = ("INT4", "UINT4", "INT8", "UINT8", "INT2", "UINT2", "FLOAT8", "FLOAT4")
# inputs that hold a quantization's scales and zero points
_QUANTIZATION: dict[str, set[int]] = {
    "QuantizeLinear": {1, 2}, "DequantizeLinear": {1, 2}, "QLinearConv": {1, 2, 4, 5, 6, 7},
    "QLinearMatMul": {1, 2, 4, 5, 6, 7}, "ConvInteger": {2, 3}, "MatMulInteger": {2, 3}, "QGemm": {1, 2, 4, 5, 7, 8},
    "QLinearAdd": {1, 2, 4, 5, 6, 7}, "QLinearMul": {1, 2, 4, 5, 6, 7}, "QLinearConcat": {0, 1},
    "MatMulIntegerToFloat": {2, 3, 4, 5}, "DynamicQuantizeMatMul": {2, 3}, "MatMulNBits": {2, 3},
    "QLinearGlobalAveragePool": {1, 2, 3, 4}, "QLinearAveragePool": {1, 2, 3, 4}, "QLinearSigmoid": {1, 2, 3, 4},
    "QLinearLeakyRelu": {1, 2, 3, 4},
}  # fmt: skip
# inputs that are settings of the operator although they are floats
_SETTINGS: dict[str, set[int]] = {"Resize": {1, 2}, "Upsample": {1}, "Clip": {1, 2}, "Pad": {2}, "Dropout": {1, 2}}
_INT32_WEIGHTS = {("QLinearConv", 8), ("DequantizeLinear", 0), ("QGemm", 6)}


def constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Give every initializer and every Constant node's tensor, in graph, subgraphs and functions, each once."""
    from onnx_ir import convenience

    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
    for node in (*model.graph.all_nodes(), *(n for f in model.functions.values() for n in f.all_nodes())):
        if node.op_type == "Constant" and node.domain == "" and not any(a.is_ref() for a in node.attributes.values()):
            tensor = None
            with contextlib.suppress(ValueError):  # a Constant without a value
                tensor = convenience.get_const_tensor(node.outputs[0])
            if tensor is not None:
                yield node.outputs[0], tensor


def role(value: ir.Value, tensor: ir.TensorProtocol) -> Role:
    """Say what a constant tensor is for, by its type, its rank and who reads it.

    A *parameter* is a floating-point tensor of rank 1 or more, an integer tensor of 8 bits or fewer, or an int32 bias
    of a quantized operator. BatchNormalization's running mean and variance are *statistics* (no gradient ever reaches
    them), scales and zero points are *quantization*; int64 shapes and axes, scalars, bounds of Clip are *settings*.
    """
    uses = _uses(value)
    if uses and all(op == "BatchNormalization" and index in (3, 4) for op, index in uses):
        return "statistic"
    if uses and all(_quantizes(op, index) for op, index in uses):
        return "quantization"
    if uses and all(index in _SETTINGS.get(op, ()) for op, index in uses):
        return "setting"
    name = tensor.dtype.name
    if name in _FLOATS:
        return "parameter" if len(tensor.shape.numpy()) else "setting"
    if name.startswith(_SMALL):
        return "parameter" if tensor.size > 1 else "setting"
    return "parameter" if name == "INT32" and uses & _INT32_WEIGHTS else "setting"


def _uses(value: ir.Value) -> set[tuple[str, int]]:
    found: set[tuple[str, int]] = set()
    for use in value.uses():
        if use.node.op_type == "Identity" and use.node.domain == "":  # exporters merge equal weights this way
            found |= _uses(use.node.outputs[0])
        else:
            found.add((use.node.op_type, use.idx))
    return found


def origin(value: ir.Value | None) -> ir.Value | None:
    """Follow Identity nodes back to the value that they hand on."""
    while value is not None and (node := value.producer()) is not None and node.op_type == "Identity":
        value = node.inputs[0]
    return value


def _quantizes(op: str, index: int) -> bool:
    if op == "QLinearConcat":
        return index < 2 or index % 3 != 2  # y_scale, y_zero, then triples of tensor, scale, zero point
    return index in _QUANTIZATION.get(op, ())
