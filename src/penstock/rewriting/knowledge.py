"""What is known of the values of a model without running it: types, shapes, and the elements of small integer tensors.

Shapes and elements are sizes (:mod:`penstock.rewriting.sizes`), so that ``Shape → Gather → Concat → Reshape`` chains
come out as numbers, or as products of named dimensions, where they are that. Nodes are visited once, in order. What the
rules here don't know is asked of onnx's own inference, node by node. Nothing that the file declares of its inner values
is believed, but for what operators of other domains give.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.rewriting.sizes import Product, Size, equal, named, product
from penstock.rewriting.walk import has_attributes, refers

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir

    Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]

Shape = tuple[Size, ...]
Elements = tuple[Size, ...]
# operators of ONNX Runtime whose result is of their first input's type
AS_FIRST_INPUT = {
    "BiasGelu", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "Gelu", "QuickGelu", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
}  # fmt: skip
MOST_ELEMENTS = 64  # of a tensor that is followed element by element
MOST_AGAIN = 300_000  # nodes in bodies of loops that are looked at, a body that lies in others each time
MOST_ASKED_BYTES = 1 << 16  # of a constant that is shown to onnx's inference


class Knowledge:
    """Shapes and elements by value; types are kept on the values themselves."""

    def __init__(self, model: ir.Model) -> None:
        self._imports = dict(model.opset_imports)
        self.opset = self._imports.get("", 1)
        self.functions = frozenset(model.functions)
        self.shapes: dict[ir.Value, Shape] = {}
        self.elements: dict[ir.Value, Elements] = {}
        self._opset_protos: list[onnx.OperatorSetIdProto] = []
        self._left = MOST_AGAIN

    def forget(self) -> None:
        """Begin anew."""
        self.shapes.clear()
        self.elements.clear()
        self._left = MOST_AGAIN

    def move_to(self, opset: int) -> None:
        """Read the standard operators by another opset from now on."""
        if opset != self.opset:
            self.opset = self._imports[""] = opset
            self._opset_protos = []

    def spend(self, count: int) -> bool:
        """Take from what may be spent on looking at bodies over and over; whether there was enough left."""
        self._left -= count
        return self._left >= 0

    def learn(self, graph: ir.Graph, *, believed: bool = True) -> None:
        """Visit a graph from its inputs on. What it declares of them is ``believed`` where it is an interface."""
        for value in graph.inputs:
            if believed and value not in self.shapes and value.shape is not None:
                self.shapes[value] = declared(value.shape)
        self._visit_all(graph)

    def _visit_all(self, nodes: Iterable[ir.Node]) -> None:
        for node in nodes:
            self.visit(node)

    def visit(self, node: ir.Node) -> None:
        """Find out what a node's outputs are. A node that makes no sense leaves them unknown."""
        try:
            self._visit(node)
        except Exception:  # a graph of any kind comes here, damaged ones too
            return

    def _visit(self, node: ir.Node) -> None:
        if node.domain == "":
            if refers(node):
                return
            inside, shapes, elements = _rules()
            if rule := inside.get(node.op_type):
                rule(node, self)
                return
            done = False
            if shape_of := shapes.get(node.op_type):
                try:
                    shape_of(node, self)
                    done = node.outputs[0] in self.shapes and node.outputs[0].type is not None
                except (_Unsure, IndexError, AttributeError, TypeError, KeyError):
                    done = False
            if not done or len(node.outputs) > 1:
                self.ask_onnx(node)
            if elements_of := elements.get(node.op_type):
                with contextlib.suppress(_Unsure, IndexError, AttributeError, TypeError, KeyError):
                    elements_of(node, self)
            return
        for value in node.outputs:
            if value.shape is not None and value not in self.shapes:
                self.shapes[value] = declared(value.shape)
        if node.domain == "com.microsoft" and node.op_type in AS_FIRST_INPUT:
            self.put(node.outputs[0], None, node.inputs[0])
        for attribute in node.attributes.values() if has_attributes(node) else ():
            if not attribute.is_ref() and attribute.type.name == "GRAPH":
                self._visit_all(attribute.as_graph())

    # -- reading -------------------------------------------------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> Shape | None:
        """Return the shape, ``None`` where not even the rank is known."""
        if value is None:
            return None
        found = self.shapes.get(value)
        if found is None and (tensor := constant(value)) is not None:
            found = self.shapes[value] = tuple(int(dim) for dim in tensor.shape.numpy())
        return found

    def sizes(self, value: ir.Value | None) -> Elements | None:
        """Return the elements of an integer tensor of rank 0 or 1, as far as they are known."""
        if value is None:
            return None
        found = self.elements.get(value)
        if found is None and (tensor := constant(value)) is not None and tensor.size <= MOST_ELEMENTS:
            if len(tensor.shape) > 1 or tensor.dtype.name not in ("INT64", "INT32", "BOOL"):
                return None
            found = self.elements[value] = tuple(int(item) for item in tensor.numpy().reshape(-1))
        return found

    # -- writing -------------------------------------------------------------------------------------------------------

    def put(self, value: ir.Value, shape: Sequence[Size] | None, like: ir.Value | ir.DataType | None = None) -> None:
        """Note a shape, and a type where the value has none."""
        import onnx_ir as ir

        if shape is not None:
            self.shapes[value] = tuple(shape)
        if value.type is None and like is not None:
            if isinstance(like, ir.DataType):
                value.type = ir.TensorType(like)
            elif like.type is not None:
                value.type = like.type
            elif (tensor := constant(like)) is not None:
                value.type = ir.TensorType(tensor.dtype)

    def ask_onnx(self, node: ir.Node) -> None:
        """Let onnx infer one node from what is known of its inputs."""
        import onnx
        import onnx_ir as ir

        known = [value in self.shapes and value.type is not None for value in node.outputs if value.name]
        if known and all(known):
            return
        if not self._opset_protos:
            self._opset_protos = [onnx.helper.make_opsetid(*item) for item in self._imports.items()]
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, onnx.TensorProto] = {}
        for value in node.inputs:
            if value is None or not value.name:
                continue
            tensor = constant(value)
            dtype = value.dtype if tensor is None else tensor.dtype
            if value.type is not None and not isinstance(value.type, ir.TensorType):
                types[value.name] = ir.serde.serialize_type(value.type)
                continue
            if dtype is None:
                return
            types[value.name] = _type_proto(dtype, self.shape(value))
            if tensor is not None and tensor.nbytes <= MOST_ASKED_BYTES and dtype.name in ("INT64", "INT32", "FLOAT"):
                data[value.name] = onnx.numpy_helper.from_array(tensor.numpy(), value.name)
            elif (items := self.elements.get(value)) and all(isinstance(item, int) for item in items):
                import numpy as np

                numbers = np.array(items, dtype=dtype.numpy()).reshape(() if self.shape(value) == () else -1)
                data[value.name] = onnx.numpy_helper.from_array(numbers, value.name)
        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        proto = ir.serde.serialize_node(node)
        found = onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=self._opset_protos, ir_version=10
        )
        for value in node.outputs:
            if value.name not in found or value in self.shapes:
                continue
            if not found[value.name].HasField("tensor_type"):
                value.type = value.type or ir.serde.deserialize_type_proto_for_type(found[value.name])
                continue
            answer = found[value.name].tensor_type
            shape = tuple(_size(dim) for dim in answer.shape.dim) if answer.HasField("shape") else None
            self.put(value, shape, ir.DataType(answer.elem_type) if answer.elem_type else None)


