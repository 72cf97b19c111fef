"""The shape of every value, by onnx's shape inference, with each dynamic dimension given a size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock import guard
from penstock.analysis.propagate import propagate
from penstock.analysis.weightless import weightless
from penstock.graph import first_line

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DynamicDim:
    """A dimension that the file leaves open: its name, where it stands first, and the size used for the figures."""

    name: str
    where: str
    size: int


def fix_inputs(model: ir.Model, sizes: Mapping[str, int]) -> tuple[DynamicDim, ...]:
    """Give every dynamic dimension of the inputs a size, in place: from ``sizes`` by name, else 1.

    A dimension without a name goes by ``input[axis]``. Named dimensions that stand elsewhere get the same size.
    """
    import onnx_ir as ir

    found: dict[str, DynamicDim] = {}
    for value in model.graph.inputs:
        if value.shape is None or value.is_initializer():
            continue
        fixed = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                fixed.append(dim)
                continue
            name = dim.value or f"{value.name}[{axis}]"
            entry = found.setdefault(name, DynamicDim(name, f"{value.name}[{axis}]", sizes.get(name, 1)))
            fixed.append(entry.size)
        value.shape = ir.Shape(fixed)
    return tuple(found.values())


def infer(model: ir.Model, dims: tuple[DynamicDim, ...]) -> tuple[dict[ir.Value, Shape], str]:
    """Return the known static shapes, and why inference failed (empty where it didn't).

    What inference leaves open is taken from what the file itself declares, where ``dims`` give every name a size. A
    value whose shape is found by neither is absent from the result. Missing element types are added to the model's
    values, which is why it is given a copy.
    """
    sizes = {dim.name: dim.size for dim in dims}
    declared = {value: value.shape for value in _values(model)}
    outputs = list(model.graph.outputs)
    inputs = set(model.graph.inputs)
    known: dict[ir.Value, Shape] = {}
    problem = ""
    try:
        for value in declared:  # a declared [batch, …] would stand beside the inferred sizes, and the checker object
            if value not in inputs and (value.shape is None or not value.shape.is_static()):
                value.shape = None
        known, problem = _run(model)
    finally:
        for value, shape in declared.items():
            value.shape = shape
    for value in declared:
        if value not in known and value.const_value is not None:
            known[value] = tuple(int(dim) for dim in value.const_value.shape.numpy())
    propagate(model, known)
    for value in (*declared, *outputs):
        if value not in known and (size := _sized(declared.get(value), sizes)) is not None:
            known[value] = size
    return known, problem


def _values(model: ir.Model) -> list[ir.Value]:
    found: dict[ir.Value, None] = {}
    for graph in model.graphs():
        found |= dict.fromkeys([*graph.inputs, *graph.initializers.values()])
    for node in model.graph.all_nodes():
        found |= dict.fromkeys(node.outputs)
    return list(found)


def _run(model: ir.Model) -> tuple[dict[ir.Value, Shape], str]:
    import onnx

    try:
        bare = weightless(model, hollow_bodies=True)
        bare.ClearField("functions")  # what isn't inlined is not looked into: it may stand for millions of nodes
        with guard.limited_memory():  # it makes up an entry for every element of a one-dimensional value
            proto = onnx.shape_inference.infer_shapes(bare, strict_mode=False, data_prop=True)
    except Exception as error:  # C++ exceptions of several types, about graphs of any kind
        return {}, f"shape inference failed: {first_line(error)}"
    known: dict[ir.Value, Shape] = {}
    _collect(model.graph, proto.graph, known)
    return known, ""


def _collect(graph: ir.Graph, proto: onnx.GraphProto, known: dict[ir.Value, Shape]) -> None:
    """Carry the shapes of a graph's protobuf over to its values; bodies are matched by node and attribute."""
    import onnx_ir as ir

    shapes: dict[str, Shape] = {}
    types = {info.name: info.type.tensor_type.elem_type for info in (*proto.output, *proto.value_info)}
    for info in (*proto.input, *proto.output, *proto.value_info):
        if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            if all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims):
                shapes[info.name] = tuple(dim.dim_value for dim in dims)
    for tensor in proto.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    for value in (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)):
        if value.name in shapes:
            known[value] = shapes[value.name]
        if value.type is None and value.name and types.get(value.name):
            value.type = ir.TensorType(ir.DataType(types[value.name]))
    for node, inferred in zip(graph, proto.node, strict=True):
        bodies = {attribute.name: attribute.g for attribute in inferred.attribute if attribute.HasField("g")}
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH and attribute.name in bodies:
                _collect(attribute.as_graph(), bodies[attribute.name], known)


def _sized(shape: ir.Shape | None, sizes: Mapping[str, int]) -> Shape | None:
    if shape is None:
        return None
    found = []
    for dim in shape:
        size = dim if isinstance(dim, int) else sizes.get(dim.value or "")
        if size is None or size < 0:
            return None
        found.append(size)
    return tuple(found)
