"""The IR version that a model needs: the one of its opset's release, more where something in it came later."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

PLAIN = 4  # before it, every initializer had to be an input as well
FUNCTIONS, OVERLOADS = 8, 10
TYPES = {  # the version that brought a type of elements
    "BFLOAT16": 4, "FLOAT8E4M3FN": 9, "FLOAT8E4M3FNUZ": 9, "FLOAT8E5M2": 9, "FLOAT8E5M2FNUZ": 9, "INT4": 10,
    "UINT4": 10, "FLOAT4E2M1": 11, "FLOAT8E8M0": 12, "INT2": 13, "UINT2": 13,
}  # fmt: skip


def fitting(model: ir.Model, before: int, after: int) -> int:
    """Return the lowest IR version for a model that came from opset ``before`` and is of ``after`` now.

    It is that of the newer opset's release; a model that claims less for its opset already isn't given more.
    """
    import onnx

    from penstock.graph import all_nodes

    released = onnx.helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", after), PLAIN)
    needed = max(PLAIN, released if after > before else min(released, model.ir_version or released))
    for key in model.functions:
        needed = max(needed, OVERLOADS if key[2] else FUNCTIONS)
    values = [value for node in all_nodes(model) for value in node.outputs]
    for graph in model.graphs():
        values += [*graph.inputs, *graph.initializers.values()]
    kinds = {value.dtype.name for value in values if value.dtype is not None}
    return max([needed, *(TYPES.get(kind, 0) for kind in kinds)])
