"""Replace calls of the model's own functions by their bodies.

1. Every call is inlined, so that later passes see plain operators and runtimes need no function support; leave the pass
   out with ``--skip inline-functions`` to keep functions: their bodies are then rewritten where they are.
2. A function that the user asked to keep (``--keep-function``; it is of the domain ``KEPT_DOMAIN``) stays.
3. Nothing is inlined where the model would grow past ``MAX_NODES``: a small file of functions that call each other
   twice over ("billion laughs") expands to more nodes than any machine holds. Nor where more than ``MAX_FUNCTIONS`` are
   in use, because the inliner compares each with each.
4. Nothing is inlined where a function is of another opset than the model: its operators may mean something else.
5. Functions that nobody calls are removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.graph import KEPT_DOMAIN, mixed_opsets
from penstock.passes import PassResult, Phase
from penstock.passes._library import declined_all, expanded_size, quiet, remove_unused_functions

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "clean"
AFTER: tuple[str, ...] = ()
MAX_NODES = 10_000
MAX_FUNCTIONS = 4_000


def run(model: ir.Model) -> PassResult:
    """Inline all calls, or none."""
    from onnx_ir.passes.common import InlinePass

    unused = remove_unused_functions(model)
    known = [key for key, function in model.functions.items() if function.domain != KEPT_DOMAIN]
    if not known:
        return PassResult(unused)
    calls = [node for node in model.graph.all_nodes() if node.op_identifier() in model.functions]
    if reason := mixed_opsets(model):
        return PassResult(unused, declined_all(calls, reason))
    if expanded_size(model, MAX_NODES) >= MAX_NODES:
        reason = f"inlining all functions would make {MAX_NODES:,} nodes or more"
        return PassResult(unused, declined_all(calls, reason))
    if len(model.functions) > MAX_FUNCTIONS:
        reason = f"{len(model.functions):,} functions are in use, {MAX_FUNCTIONS:,} are inlined at most"
        return PassResult(unused, declined_all(calls, reason))
    with quiet():
        InlinePass(criteria=lambda function: function.domain != KEPT_DOMAIN)(model)
    return PassResult((*unused, *(f"inlined {domain}::{name}" for domain, name, _ in known)))
