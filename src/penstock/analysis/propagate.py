"""Fill the gaps of shape inference: with every size concrete, shape arithmetic is plain arithmetic and can be done.

onnx's own inference follows only some operators through the Shape → Gather → Concat → Reshape chains that exporters
write, and knows none of the ``com.microsoft`` operators. Here every node is visited once in order: a small result whose
inputs are all known is computed by onnx's reference implementation; any other node gets onnx's inference for one node.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir

    Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]

Shape = tuple[int, ...]
SMALL = 1024  # elements of a result that is worth computing
_COMPUTED = frozenset(
    """Abs Add And Cast Ceil Concat ConstantOfShape Div Equal Expand Flatten Floor Gather Greater Identity Less Max Min
    Mod Mul Neg Not Or Pow Range ReduceMax ReduceMin ReduceProd ReduceSum Reshape Round ScatterND Shape Size Slice
    Split Sqrt Squeeze Sub Tile Transpose Unsqueeze Where""".split()  # noqa: SIM905  # a list this long reads better as a text
)
# operators that give a tensor of their input's shape, and those that are a standard operator with additions
_SAME = frozenset(
    """BiasGelu FastGelu Gelu QuickGelu SkipLayerNormalization SkipSimplifiedLayerNormalization QLinearSigmoid
    QLinearLeakyRelu QLinearSoftmax SimplifiedLayerNormalization LayerNormalization""".split()  # noqa: SIM905  # a list this long reads better as a text
)
_LIKE = {
    "FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul", "DynamicQuantizeMatMul": "MatMul",
    "MatMulIntegerToFloat": "MatMul", "QLinearGlobalAveragePool": "GlobalAveragePool", "QLinearAdd": "Add",
    "QLinearMul": "Mul", "QGemm": "Gemm",
}  # fmt: skip
_OPERANDS = {
    "QLinearAdd": (0, 3),
    "QLinearMul": (0, 3),
    "QGemm": (0, 3),
    "FusedConv": (0, 1, 2),
    "FusedGemm": (0, 1, 2),
}


def propagate(model: ir.Model, shapes: dict[ir.Value, Shape]) -> None:
    """Add what can be found to ``shapes``, and missing element types to the model's values."""
    _visit(model.graph, _State(dict(model.opset_imports), shapes))


class _State:
    def __init__(self, opsets: dict[str, int], shapes: dict[ir.Value, Shape]) -> None:
        self.opsets = opsets
        self.shapes = shapes
        self.numbers: dict[ir.Value, Array] = {}

    def number(self, value: ir.Value | None) -> Array | None:
        """Return the numbers of a small constant, an input's default or a computed value."""
        from onnx_ir import convenience

        if value is None:
            return None
        if value not in self.numbers:
            tensor = convenience.get_const_tensor(value)
            if tensor is None or tensor.size > SMALL:
                return None
            self.numbers[value] = tensor.numpy()
        return self.numbers[value]


def _visit(graph: ir.Graph, state: _State) -> None:
    for node in graph:
        with contextlib.suppress(Exception):  # a node of a damaged file may make no sense: then its shapes stay unknown
            _visit_node(node, state)


def _visit_node(node: ir.Node, state: _State) -> None:
    if node.domain == "" and node.op_type == "If":
        _visit_if(node, state)
        return
    for attribute in node.attributes.values():
        if not attribute.is_ref() and attribute.type.name == "GRAPH":
            _visit(attribute.as_graph(), state)
    if node.op_type == "Constant" and node.domain == "":
        if (tensor := state.number(node.outputs[0])) is not None:
            state.shapes[node.outputs[0]] = tensor.shape
        return
    if any(value.name and (value not in state.shapes or value.dtype is None) for value in node.outputs):
        _infer(node, state)
    if node.domain == "" and node.op_type in _COMPUTED:
        _compute(node, state)


def _visit_if(node: ir.Node, state: _State) -> None:
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch") if name in node.attributes]
    for branch in branches:
        _visit(branch, state)
    condition = state.number(node.inputs[0])
    if condition is not None and len(branches) == 2:
        branches = [branches[0] if condition.all() else branches[1]]
    for index, value in enumerate(node.outputs):
        ends = [branch.outputs[index] for branch in branches]
        found = {state.shapes.get(end) for end in ends}
        if value not in state.shapes and len(found) == 1 and (shape := found.pop()) is not None:
            state.shapes[value] = shape
        if value.type is None and ends:
            value.type = ends[0].type
        if len(ends) == 1 and (tensor := state.number(ends[0])) is not None:
            state.numbers[value] = tensor


