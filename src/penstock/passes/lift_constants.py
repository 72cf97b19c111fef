"""Turn Constant nodes into initializers.

1. A Constant with any one attribute (a tensor, a number, numbers) becomes an initializer of the same name.
2. A Constant that is itself an output of its graph stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import PassResult, Phase
from penstock.passes._library import declined_all, run_library_pass

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "clean"
AFTER: tuple[str, ...] = ("inline-functions", "unlist-initializers")


def run(model: ir.Model) -> PassResult:
    """Lift the constants of the main graph and its subgraphs."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    result = run_library_pass(model, LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0))
    left = [node for node in model.graph.all_nodes() if node.op_type == "Constant" and node.domain == ""]
    return PassResult(result.changes, declined_all(left, "is an output of its graph, or has no value of its own"))
