"""Inputs made from a seed and a signature, where there is no data.

Floats are drawn from a standard normal, booleans from a fair coin, integers from ``[0, bound)``, where the bound is
what the graph itself says about an index (the axis that a Gather reads, the depth of a OneHot, the numbers that an
Equal compares it with), else 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from penstock.errors import InputError
from penstock.signature import Signature, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

_THROUGH = {"Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Identity", "Slice", "Expand", "Concat"}


def seeded(
    signature: Signature,
    *,
    batch: int,
    seed: int,
    sizes: Mapping[str, int] | None = None,
    bounds: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """Make one batch for every input: axis 0 gets ``batch`` where it is dynamic, other dynamic axes get ``sizes``.

    A dimension that is the axis 0 of one input has that size wherever else its name stands.

    Raises ``InputError`` for an input of unknown rank or of a type that can't be drawn.
    """
    import numpy as np

    random = np.random.RandomState(seed)  # its streams are frozen across numpy versions
    feeds = {}
    first = {spec.shape[0] for spec in signature.inputs if spec.shape and isinstance(spec.shape[0], str)}
    sizes = dict.fromkeys(first, batch) | dict(sizes or {})
    for spec in signature.inputs:
        shape = concrete_shape(spec, batch, sizes)
        feeds[spec.name] = _draw(spec, shape, random, (bounds or {}).get(spec.name, 2))
    return feeds


def concrete_shape(spec: TensorSpec, batch: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Size every dynamic dimension: by name from ``sizes``, axis 0 as ``batch``, else 64 for images and 8."""
    if spec.shape is None:
        do = "give data that fits it with --data module:function"
        raise InputError("unknown-rank", f"the input {spec.name!r} has no shape, so none can be made", do=do)
    other = 64 if len(spec.shape) == 4 else 8
    shape = []
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, int):
            shape.append(dim)
        elif (key := size_key(spec, axis)) in sizes:
            shape.append(sizes[key])
        else:
            shape.append(batch if axis == 0 else other)
    return tuple(shape)


def size_key(spec: TensorSpec, axis: int) -> str:
    """Return what a dynamic axis is called in a table of sizes: its dimension's name, else ``input:axis``."""
    dim = spec.shape[axis] if spec.shape is not None else None
    return dim if isinstance(dim, str) else f"{spec.name}:{axis}"


def free_axes(signature: Signature) -> list[str]:
    """List the dynamic axes, but for axis 0, each once by its :func:`size_key`."""
    found: dict[str, None] = {}
    first = {spec.shape[0] for spec in signature.inputs if spec.shape}
    for spec in signature.inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if axis and not isinstance(dim, int) and (dim is None or dim not in first):
                found[size_key(spec, axis)] = None
    return list(found)


def _draw(spec: TensorSpec, shape: tuple[int, ...], random: np.random.RandomState, bound: int) -> np.ndarray:
    import numpy as np

    if spec.dtype in ("float16", "float32", "float64"):
        return np.asarray(random.standard_normal(shape), dtype=spec.dtype)
    if spec.dtype == "bool":
        return np.asarray(random.randint(0, 2, shape), dtype=bool)
    if spec.dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
        return np.asarray(random.randint(0, max(bound, 1), shape), dtype=spec.dtype)
    do = "give data that fits it with --data module:function"
    raise InputError("cannot-make-input", f"no inputs of the type {spec.dtype} can be made for {spec.name!r}", do=do)


def integer_bounds(model: ir.Model) -> dict[str, int]:
    """Find for every integer input the largest size that it may index: what a Gather or a OneHot behind it allows."""
    import onnx_ir as ir

    bounds = {}
    for value in model.graph.inputs:
        if value.dtype in (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.INT8, ir.DataType.UINT8):
            limits = _limits(value)
            if value.dtype == ir.DataType.UINT8 and not limits:
                limits = [256]
            bounds[value.name or ""] = min(limits) if limits else 2
    return bounds


def _limits(start: ir.Value) -> list[int]:
    limits, queue, seen = [], [start], {id(start)}
    while queue:
        value = queue.pop()
        for use in value.uses():
            node = use.node
            if node.op_type == "Gather" and use.idx == 1:
                data = node.inputs[0]
                axis = node.attributes.get_int("axis", 0)
                size = data.shape[axis] if data is not None and data.shape is not None else None
                if isinstance(size, int):
                    limits.append(size)
            elif node.op_type == "Equal":
                other = node.inputs[1 - use.idx]
                held = other.const_value if other is not None else None
                if held is not None and held.size > 1:  # compared with a row of classes: a one-hot by hand
                    limits.append(int(held.numpy().max()) + 1)
            elif node.op_type == "OneHot" and use.idx == 0:
                depth = node.inputs[1].const_value if node.inputs[1] is not None else None
                if depth is None and node.inputs[1] is not None:
                    producer = node.inputs[1].producer()
                    depth = (
                        producer.attributes["value"].as_tensor()
                        if producer and "value" in producer.attributes
                        else None
                    )
                if depth is not None:
                    limits.append(int(depth.numpy().reshape(-1)[0]))
            elif node.op_type in _THROUGH and use.idx == 0:
                for output in node.outputs:
                    if id(output) not in seen:
                        seen.add(id(output))
                        queue.append(output)
    return [limit for limit in limits if limit > 0]


def resize_batch(example: Mapping[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
    """Make a batch of another size out of an example's rows, repeated in order as needed."""
    import numpy as np

    return {
        name: np.ascontiguousarray(np.take(array, np.arange(batch) % len(array), axis=0)) if array.ndim else array
        for name, array in example.items()
    }
