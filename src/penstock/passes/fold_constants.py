"""Compute what depends on constants alone.

1. A node whose inputs are all constants becomes a constant, by the reference implementation of its operator.
2. Nothing makes the file larger: a result above ``SMALL`` bytes must not be larger than the constants that go with the
   node (Expand, ConstantOfShape, Range and Tile make much out of little). Where the shape of the result isn't known
   before it is computed, or it is larger than ``MOST`` bytes, the node stays.
3. Quantize and Dequantize nodes stay: they are the quantization. Random operators stay, and those of which the
   reference implementation knows the newest meaning alone.
4. An If whose condition is constant becomes its branch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._library import quiet
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir

PHASE: Phase = "fold"
AFTER: tuple[str, ...] = ("fold-shapes",)
OPERATORS: tuple[str, ...] = ("*",)
SMALL = 4096  # bytes
MOST = 256 << 20  # bytes
_LEFT = frozenset(
    """QuantizeLinear DequantizeLinear DynamicQuantizeLinear RandomNormal RandomUniform RandomNormalLike
    RandomUniformLike Multinomial Bernoulli Dropout Constant If Loop Scan Identity SequenceEmpty SequenceConstruct
    Optional SequenceMap SplitToSequence RoiAlign""".split()  # noqa: SIM905  # a list this long reads better as a text
)
# before opset 13 over all axes from one on: the reference implementation has the later meaning, as RoiAlign's has
_FLATTENED = frozenset(("Softmax", "LogSoftmax", "Hardmax"))


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Compute the node, if all it reads is constant and the result is worth keeping."""
    if node.domain != "" or node.op_type in _LEFT or not node.inputs:
        return None
    if site.opset < 13 and node.op_type in _FLATTENED:
        return None
    for value in node.inputs:  # most nodes end here
        if value is not None and site.tensor(value) is None:
            return None
    going = 0
    for value in node.inputs:
        tensor = site.tensor(value)
        if value is not None and tensor is not None:
            going += tensor.nbytes if site.sole_reader(value) else 0
    size = 0
    for value in node.outputs:
        shape = site.static(value)
        if shape is None or value.dtype is None or value.dtype.is_string():
            raise Refusal("the size of its result isn't known before it is computed")
        size += math.ceil(math.prod(shape) * value.dtype.itemsize)
    if size > MOST or (size > SMALL and size > going):
        raise Refusal(f"its result has {size:,} bytes, {going:,} would go: the file would grow")
    arrays = _computed(node, site)
    values = {}
    for value, array in zip([value for value in node.outputs if value.name], arrays, strict=True):
        if value.uses() or value.is_graph_output():
            values[value] = site.constant(array, value.dtype)
    return Rewrite(values, "all it reads is constant") if values else None


def _alone(node: ir.Node, site: Site) -> onnx.ModelProto:
    """Return a model of this node alone, at the model's opset."""
    import onnx
    import onnx_ir as ir

    info = onnx.helper.make_tensor_value_info
    proto = ir.serde.serialize_node(node)
    inputs = [info(name, onnx.TensorProto.UNDEFINED, None) for name in dict.fromkeys(proto.input) if name]
    outputs = [info(name, onnx.TensorProto.UNDEFINED, None) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "alone", inputs, outputs)
    made: onnx.ModelProto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", site.opset)])
    return made


def _computed(node: ir.Node, site: Site) -> list[np.ndarray]:
    import numpy as np
    from onnx.reference import ReferenceEvaluator

    feeds = {str(v.name): array for v in node.inputs if v is not None and (array := site.array(v)) is not None}
    if any(array.dtype.kind == "V" for array in feeds.values()):
        raise Refusal("the reference implementation doesn't compute this type")
    try:
        with quiet():
            results = ReferenceEvaluator(_alone(node, site)).run(None, feeds)
    except Exception as error:  # an operator version that the reference lacks, or numbers that don't fit
        raise Refusal(
            f"it can't be computed here: {str(error).splitlines()[0][:100] if str(error) else error!r}"
        ) from error
    arrays = []
    for value, result in zip([value for value in node.outputs if value.name], results, strict=True):
        array = np.asarray(result)
        if value.dtype is not None and value.dtype.name not in ("BFLOAT16",) and array.dtype != value.dtype.numpy():
            raise Refusal(f"the reference implementation gives {array.dtype}, the model wants {value.dtype}")
        arrays.append(array)
    return arrays
