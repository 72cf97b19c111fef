"""Which nodes can hold integer weights and compute on integers made at run time, and why the others stay in float."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.quantization.placement import constant, weight_index
from penstock.quantization.writing import MICROSOFT
from penstock.rewriting.walk import refers

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

LEAST_SIDE = 32  # of a matrix of weights: below, quantizing the input costs as much as the float product
LEAST_WEIGHTS = 4096  # likewise
LEAST_RECURRENT = 1 << 15  # weights of an LSTM, which quantizes its state at every step
MOST_TERMS = (2**31 - 1) // (255 * 127)  # of a sum of products that int32 surely holds
MOST_STEPS = 16  # upwards, to the operator that decides which sign numbers have
_POSITIVE = frozenset(
    {"Abs", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Mish", "Relu", "Sigmoid", "Softmax", "Softplus"}
)
_KEEPING = frozenset({
    "AveragePool", "Expand", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax",
    "ReduceMean", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
_CONV = "ONNX Runtime computes convolutions slower on integers that are made at run time"
_PLAIN_ATTENTION = frozenset({"num_heads", "unidirectional", "mask_filter_value", "scale", "do_rotary"})


def reason(node: ir.Node, *, small: bool, convolutions: bool) -> str | None:
    """Say why a node stays in float: ``""`` where it doesn't have to, ``None`` where it holds no weights."""
    if node.domain == MICROSOFT:
        return _of_microsoft(node, small)
    if node.domain != "":
        return None
    op = node.op_type
    if op in ("MatMul", "Gemm"):
        return _of_product(node, small)
    if op == "LSTM":
        return _of_lstm(node, small)
    if op == "Conv":
        return _of_conv(node) if convolutions else f"{_CONV}; --force-conv converts them"
    if op == "Gather" and constant(node.inputs[0]) and _is_float(node.inputs[0]):
        return "a table that rows are picked from isn't computed with"
    return {
        "ConvTranspose": "there is no such operator on integers",
        "GRU": "ONNX Runtime has no GRU on integers",
        "RNN": "ONNX Runtime has no RNN on integers",
        "Attention": "it multiplies activations, which lose most; its projections are products of their own",
        "Einsum": "there is no such operator on integers",
    }.get(op)


def _of_microsoft(node: ir.Node, small: bool) -> str | None:
    if node.op_type == "Attention":
        return _of_attention(node, small)
    return {
        "MultiHeadAttention": "it multiplies activations, which lose most; its projections are products of their own",
        "GroupQueryAttention": "it multiplies activations, which lose most; its projections are products of their own",
        "EmbedLayerNormalization": "a table that rows are picked from isn't computed with",
        "FusedMatMul": "a fused product has no form on integers; start from a model without ONNX Runtime's fusions",
        "FusedGemm": "a fused product has no form on integers; start from a model without ONNX Runtime's fusions",
        "FusedConv": _CONV,
    }.get(node.op_type)


def _of_product(node: ir.Node, small: bool) -> str:
    if refers(node):
        return "an attribute of it is a function's"
    index = weight_index(node)
    if index < 0:
        return "it multiplies two activations, which lose most"
    if index == 0:
        return "its constant factor stands on the left, where there is no fast form"
    weights, data = need(node.inputs[1]), node.inputs[0]
    if why := _unfit(weights):
        return why
    if constant(data):
        return "all of its inputs are constant"
    sizes = shape(weights)
    if node.op_type == "MatMul" and len(sizes) != 2:
        return f"its weights have {len(sizes)} axes, not 2"
    if node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0):
            return "its first factor is transposed"
        added = node.inputs[2] if len(node.inputs) > 2 else None
        if added is not None and not constant(added) and node.attributes.get_float("beta", 1.0) != 1:
            return "what it adds is no constant, and its beta isn't 1"
        if not np.isfinite(alpha(node)):
            return "its alpha isn't finite"
    terms, columns = sizes[::-1] if turned(node) else sizes
    if terms > MOST_TERMS:
        return f"sums of {terms} products may leave int32"
    return _too_small(terms, columns) if not small else ""


def _too_small(terms: int, columns: int) -> str:
    if min(terms, columns) >= LEAST_SIDE and terms * columns >= LEAST_WEIGHTS:
        return ""
    return f"{terms} × {columns} weights are too few to win back what quantizing its input costs; see --force-small"


def _of_lstm(node: ir.Node, small: bool) -> str:
    if refers(node):
        return "an attribute of it is a function's"
    if not (constant(node.inputs[1]) and constant(node.inputs[2])):
        return "its weights aren't constant"
    for weights in (need(node.inputs[1]), need(node.inputs[2])):
        if why := _unfit(weights):
            return why
        if len(shape(weights)) != 3:
            return "its weights don't have 3 axes"
        if shape(weights)[2] > MOST_TERMS:
            return f"sums of {shape(weights)[2]} products may leave int32"
    if node.attributes.get_int("layout", 0):
        return "ONNX Runtime wants the steps of a sequence first: layout 0"
    size = sum(int(np.prod(shape(need(node.inputs[index])))) for index in (1, 2)) // shape(need(node.inputs[1]))[0]
    if not small and size < LEAST_RECURRENT:
        return f"{size} weights are too few to win back what quantizing at each step costs; see --force-small"
    return ""


