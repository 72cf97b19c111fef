"""Sums: what an operator adds up on the way to its result, which may leave the range though the result doesn't.

A bound costs nothing: Σ|w|·max|x| for weights w, n·max|x| for n terms, n·max x² for squares, exp(max x) where an
exponential is taken inside. In whatever order a runtime adds, no partial sum is larger. Where the bound is beyond the
limit, the sum of magnitudes is measured: the same operator on |x| and |w|, over all samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.calibration import Batches
from penstock.quantization import probe
from penstock.quantization.half.binding import is_float32
from penstock.quantization.half.seen import Seen, copied
from penstock.quantization.placement import constant

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

AVERAGES = frozenset({"AveragePool", "GlobalAveragePool", "Mean", "ReduceMean"})
SQUARES = frozenset({"InstanceNormalization", "LpNormalization", "MeanVarianceNormalization", "ReduceL2",
                     "ReduceSumSquare"})  # fmt: skip
EXPONENTIALS = frozenset({"Mish", "ReduceLogSumExp", "Softplus"})
REDUCTIONS = AVERAGES | SQUARES | {"ReduceL1", "ReduceLogSum", "ReduceLogSumExp", "ReduceSum"}
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
MEASURED = WEIGHTED | {"AveragePool", "Einsum", "GlobalAveragePool", "InstanceNormalization", "ReduceL1", "ReduceMean",
                       "ReduceSum"}  # fmt: skip


def terms(node: ir.Node, seen: Mapping[str, Seen]) -> int:
    """Return how many numbers are added up for one number of the result of a reduction or a normalization."""
    first = _of(node.inputs[0], seen)
    if first is None:
        return 1
    shape = first.shape
    if node.op_type == "Mean":
        return len(node.inputs)
    if node.op_type in ("InstanceNormalization", "MeanVarianceNormalization"):
        axes = node.attributes.get_ints("axes", (0, 2, 3)) if node.op_type[0] == "M" else range(2, len(shape))
        return math.prod(shape[axis] for axis in axes if axis < len(shape))
    if node.op_type in ("LogSoftmax", "LpNormalization", "Softmax"):
        return shape[node.attributes.get_int("axis", -1)] if shape else 1
    if node.op_type == "AveragePool":
        return math.prod(node.attributes.get_ints("kernel_shape", (1,)))
    out = seen.get(str(node.outputs[0].name))
    return 1 if out is None or not out.size else max(first.size // out.size, 1)


def bound(node: ir.Node, seen: Mapping[str, Seen]) -> float:
    """Return a number that no partial sum of a node exceeds on the samples; 0 where it adds nothing up."""
    op = node.op_type
    reach = max((_reach(value, seen) for value in node.inputs[:1]), default=0.0)
    if op in WEIGHTED or op == "Einsum":
        return _of_products(node, seen)
    if op in RECURRENT:
        out = max((_reach(value, seen) for value in node.outputs[:1]), default=1.0)
        bias = 2 * _reach(node.inputs[3] if len(node.inputs) > 3 else None, seen)
        return _rows(node.inputs[1], 2) * reach + _rows(node.inputs[2], 2) * max(out, 1.0) + bias
    if op == "Attention" and node.domain == "" and len(node.inputs) > 1:
        first = _of(node.inputs[0], seen)
        width = first.shape[-1] if first is not None and first.shape else 1
        return width * reach * _reach(node.inputs[1], seen)
    if op in EXPONENTIALS:
        first = _of(node.inputs[0], seen)
        high = first.high if first is not None else 0.0
        return float("inf") if high > 700 else math.exp(high) * (terms(node, seen) if op[0] == "R" else 1)
    if op in ("ReduceL2", "ReduceSumSquare"):  # what they add up has one sign, and is the result or its square
        return _reach(node.outputs[0], seen) ** (2 if op == "ReduceL2" else 1)
    if op in SQUARES or op == "LRN":
        return reach**2 * terms(node, seen)
    if op in ("LogSoftmax", "Softmax"):
        return float(terms(node, seen))
    return reach * terms(node, seen) if op in REDUCTIONS else 0.0


def measured(
    model: ir.Model, nodes: list[str], batches: Batches, seen: Mapping[str, Seen],
    done: Callable[[int, int], None] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Measure the largest sum of magnitudes in each of the named nodes, whose operators are in ``MEASURED``."""
    import onnx_ir as ir

    if not nodes:
        return {}
    copy = copied(model)
    known = {str(node.name): node for node in copy.graph}
    probes: list[ir.Value] = []
    for name in nodes:
        made = _of_magnitudes(copy, known[name])
        made.name = f"penstock_sum_{len(probes)}"
        made.type = ir.TensorType(ir.DataType.FLOAT)
        probes.append(made)
    names = [str(value.name) for value in probes]
    largest = dict.fromkeys(names, 0.0)

    def visit(name: str, array: Array, first: int, count: int) -> None:
        largest[name] = max(largest[name], float(array.max(initial=0.0)))

    probe.observe(copy, names, batches, visit, done=done)
    found = {}
    for name, told in zip(nodes, names, strict=True):
        node = known[name]
        found[name] = largest[told] * (terms(node, seen) if node.op_type in AVERAGES else 1)
    return found


