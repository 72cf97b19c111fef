"""Finite: weights and biases that hold NaN or infinity, for which no grid of integers has a place.

1. Looked at are the constants that a layer with weights reads, also where they are moved or cast first, the row that an
   Add puts on a MatMul, and what a BatchNormalization holds. Infinities elsewhere, as in a mask, are meant.
2. A layer that is to stay in float is no exception: what it makes isn't finite either, and others read that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock import graph
from penstock.errors import InputError
from penstock.quantization.ends import bias_home

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

LAYERS = frozenset({
    "Attention", "BatchNormalization", "Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "GRU", "Gemm",
    "LSTM", "MatMul", "RNN",
})  # fmt: skip
MOVING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
FLOATS = ("FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE")


def check(model: ir.Model, path: Path) -> None:
    """Raise ``InputError`` for the first layer whose weights or bias aren't finite, naming the tensor and the node."""
    good: set[ir.Value] = set()
    for node in graph.all_nodes(model):
        for value, array in _constants(node, good):
            if np.isfinite(array).all():
                good.add(value)
                continue
            kind = "NaN" if np.isnan(array).any() else "infinity"
            count = int((~np.isfinite(array)).sum())
            called = node.name or next((out.name for out in node.outputs if out.name), "")
            what = f"{value.name!r}, which {node.op_type} {called!r} reads, holds {kind} ({count} of {array.size})"
            do = "find what broke it, in the training or after it, and take a model from before that"
            raise InputError("not-finite", what, where=str(path), do=do)


def _constants(node: ir.Node, good: set[ir.Value]) -> Iterator[tuple[ir.Value, Array]]:
    """Yield the float constants that a layer's weights and bias are, but for those known to be good."""

    if node.op_type not in LAYERS or not any(_constant(value) for value in node.inputs[:2]):
        return  # a product of two activations has no weights, and what is added to it may be a mask
    values = [*node.inputs]
    if node.op_type == "MatMul" and (home := bias_home(node)) is not None:
        values.append(home[0].inputs[home[1]])
    for value in values:
        found = _constant(value)
        if found is not None and found[0] not in good:
            yield found[0], found[1].numpy()


def _constant(value: ir.Value | None) -> tuple[ir.Value, ir.TensorProtocol] | None:
    """Return the constant of floats that a value is, or is a moved or cast form of."""
    import onnx_ir as ir

    while value is not None and (maker := value.producer()) is not None and maker.op_type in MOVING:
        value = maker.inputs[0]
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.dtype.name not in FLOATS else (value, tensor)
