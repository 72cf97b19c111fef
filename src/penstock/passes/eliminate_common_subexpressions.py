"""Keep one of several nodes that compute the same: same operator, attributes and inputs.

1. Nodes with subgraphs stay, as do those that the standard declares random.
2. A graph in which the library's own list of random operators would miss one (Bernoulli, Dropout in training mode) is
   left alone: two draws are not one draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import PassResult, Phase
from penstock.passes._library import declined_all, run_library_pass

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "clean"
AFTER: tuple[str, ...] = ("eliminate-identities", "deduplicate-initializers")


def run(model: ir.Model) -> PassResult:
    """Merge equal nodes of the main graph."""
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass

    random = [node for node in model.graph if node.domain == "" and _draws(node)]
    if random:
        return PassResult((), declined_all(random, "draws random numbers: merging two draws would change the model"))
    return run_library_pass(model, CommonSubexpressionEliminationPass())


def _draws(node: ir.Node) -> bool:
    training = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    return node.op_type == "Bernoulli" or training is not None
