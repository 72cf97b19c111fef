"""Binding: which inputs and outputs of a node become 16 bits wide when it computes in them, by ONNX's own schemas.

A type that a schema names once holds for all that is bound to it: either all of a node's values of that type become
16 bits wide or none does. What can't is left in float32, as the ``scales`` of Resize are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.quantization.half.types import Half
from penstock.rewriting.walk import bodies_in, refers

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

# of ONNX Runtime's own operators, those whose floats are all of one type
ONE_TYPE = frozenset({
    "Attention", "BiasGelu", "EmbedLayerNormalization", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "Gelu",
    "QuickGelu", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
})  # fmt: skip
# inputs that stay in float32 though the schema takes less: positions in an image, which 11 bits don't hold
POSITIONS: Mapping[str, tuple[int, ...]] = {"GridSample": (1,), "Resize": (1,)}


@dataclass(frozen=True, slots=True)
class Binding:
    """Numbers of the float32 inputs and outputs that become 16 bits wide; ``reason`` says why none can."""

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    reason: str = ""

    @property
    def possible(self) -> bool:
        """Whether the node can compute in 16 bits at all."""
        return bool(self.inputs or self.outputs)


def is_float32(value: ir.Value | None) -> bool:
    """Whether a value is a tensor of float32."""
    import onnx_ir as ir

    return value is not None and isinstance(value.type, ir.TensorType) and value.type.dtype == ir.DataType.FLOAT


def bound(node: ir.Node, opsets: Mapping[str, int], half: Half) -> Binding:
    """Find out what a node of a model with these opsets would read and make in 16 bits."""
    import onnx_ir as ir

    if any(True for _ in bodies_in(node)):
        return Binding(reason="the tensors in its body can't be looked at, so it computes in fp32")
    reads = tuple(i for i, value in enumerate(node.inputs) if is_float32(value))
    makes = tuple(i for i, value in enumerate(node.outputs) if is_float32(value))
    named = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    if any(value.type is None for value in named):
        return Binding(reason="the types of what it reads and makes aren't known")
    if not reads and not makes:
        return Binding()
    if any(not isinstance(value.type, ir.TensorType) for value in named):
        return Binding(reason="it handles sequences or optional values, not tensors alone")
    if refers(node):
        return Binding(reason="its attributes differ from call to call")
    if node.domain == "com.microsoft" and node.op_type in ONE_TYPE:
        return Binding(reads, makes)
    schema = _schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    if schema is None:
        return Binding(reason=f"nothing says which types {node.op_type} of {node.domain or 'ai.onnx'} takes")
    pinned = POSITIONS.get(node.op_type, ())
    inputs = tuple(i for i in reads if i not in pinned and _takes(schema, False, i, half))
    outputs = tuple(i for i in makes if _takes(schema, True, i, half))
    if not inputs and not outputs:
        known = f"{node.op_type} of opset {opsets.get(node.domain, 1)}"
        return Binding(reason=f"{known} takes no {half.onnx.lower()}")
    return Binding(inputs, outputs)


@functools.cache
def _schema(operator: str, opset: int, domain: str) -> onnx.defs.OpSchema | None:
    import onnx

    try:
        return onnx.defs.get_schema(operator, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _takes(schema: onnx.defs.OpSchema, made: bool, place: int, half: Half) -> bool:
    formal = schema.outputs if made else schema.inputs
    return bool(formal) and f"tensor({half.onnx.lower()})" in formal[min(place, len(formal) - 1)].types
