"""Weights in blocks read back by hand: a model as it would be with those weights in float, and tiny models to try."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def floats(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which DequantizeLinear of constants and MatMulNBits are float constants and MatMul again."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    _graph(made.graph, {})
    return made


def _graph(graph: onnx.GraphProto, outer: dict[str, onnx.TensorProto]) -> None:
    known = outer | {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _graph(attribute.g, known)
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "DequantizeLinear" and node.input[0] in known:
            real = dequantized(*(numpy_helper.to_array(known[name]) for name in node.input), **given)
            node.CopyFrom(helper.make_node("Constant", [], list(node.output), value=numpy_helper.from_array(real)))
        elif node.op_type == "MatMulNBits":
            real = nbits(*(numpy_helper.to_array(known[name]) if name else None for name in node.input[1:]), **given)
            weights, bias = real
            inputs = [node.input[0], f"{node.output[0]}_w"]
            graph.initializer.append(numpy_helper.from_array(weights, inputs[1]))
            out = f"{node.output[0]}_p" if bias is not None else node.output[0]
            end = node.output[0]
            node.CopyFrom(helper.make_node("MatMul", inputs, [out]))
            if bias is not None:
                graph.initializer.append(numpy_helper.from_array(bias, f"{end}_b"))
                place = next(i for i, other in enumerate(graph.node) if out in other.output)
                graph.node.insert(place + 1, helper.make_node("Add", [out, f"{end}_b"], [end]))


def dequantized(
    whole: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None, *, axis: int = 1, block_size: int = 0
) -> np.ndarray:
    """Work out DequantizeLinear one element at a time, as its specification has it."""
    out = np.zeros(whole.shape, np.float32)
    for place in itertools.product(*map(range, whole.shape)):
        if block_size:
            inner = (*place[:axis], place[axis] // block_size, *place[axis + 1 :])
        else:
            inner = () if scale.ndim == 0 else (place[axis],)
        none = 0 if zero is None else int(zero[inner])
        out[place] = np.float32(int(whole[place]) - none) * scale[inner]
    return out


def nbits(
    packed: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None, order: None = None,
    bias: np.ndarray | None = None, *, K: int, N: int, bits: int, block_size: int, accuracy_level: int = 0,
) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    """Unpack the weights (K, N) of a MatMulNBits one at a time, as its specification has them."""
    count = -(-K // block_size)
    assert packed.shape == (N, count, block_size * bits // 8) and packed.dtype == np.uint8 and order is None
    scale = scale.reshape(N, count)
    out = np.zeros((K, N), np.float32)
    for row, column in itertools.product(range(K), range(N)):
        block, inner = divmod(row, block_size)
        byte = int(packed[column, block, inner * bits // 8])
        value = byte if bits == 8 else byte >> 4 if inner % 2 else byte & 15
        if zero is None:
            none = float(1 << (bits - 1))
        elif zero.dtype != np.uint8:
            none = float(zero.reshape(N, count)[column, block])
        else:
            byte = int(zero.reshape(N, -1)[column, block * bits // 8])
            none = float(byte if bits == 8 else byte >> 4 if block % 2 else byte & 15)
        out[row, column] = (value - none) * scale[column, block]
    return out, bias


def model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    inputs: dict[str, list],
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Put nodes, initializers and inputs of given shapes together; an output is ``name`` or ``name:rank``."""
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [_output(text, kind) for text in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _output(text: str, kind: int) -> onnx.ValueInfoProto:
    """Declare an output by its name, with ``:rank`` where it has not two axes."""
    name, _, rank = text.partition(":")
    return helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(int(rank or 2))])


def product(inputs: int = 64, outputs: int = 24, seed: int = 0) -> onnx.ModelProto:
    """x (N, inputs) → MatMul → y (N, outputs)."""
    weights = np.random.default_rng(seed).normal(0, 0.5, (inputs, outputs)).astype(np.float32)
    return model([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], {"w": weights}, {"x": ["n", inputs]})