def _infer(node: ir.Node, state: _State) -> None:
    import onnx
    import onnx_ir as ir

    first = node.inputs[0] if node.inputs else None
    if node.domain == "com.microsoft" and _by_hand(node, state):
        if node.outputs[0].type is None and first is not None:
            node.outputs[0].type = first.type
        return
    op = _LIKE.get(node.op_type, node.op_type) if node.domain == "com.microsoft" else node.op_type
    if node.domain == "com.microsoft" and op == node.op_type:
        return
    picked = [node.inputs[i] for i in _OPERANDS.get(node.op_type, range(len(node.inputs))) if i < len(node.inputs)]
    types, data = {}, {}
    for value in picked:
        if value is None or not value.name:
            continue
        dtype = ir.DataType.FLOAT if op != node.op_type else value.dtype
        if dtype is None:
            return
        types[value.name] = onnx.helper.make_tensor_type_proto(int(dtype), state.shapes.get(value))
        if (tensor := state.number(value)) is not None and tensor.dtype.kind in "iuf" and value.dtype == dtype:
            data[value.name] = onnx.numpy_helper.from_array(tensor, value.name)
    try:
        domain = "" if op != node.op_type else node.domain
        schema = onnx.defs.get_schema(op, state.opsets.get(domain, 1), domain)
        proto = _proto(node, op, picked, set(schema.attributes))
        found = onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=[onnx.helper.make_opsetid(*item) for item in state.opsets.items()]
        )
    except Exception:  # no schema, or shapes that don't fit: the value stays unknown, and is reported as that
        return
    for value in node.outputs:
        if value.name in found and found[value.name].HasField("tensor_type"):
            _take(value, found[value.name].tensor_type, state, first if op != node.op_type else None)


def _proto(node: ir.Node, op: str, inputs: list[ir.Value | None], known: set[str]) -> onnx.NodeProto:
    import onnx
    import onnx_ir as ir

    proto = onnx.NodeProto(op_type=op, domain="" if op != node.op_type else node.domain, name=node.name or "")
    proto.input.extend("" if value is None else str(value.name) for value in inputs)
    proto.output.extend(str(value.name) for value in node.outputs)
    for name, attribute in node.attributes.items():
        if name in known and not attribute.is_ref():
            proto.attribute.append(ir.serde.serialize_attribute(attribute))
    return proto


def _take(value: ir.Value, found: onnx.TypeProto.Tensor, state: _State, like: ir.Value | None) -> None:
    import onnx_ir as ir

    if value.type is None:
        value.type = like.type if like is not None else ir.TensorType(ir.DataType(found.elem_type))
    dims = found.shape.dim
    if found.HasField("shape") and all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims):
        state.shapes.setdefault(value, tuple(dim.dim_value for dim in dims))


def _by_hand(node: ir.Node, state: _State) -> bool:
    """Set the first output's shape for operators that onnx has no schema for; tell whether a rule was found."""
    shapes = [None if value is None else state.shapes.get(value) for value in node.inputs]
    output, first = node.outputs[0], shapes[0] if shapes else None
    shape: Shape | None = None
    if node.op_type in _SAME:
        shape = first
    elif node.op_type == "Attention" and first and len(shapes) > 1 and (weight := shapes[1]):
        shape = (*first[:-1], weight[1] // 3)
    elif node.op_type == "MultiHeadAttention" and first and len(shapes) > 2 and (last := shapes[2]):
        shape = (*first[:-1], last[-1])
    elif node.op_type == "EmbedLayerNormalization" and first and len(shapes) > 2 and (table := shapes[2]):
        shape = (*first, table[-1])
        output.type = node.inputs[2].type if node.inputs[2] is not None else None
    elif node.op_type == "MatMulNBits" and first:
        shape = (*first[:-1], int(node.attributes["N"].value)) if "N" in node.attributes else None
    else:
        return False
    if shape is not None:
        state.shapes.setdefault(output, shape)
    return True


def _compute(node: ir.Node, state: _State) -> None:
    """Compute a node's results where they are small and all it reads is known."""
    import numpy as np
    import onnx
    from onnx.reference import ReferenceEvaluator

    from penstock.passes._library import quiet

    sizes = [math.prod(state.shapes[value]) if value in state.shapes else SMALL + 1 for value in node.outputs]
    if any(size > SMALL for size in sizes):
        return
    if node.op_type in ("Shape", "Size") and node.inputs[0] in state.shapes:
        shape = np.array(state.shapes[node.inputs[0]], dtype=np.int64)
        start, end = (node.attributes.get(name) for name in ("start", "end"))
        sliced = shape[None if start is None else start.value : None if end is None else end.value]
        state.numbers[node.outputs[0]] = sliced if node.op_type == "Shape" else np.array(shape.prod(), dtype=np.int64)
        return
    feeds = {str(value.name): state.number(value) for value in node.inputs if value is not None}
    if not feeds or any(tensor is None for tensor in feeds.values()):
        return
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in feeds]
    outputs = [onnx.helper.make_tensor_value_info(str(v.name), onnx.TensorProto.UNDEFINED, None) for v in node.outputs]
    schema = onnx.defs.get_schema(node.op_type, state.opsets.get("", 1), "")
    proto = _proto(node, node.op_type, list(node.inputs), set(schema.attributes))
    graph = onnx.helper.make_graph([proto], "one", inputs, outputs)
    imports = [onnx.helper.make_opsetid("", state.opsets.get("", 1))]
    try:
        with quiet():
            results = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=imports)).run(None, feeds)
    except Exception:  # an operator version that the reference lacks, or numbers that don't fit: stays unknown
        return
    for value, tensor in zip(node.outputs, results, strict=True):
        if isinstance(tensor, np.ndarray):
            state.numbers[value] = tensor
