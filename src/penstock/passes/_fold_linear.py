"""Put a per-channel y = a·x + d into the weights of the Conv, ConvTranspose or Gemm that computes x."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir

    Array = npt.NDArray[np.float64]


class Refusal(Exception):  # noqa: N818 - a no with its reason, not a fault
    """Why a fold isn't done, as a sentence; nothing has been changed."""


def fold_affine(node: ir.Node, slope: Array, offset: Array, taken: set[str]) -> None:
    """Change ``node`` to compute ``slope·x + offset``, ``(channels,)`` each; ``taken`` are the names in use.

    Raises ``Refusal``, before anything is changed, where the weights aren't constants or don't fit.
    """
    import onnx_ir as ir

    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    values = constant(weight, f"the weight of {node.op_type}")
    old = None if bias is None else constant(bias, f"the bias of {node.op_type}")
    dtype = _dtype(weight)
    new_weight = _scaled(node, values, slope)
    scale = 1.0
    if node.op_type == "Gemm":
        scale = _number(node, "beta", 1.0)
        if old is not None and old.size != 1 and old.shape[-1] != slope.size:
            raise Refusal(f"the bias of Gemm has shape {list(old.shape)}, which isn't one number for each column")
    elif old is not None and old.shape != slope.shape:
        raise Refusal(f"the bias of {node.op_type} has {old.size} numbers for {slope.size} channels")
    new_bias = offset if old is None else slope * scale * old + offset
    tensors = [_rounded(new_weight, dtype, "weights"), _rounded(new_bias, dtype, "bias")]
    for index, (value, tensor) in enumerate(zip((weight, bias), tensors, strict=True), start=1):
        _place(node, index, value, tensor, taken)
    if node.op_type == "Gemm":
        node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)


def constant(value: ir.Value | None, what: str) -> Array:
    """Return a constant's numbers as float64. Raises ``Refusal`` where it isn't one."""
    import numpy as np
    from onnx_ir import convenience

    tensor = None if value is None else convenience.get_const_tensor(value)
    if value is None or tensor is None:
        raise Refusal(f"{what} is not constant")
    if value.is_graph_input():
        raise Refusal(f"{what} is an input with a default, which a caller may override")
    result: Array = tensor.numpy().astype(np.float64)
    return result


def _dtype(weight: ir.Value | None) -> ir.DataType:
    import onnx_ir as ir

    if weight is None or weight.dtype is None:
        raise Refusal("the type of its weights isn't known")
    if weight.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16):
        raise Refusal(f"its weights are {weight.dtype.name}, no floating-point type that can be folded")
    return weight.dtype


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _scaled(node: ir.Node, weight: Array, slope: Array) -> Array:
    tail = (1,) * (weight.ndim - 2)
    if node.op_type == "Gemm":
        columns = 0 if _number(node, "transB", 0) else 1
        if weight.shape[columns] != slope.size:
            raise Refusal(f"Gemm has {weight.shape[columns]} columns for {slope.size} channels")
        return weight * (slope[:, None] if columns == 0 else slope[None, :])
    if node.op_type == "Conv":
        if weight.shape[0] != slope.size:
            raise Refusal(f"Conv has {weight.shape[0]} output channels for {slope.size}")
        return weight * slope.reshape(-1, 1, *tail)
    groups = int(_number(node, "group", 1))
    if weight.shape[1] * groups != slope.size or weight.shape[0] % groups:
        raise Refusal(f"ConvTranspose has {weight.shape[1] * groups} output channels for {slope.size}")
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    result: Array = (grouped * slope.reshape(groups, 1, weight.shape[1], *tail)).reshape(weight.shape)
    return result


def _rounded(values: Array, dtype: ir.DataType, what: str) -> ir.TensorProtocol:
    import numpy as np
    import onnx_ir as ir

    rounded = values.astype(dtype.numpy())
    if not np.isfinite(rounded.astype(np.float64)).all():
        raise Refusal(f"the folded {what} overflow {dtype.name}")
    return ir.tensor(rounded, dtype=dtype)


def _place(node: ir.Node, index: int, old: ir.Value | None, tensor: ir.TensorProtocol, taken: set[str]) -> None:
    """Put a tensor at an input: into the initializer that only this node reads, else into a new one."""
    import onnx_ir as ir

    graph = node.graph
    assert isinstance(graph, ir.Graph)
    alone = old is not None and len(old.uses()) == 1 and not old.is_graph_output()
    if old is not None and alone and old.is_initializer():
        tensor.name = old.name
        old.const_value, old.shape, old.type = tensor, ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        return
    name = _free_name(taken, f"{node.outputs[0].name}_folded_{'weight' if index == 1 else 'bias'}")
    tensor.name = name
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _free_name(taken: set[str], wanted: str) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name
