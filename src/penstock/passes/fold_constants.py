"""Compute what depends on constants alone.

1. A node whose inputs are all constants becomes an initializer, by the reference implementation of its operator.
2. Shapes, sizes and casts that are known from the types are constants too; an If with a known condition becomes its
   branch.
3. Nothing grows past the limits: not a node with an input above ``MAX_INPUT`` elements, nor one whose output would
   exceed ``MAX_OUTPUT`` or isn't known in advance (a ConstantOfShape of a trillion elements fits in a 100-byte file).
4. Quantize and Dequantize nodes stay: they are the quantization. Random operators stay.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penstock.passes import Declined, PassResult, Phase
from penstock.passes._library import node_label, run_library_pass

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fold"
AFTER: tuple[str, ...] = ()
MAX_INPUT = 8_192  # elements
MAX_OUTPUT = 262_144  # elements
_RANDOM = {"Bernoulli", "Dropout"}


def run(model: ir.Model) -> PassResult:
    """Fold the main graph, its subgraphs and the functions."""
    from onnxscript import optimizer

    declined: list[Declined] = []

    def should_fold(node: ir.Node) -> bool | None:
        reason = _refusal(node)
        if reason:
            declined.append(Declined(node_label(node), reason))
            return False
        return None  # the library's own rules, with the input limit, decide

    def fold(model: ir.Model) -> None:
        from onnx_ir.passes.common import LiftConstantsToInitializersPass

        optimizer.fold_constants(
            model, onnx_shape_inference=True, input_size_limit=MAX_INPUT, output_size_limit=MAX_OUTPUT,
            should_fold=should_fold,
        )  # fmt: skip
        # the library writes Constants with value_ints, which opsets before 12 don't have
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)

    result = run_library_pass(model, fold)
    return PassResult(result.changes, tuple(declined))


def _refusal(node: ir.Node) -> str:
    if node.op_type in _RANDOM:
        return "draws random numbers"
    for value in node.outputs:
        if not value.name:
            continue
        if value.shape is None or not value.shape.is_static():
            return "the size of its result isn't known before it is computed"
        if math.prod(value.shape.numpy()) > MAX_OUTPUT:
            return f"its result has more than {MAX_OUTPUT} elements"
    return ""
