"""Which constants of a graph are weights that training changes, and which are a part of the formula and stay."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from penstock.quantization.placement import constant

if TYPE_CHECKING:
    import onnx_ir as ir

# operator → the inputs that are weights by its definition. The mean and the variance of a BatchNormalization that
# wasn't folded aren't among them: they are statistics, which no gradient is for
BY_DEFINITION: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2), "Conv": (1, 2), "ConvTranspose": (1, 2), "Gather": (0,), "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2), "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2), "MatMul": (0, 1),
    "PRelu": (1,), "RMSNormalization": (1,),
}  # fmt: skip


def trained(model: ir.Model, named: Collection[str] = ()) -> frozenset[str]:
    """Return the names of the initializers that are trained; ``named`` are known to be parameters of a module.

    1. What an operator calls its weights: the filters of a Conv, the rows of a table.
    2. What is added to the product of a MatMul with such weights: the bias of a linear layer.
    3. What bears the name of a parameter of the module that was exported.

    The 0.5 of a GELU, the table of a positional encoding that is no parameter, a mask: these stay.
    """
    import onnx_ir as ir

    found: set[str] = set()
    for node in model.graph:
        wanted = BY_DEFINITION.get(node.op_type, ()) if node.domain == "" else ()
        if node.op_type == "Add" and any(_is_product(value) for value in node.inputs):
            wanted = (0, 1)
        found.update(str(v.name) for i, v in enumerate(node.inputs) if v is not None and constant(v) and i in wanted)
    found |= set(named) & set(model.graph.initializers)
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
    held = model.graph.initializers
    return frozenset(name for name in found if held[name].const_value is not None and held[name].dtype in floats)


def _is_product(value: ir.Value | None) -> bool:
    maker = value.producer() if value is not None else None
    return maker is not None and maker.op_type == "MatMul" and any(constant(one) for one in maker.inputs)
