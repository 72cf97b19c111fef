"""Remove what nothing reads.

1. Nodes whose outputs nobody reads, initializers nobody reads, optional outputs nobody reads.
2. Functions nobody calls, opset imports that no node uses.
3. The model's inputs and outputs stay, used or not: they are its interface.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import PassResult, Phase
from penstock.passes._library import run_library_pass

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "lower"
AFTER: tuple[str, ...] = ()


def run(model: ir.Model) -> PassResult:
    """Remove it from graph, subgraphs and functions."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    unused_functions: ir.passes.InPlacePass = common.RemoveUnusedFunctionsPass()  # type: ignore[no-untyped-call]
    passes = (common.RemoveUnusedNodesPass(), unused_functions, common.RemoveUnusedOpsetsPass())
    return run_library_pass(model, ir.passes.Sequential(*passes))
