"""A model's protobuf without its large weights: what onnx's own C++ functions take however big the model is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

SMALL_BYTES = 1024  # shapes, axes and pads stay, because shape inference reads them


def weightless(model: ir.Model, *, hollow_bodies: bool = False) -> onnx.ModelProto:
    """Serialise a copy whose large initializers are inputs, and whose small ones are inside, wherever they lay before.

    A body can't have inputs of its own making: its large initializers stay inside, or, with ``hollow_bodies``, are
    declared without data, which shape inference takes and the checker doesn't. The model itself is left as it is.
    Raises what onnx-ir raises for a graph that can't be serialised.
    """
    import onnx_ir as ir

    copy = model.clone()
    inputs = set(copy.graph.inputs)
    for name, value in list(copy.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        if value.shape is None:
            value.shape = ir.Shape(tensor.shape.numpy())
        if value.type is None:
            value.type = ir.TensorType(tensor.dtype)
        if value not in inputs:
            copy.graph.inputs.append(value)
        if tensor.nbytes > SMALL_BYTES:
            value.const_value = None
            copy.graph.initializers.pop(name)
    for scope in copy.graphs():
        for value in scope.initializers.values():
            tensor = value.const_value
            if tensor is None:
                continue
            if hollow_bodies and tensor.nbytes > SMALL_BYTES:
                shape = ir.Shape(tensor.shape.numpy())
                value.const_value = ir.ExternalTensor("", 0, 0, tensor.dtype, shape=shape, name=str(value.name))
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy().copy(), name=value.name)
    return ir.serde.serialize_model(copy)
