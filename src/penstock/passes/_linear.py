"""Put a per-channel ``y = a·x + d`` into the weights of the Conv, ConvTranspose, Gemm or MatMul that computes x.

All of it is computed in float64 and rounded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.rewriting import Refusal
from penstock.rewriting.site import Site, attribute

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir

    Array = npt.NDArray[np.float64]

_DIGITS = {"FLOAT": 23, "FLOAT16": 10, "BFLOAT16": 7}  # binary digits of a number's fraction
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOATS = ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16")


def linear_before(value: ir.Value | None, site: Site) -> ir.Node:
    """Return the linear operator whose result only this reader reads. Raises ``Refusal``."""
    linear = None if value is None else value.producer()
    if value is None or linear is None:
        raise Refusal("its input is a graph input or a constant, not the result of a Conv, ConvTranspose or Gemm")
    if linear.domain != "" or linear.op_type not in OPERATORS:
        raise Refusal(f"its input comes from {linear.op_type}, not from Conv, ConvTranspose or Gemm")
    site.need_sole_reader(value, f"the output of {linear.op_type}")
    return linear


def channels_of(node: ir.Node, site: Site) -> int:
    """Return the number of output channels of a linear operator with constant weights. Raises ``Refusal``."""
    shape = site.static(node.inputs[1])
    tensor = site.tensor(node.inputs[1])
    if tensor is None or shape is None:
        raise _not_constant(node.inputs[1], f"the weight of {node.op_type}")
    if tensor.dtype.name not in FLOATS:
        raise Refusal(f"its weights are {tensor.dtype.name}, no floating-point type that can be folded")
    if node.op_type == "Conv":
        return shape[0]
    if node.op_type == "ConvTranspose":
        return shape[1] * int(attribute(node, "group", 1))
    if len(shape) != 2:
        raise Refusal(f"the weight of {node.op_type} has {len(shape)} axes")
    return shape[0] if node.op_type == "Gemm" and attribute(node, "transB", 0) else shape[1]


def folded(node: ir.Node, slope: Array, offset: Array, site: Site) -> ir.Value:
    """Return a linear operator like ``node`` that computes ``slope·x + offset``, ``(channels,)`` each.

    Raises ``Refusal`` where the weights aren't constants or don't fit.
    """
    count = channels_of(node, site)
    if slope.size != count:
        raise Refusal(f"{node.op_type} has {count} output channels for {slope.size}")
    weight = numbers(node.inputs[1], f"the weight of {node.op_type}", site)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    old = None if bias is None else numbers(bias, f"the bias of {node.op_type}", site)
    tensor = site.tensor(node.inputs[1])
    assert tensor is not None
    new_weight = site.constant(rounded(_scaled(node, weight, slope), tensor.dtype, "weights"), tensor.dtype)
    if node.op_type == "MatMul":
        product = site.make("MatMul", [node.inputs[0], new_weight])
        if not offset.any():
            return product
        return site.make("Add", [product, site.constant(rounded(offset, tensor.dtype, "bias"), tensor.dtype)])
    changed = {}
    scale = 1.0
    if node.op_type == "Gemm":
        scale = float(attribute(node, "beta", 1.0))
        if old is not None and old.size != 1 and old.shape[-1] != slope.size:
            raise Refusal(f"the bias of Gemm has shape {list(old.shape)}, which isn't one number for each column")
        changed = {"beta": None}
    elif old is not None and old.shape != slope.shape:
        raise Refusal(f"the bias of {node.op_type} has {old.size} numbers for {slope.size} channels")
    new_bias = offset if old is None else slope * scale * old + offset
    inputs = [node.inputs[0], new_weight]
    if old is not None or new_bias.any():
        inputs.append(site.constant(rounded(new_bias, tensor.dtype, "bias"), tensor.dtype))
    return site.copy(node, inputs, **changed)


def numbers(value: ir.Value | None, what: str, site: Site) -> Array:
    """Return a constant's numbers as float64. Raises ``Refusal`` where it isn't one."""
    import numpy as np

    array = site.array(value)
    if array is None:
        raise _not_constant(value, what)
    result: Array = array.astype(np.float64)
    return result


def _not_constant(value: ir.Value | None, what: str) -> Refusal:
    if value is not None and value.is_graph_input() and value.const_value is not None:
        return Refusal(f"{what} is an input with a default, which a caller may override")
    return Refusal(f"{what} is not constant")


def rounded(values: Array, dtype: ir.DataType, what: str) -> npt.NDArray[np.generic]:
    """Round to a type. Raises ``Refusal`` where a number doesn't fit in it."""
    import numpy as np

    with np.errstate(all="ignore"):
        result = values.astype(dtype.numpy())
    back = result.astype(np.float64)
    if not np.isfinite(back).all():
        raise Refusal(f"the folded {what} overflow {dtype.name}")
    largest = float(np.abs(values).max(initial=0.0))
    if float(np.abs(back - values).max(initial=0.0)) > 2.0 ** -_DIGITS.get(dtype.name, 52) * largest:
        raise Refusal(
            f"the folded {what} are too small for {dtype.name}"
        )  # they would be rounded to a few bits, or to 0
    return result


def per_channel(value: ir.Value | None, count: int, rank: int, site: Site, axis: int = 1) -> Array | None:
    """Return a constant that broadcasts along all axes but the channels', as ``(count,)``; ``None`` where it isn't."""
    import numpy as np

    tensor = site.tensor(value)
    if tensor is None or tensor.dtype.name not in FLOATS or tensor.size not in (1, count):
        return None
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    if len(shape) > rank:
        return None
    padded = (1,) * (rank - len(shape)) + shape
    if any(size != 1 and place != axis for place, size in enumerate(padded)):
        return None
    array = site.array(value)
    assert array is not None
    result: Array = np.broadcast_to(array.reshape(-1).astype(np.float64), (count,)).copy()
    return result


def _scaled(node: ir.Node, weight: Array, slope: Array) -> Array:
    tail = (1,) * (weight.ndim - 2)
    if node.op_type in ("Gemm", "MatMul"):
        return weight * (slope[:, None] if attribute(node, "transB", 0) else slope[None, :])
    if node.op_type == "Conv":
        return weight * slope.reshape(-1, 1, *tail)
    groups = int(attribute(node, "group", 1))
    if weight.shape[0] % groups:
        raise Refusal(f"ConvTranspose has {weight.shape[0]} input channels in {groups} groups")
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    result: Array = (grouped * slope.reshape(groups, 1, weight.shape[1], *tail)).reshape(weight.shape)
    return result
