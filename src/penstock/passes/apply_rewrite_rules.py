"""Apply onnxscript's general rewrite rules, one after the other.

1. No-ops (add 0, multiply by 1, casts and transposes that change nothing) go; successive casts, reshapes, transposes,
   slices, Clip/Relu/Min/Max become one; a Pad joins its Conv; a bias of zeros goes.
2. Its three BatchNorm rules are left out: ``fold-batchnorm`` does that here, and says why where it doesn't.
3. All rules stay within the standard operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import PassResult, Phase
from penstock.passes._library import run_library_pass
from penstock.passes._rules import indexed

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()


def run(model: ir.Model) -> PassResult:
    """Apply them to the main graph, its subgraphs and the functions."""
    return run_library_pass(model, _apply)


def _apply(model: ir.Model) -> None:
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript import rewriter
    from onnxscript.rewriter import pattern

    rules = [rule for rule in rewriter._DEFAULT_REWRITE_RULES if not (rule.name or "").startswith("FuseBatchNorm")]
    pattern.RewriteRuleSet(indexed(rules)).apply_to_model(model)
    # rules name new values without looking at names already taken, and leave the nodes they bypassed; order matters,
    # because NameFixPass gives names to absent optional outputs, and RemoveUnusedNodesPass takes them away again
    ir.passes.Sequential(common.NameFixPass(), common.RemoveUnusedNodesPass())(model)
