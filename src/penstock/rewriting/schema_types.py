"""Which element types the standard's operators take, by opset: what a rule makes has to be standard ONNX."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def misfit(node: ir.Node, opset: int) -> str:
    """Tell what a standard operator reads that it doesn't take in this opset; nothing where all is well, or unknown."""
    if node.domain != "":
        return ""
    for place, value in enumerate(node.inputs):
        if value is not None and value.dtype is not None and not _takes(node.op_type, opset, place, value.dtype.name):
            return f"{node.op_type} of opset {opset} takes no {value.dtype.name.lower()}"
    return ""


@functools.cache
def _takes(operator: str, opset: int, place: int, kind: str) -> bool:
    import onnx

    try:
        schema = onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError:
        return True
    if not schema.inputs:
        return True
    return f"tensor({kind.lower()})" in schema.inputs[min(place, len(schema.inputs) - 1)].types