def _of_attention(node: ir.Node, small: bool) -> str:
    inputs = [*node.inputs, *[None] * (7 - len(node.inputs))]
    if not constant(inputs[1]):
        return "its weights aren't constant"
    if why := _unfit(need(inputs[1])):
        return why
    if len(shape(need(inputs[1]))) != 2 or shape(need(inputs[1]))[0] > MOST_TERMS:
        return "its weights aren't a matrix that sums in int32"
    if inputs[2] is None:
        return "it has no bias, which QAttention asks for"
    if inputs[5] is not None or inputs[6] is not None:
        return "QAttention takes no bias of attention and no length of what came before"
    if odd := sorted(set(node.attributes) - _PLAIN_ATTENTION):
        return f"QAttention has no {odd[0]}"
    if node.attributes.get_int("do_rotary", 0):
        return "ONNX Runtime's QAttention on the CPU doesn't rotate"
    return _too_small(*shape(need(inputs[1]))) if not small else ""


def _of_conv(node: ir.Node) -> str:
    if refers(node) or not constant(node.inputs[1]):
        return "its weights aren't constant"
    weights = need(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not constant(bias):
        return "its bias isn't constant"
    if int(np.prod(shape(weights)[1:])) > MOST_TERMS:
        return f"sums of {int(np.prod(shape(weights)[1:]))} products may leave int32"
    return _unfit(weights)


def _unfit(weights: ir.Value) -> str:
    import onnx_ir as ir

    tensor = weights.const_value
    assert tensor is not None
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its weights are {tensor.dtype.name}, not FLOAT"
    if not tensor.size:
        return "its weights have no elements"
    return "" if np.isfinite(tensor.numpy()).all() else "its weights hold NaN or infinity"


# -- reading nodes -----------------------------------------------------------------------------------------------------


def need(value: ir.Value | None) -> ir.Value:
    """Return an input that has to be there."""
    assert value is not None
    return value


def place_of(node: ir.Node) -> ir.Graph:
    """Return the graph in which a node lies; no function, these are inlined."""
    import onnx_ir as ir

    assert isinstance(node.graph, ir.Graph)
    return node.graph


def numbers(value: ir.Value) -> Array:
    """Return a constant's array."""
    assert value.const_value is not None
    return value.const_value.numpy()


def turned(node: ir.Node) -> bool:
    """Whether a product's weights lie with a row for each column of the result."""
    return node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))


def alpha(node: ir.Node) -> float:
    """Return what a Gemm multiplies its product by."""
    return float(node.attributes.get_float("alpha", 1.0)) if node.op_type == "Gemm" else 1.0


def matrix(node: ir.Node) -> Array:
    """Return a product's weights, ``(terms, columns)``, a Gemm's alpha multiplied in."""
    held = numbers(need(node.inputs[1]))
    found: Array = (held.T if turned(node) else held) * np.float32(alpha(node))
    return found


def bias(node: ir.Node) -> Array | ir.Value | None:
    """Return what a Gemm adds: a row as it stands in the result, or what isn't constant."""
    value = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if value is None:
        return None
    if not constant(value):
        return value
    array = numbers(value) * np.float32(node.attributes.get_float("beta", 1.0))
    columns = shape(need(node.inputs[1]))[0 if turned(node) else 1]
    row: Array = array.reshape(-1) if array.ndim < 2 or array.shape[0] == 1 else array
    return np.broadcast_to(row, (columns,)) if row.ndim == 1 else row


def positive(value: ir.Value) -> bool:
    """Whether a tensor's numbers are mostly positive, by the operator that makes them."""
    from penstock.quantization.emit import bounds

    for _ in range(MOST_STEPS):
        maker = value.producer()
        if maker is None or maker.domain != "" or not maker.inputs or maker.inputs[0] is None:
            return False
        if maker.op_type in _POSITIVE or (maker.op_type == "Clip" and bounds(maker)[0] >= 0):
            return True
        if maker.op_type not in _KEEPING:
            return False
        value = maker.inputs[0]
    return False


def shape(value: ir.Value) -> tuple[int, ...]:
    """Return a constant's shape."""
    assert value.const_value is not None
    return tuple(int(size) for size in value.const_value.shape)  # type: ignore[arg-type]  # of a constant


def _is_float(value: ir.Value | None) -> bool:
    import onnx_ir as ir

    return value is not None and value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT
