"""Sparse tensors, which onnx-ir doesn't hold: dense ones in their places.

Without this a sparse initializer would be lost at loading, without a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import InputError

if TYPE_CHECKING:
    import onnx

MOST_BYTES = 256 << 20  # of all sparse tensors of a model as dense ones


def make_dense(model: onnx.ModelProto, folder: str) -> int:
    """Put a dense tensor in the place of each sparse initializer and each sparse Constant; return their number.

    ``folder`` is where the model's external data lies. Raises ``ValueError`` for indices that don't fit, ``InputError``
    where all of them would take too much memory.
    """
    count = 0
    taken = 0
    for graph, nodes in _scopes(model):
        sparse = [*graph.sparse_initializer] if graph is not None else []
        for entry in sparse:
            assert graph is not None
            taken = _room(entry, taken)
            graph.initializer.append(_dense(entry, folder))
        if graph is not None and sparse:
            del graph.sparse_initializer[:]
            count += len(sparse)
        for node in nodes:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "sparse_value" and not node.domain:
                    taken = _room(attribute.sparse_tensor, taken)
                    made = _dense(attribute.sparse_tensor, folder)
                    attribute.Clear()
                    attribute.name, attribute.type = "value", attribute.TENSOR
                    attribute.t.CopyFrom(made)
                    count += 1
    return count


def _scopes(model: onnx.ModelProto) -> Iterator[tuple[onnx.GraphProto | None, list[onnx.NodeProto]]]:
    """Yield every graph with its nodes, bodies too; a function has nodes and no initializers."""
    stack: list[tuple[onnx.GraphProto | None, list[onnx.NodeProto]]] = [(model.graph, [*model.graph.node])]
    stack += [(None, [*function.node]) for function in model.functions]
    while stack:
        graph, nodes = stack.pop()
        for node in nodes:
            for attribute in node.attribute:
                bodies = [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs
                stack += [(body, [*body.node]) for body in bodies]
        yield graph, nodes


def _room(entry: onnx.SparseTensorProto, taken: int) -> int:
    from onnx import helper

    width = helper.tensor_dtype_to_np_dtype(entry.values.data_type).itemsize
    taken += math.prod(entry.dims) * width
    if taken > MOST_BYTES:
        what = f"its sparse tensors take more than {MOST_BYTES:,} bytes as dense ones"
        raise InputError("tensor-too-large", what, do="save the model with dense tensors in their places")
    return taken


def _dense(entry: onnx.SparseTensorProto, folder: str) -> onnx.TensorProto:
    """Return the tensor with its zeros. Indices are ``(n,)`` into the flat tensor, or ``(n, rank)``."""
    from onnx import numpy_helper

    shape = tuple(entry.dims)
    values = numpy_helper.to_array(entry.values, folder)
    indices = numpy_helper.to_array(entry.indices, folder)
    if indices.ndim == 2 and indices.shape == (len(values), len(shape)):
        if len(indices) and ((indices < 0) | (indices >= np.array(shape))).any():
            raise ValueError(f"the sparse tensor {entry.values.name!r} has an index outside its shape")
        indices = np.ravel_multi_index(tuple(indices.T), shape) if len(indices) else np.zeros(0, np.int64)
    elif indices.shape != (len(values),) or (
        len(indices) and not 0 <= indices.min() <= indices.max() < math.prod(shape)
    ):
        raise ValueError(f"the sparse tensor {entry.values.name!r} has indices that don't fit it")
    made = np.zeros(math.prod(shape), dtype=values.dtype)
    made[indices] = values
    return numpy_helper.from_array(made.reshape(shape), entry.values.name)