def _of_magnitudes(model: ir.Model, node: ir.Node) -> ir.Value:
    """Put nodes into the graph that compute the largest sum of magnitudes in ``node``, and return that."""
    import onnx_ir as ir

    graph, made = model.graph, []
    opset = model.opset_imports.get("", 1)

    def add(op: str, inputs: list[ir.Value | None], attributes: list[ir.Attr]) -> ir.Value:
        made.append(ir.Node("", op, inputs, attributes))
        return made[-1].outputs[0]

    if node.op_type == "InstanceNormalization":
        value = node.inputs[0]
        rank = len(value.shape) if value is not None and value.shape is not None else 4
        axes = list(range(2, rank))
        if opset < 18:
            out = add("ReduceSumSquare", [value], [ir.AttrInt64s("axes", axes)])
        else:
            held = ir.tensor(np.array(axes, np.int64), name=f"penstock_axes_{node.name}")
            listed = ir.Value(
                name=held.name, shape=ir.Shape([len(axes)]), type=ir.TensorType(held.dtype), const_value=held
            )
            graph.register_initializer(listed)
            out = add("ReduceSumSquare", [value, listed], [])
    else:
        inputs = [add("Abs", [one], []) if is_float32(one) else one for one in node.inputs]
        kept = [
            ir.AttrFloat32(key, abs(one.as_float())) if one.type == ir.AttributeType.FLOAT else one
            for key, one in node.attributes.items()
        ]
        out = add(node.op_type, inputs, kept)
    most = add("ReduceMax", [out], [ir.AttrInt64("keepdims", 0)])
    graph.insert_after(node, made)
    return most


def _of_products(node: ir.Node, seen: Mapping[str, Seen]) -> float:
    if node.op_type == "Einsum" or len(node.inputs) < 2:
        return float("inf")
    left, right = node.inputs[0], node.inputs[1]
    bias = _reach(node.inputs[2], seen) if len(node.inputs) > 2 else 0.0
    alpha = abs(node.attributes.get_float("alpha", 1.0)) if node.op_type == "Gemm" else 1.0
    beta = abs(node.attributes.get_float("beta", 1.0)) if node.op_type == "Gemm" else 1.0
    if constant(right):
        kept = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}.get(node.op_type)
        if kept is None:
            kept = 0 if node.attributes.get_int("transB", 0) else 1
        products = _rows(right, kept) * _reach(left, seen)
    elif constant(left):
        products = _rows(left, 1 if node.attributes.get_int("transA", 0) else -2) * _reach(right, seen)
    else:
        one = _of(left, seen)
        shape = one.shape if one is not None else ()
        turned = node.attributes.get_int("transA", 0)
        count = math.prod(shape[1:]) if "Conv" in node.op_type else shape[0 if turned else -1] if shape else 1
        products = count * _reach(left, seen) * _reach(right, seen)
    return alpha * products + beta * bias


def _rows(value: ir.Value | None, kept: int) -> float:
    """Return the largest sum of magnitudes of a constant over all axes but one (of a recurrence: over the last)."""
    if value is None or value.const_value is None:
        return float("inf")
    array = np.abs(value.const_value.numpy().astype(np.float64))
    if kept == 2 or array.ndim < 2:
        return float(array.sum(axis=-1).max(initial=0.0))
    if kept < 0:  # a factor of MatMul, which may be a stack of matrices
        return float(array.sum(axis=-2 if kept == -1 else -1).max(initial=0.0))
    return float(array.sum(axis=tuple(axis for axis in range(array.ndim) if axis != kept)).max(initial=0.0))


def _reach(value: ir.Value | None, seen: Mapping[str, Seen]) -> float:
    if value is None:
        return 0.0
    if constant(value) and value.const_value is not None:
        array = value.const_value.numpy()
        return float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) if array.dtype.kind == "f" else 0.0
    one = _of(value, seen)
    return one.reach if one is not None else 0.0


def _of(value: ir.Value | None, seen: Mapping[str, Seen]) -> Seen | None:
    return None if value is None else seen.get(str(value.name))