@functools.cache
def _rules() -> tuple[Mapping[str, Rule], ...]:
    """Return the rules by operator: of nodes with bodies, for shapes, and for elements."""
    from penstock.rewriting import control_flow, element_rules, layer_shapes, shape_rules  # noqa: F401  # rules register

    return control_flow.RULES, shape_rules.RULES, element_rules.RULES


class _Unsure(Exception):  # noqa: N818
    """Raised by a rule that can't tell."""


unsure = _Unsure


def constant(value: ir.Value) -> ir.TensorProtocol | None:
    """Return a value's tensor: an initializer that no caller can override, or a Constant's."""
    tensor = value.const_value
    if tensor is not None:
        return None if value.is_graph_input() else alone(tensor)
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain != "":
        return None
    held = node.attributes.get("value")
    if held is not None and not held.is_ref() and len(node.attributes) == 1:
        return held.as_tensor()  # get_const_tensor would name it, and so change the model by looking at it
    from onnx_ir import convenience

    return convenience.get_const_tensor(value)


def alone(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a tensor that lies in another file as one that reads its own part of it, each time it is asked.

    onnx-ir maps the whole file for every tensor, and keeps it: hundreds of tensors in gigabytes leave no address space.
    """
    import onnx_ir as ir

    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth < 8 or tensor.size == 0:
        return tensor
    return ir.LazyTensor(lambda: _read(tensor), tensor.dtype, tensor.shape, name=tensor.name)


def _read(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    import numpy as np
    import onnx_ir as ir

    with Path(tensor.path).open("rb") as file:
        file.seek(tensor.offset or 0)
        data = file.read(tensor.nbytes)
    array = np.frombuffer(data, np.dtype(tensor.dtype.numpy()).newbyteorder("<")).reshape(tensor.shape.numpy())
    return ir.Tensor(array, dtype=tensor.dtype)


def declared(shape: ir.Shape) -> Shape:
    """Return a declared shape as sizes; a negative number is no size."""
    found: list[Size] = []
    for dim in shape:
        if isinstance(dim, int):
            found.append(dim if dim >= 0 else None)
        else:
            found.append(named(dim.value) if dim.value else None)
    return tuple(found)


def _type_proto(dtype: ir.DataType, shape: Shape | None) -> onnx.TypeProto:
    import onnx

    proto = onnx.TypeProto()
    proto.tensor_type.elem_type = int(dtype)
    if shape is not None:
        proto.tensor_type.shape.SetInParent()
        for size in shape:
            dim = proto.tensor_type.shape.dim.add()
            if isinstance(size, int):
                dim.dim_value = size
            elif size is not None:
                dim.dim_param = str(size)
    return proto


def _size(dim: onnx.TensorShapeProto.Dimension) -> Size:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return named(dim.dim_param) if dim.dim_param and not dim.dim_param.startswith("unk__") else None


def count(shape: Shape | None) -> Size:
    """Return the number of elements of a shape."""
    return None if shape is None else product(shape)


def to_ir(shape: Shape) -> ir.Shape:
    """Return the shape as a file declares it; products of dimensions have no name there."""
    import onnx_ir as ir

    plain = [size.names[0] if isinstance(size, Product) and size.factor == 1 and len(size.names) == 1 else size
             for size in shape]  # fmt: skip
    return ir.Shape([size if isinstance(size, int | str) else None for size in plain])


Rule = Callable[["ir.Node", Knowledge], None]

__all__ = [
    "Elements", "Knowledge", "Rule", "Shape", "alone", "constant", "count", "declared", "equal", "to_ir", "unsure",
]  # fmt: skip
