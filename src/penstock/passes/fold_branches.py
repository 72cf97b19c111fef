"""Put the branch that is taken in the place of an If whose condition is constant.

1. The nodes of the branch come into the graph around it, with names of their own.
2. A branch that hands out a value of the graph around it, or one of its own constants, needs no node for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fold"
AFTER: tuple[str, ...] = ("fold-shapes", "fold-constants")
OPERATORS: tuple[str, ...] = ("If",)


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Copy the branch that is taken out of the node."""
    if site.tensor(node.inputs[0]) is None:
        return None
    if site.in_function(node):
        raise Refusal("it lies in a function, which can't hold constants")
    name = "then_branch" if site.filled_with(node.inputs[0], 1.0) else "else_branch"
    branch = node.attributes[name].as_graph().clone(allow_outer_scope_values=True)
    for key, value in list(branch.initializers.items()):
        del branch.initializers[key]
        value.name = None
    nodes, ends = list(branch), list(branch.outputs)
    branch.outputs.clear()
    branch.remove(nodes)
    site.made.extend(nodes)
    return Rewrite(dict(zip(node.outputs, ends, strict=True)), f"its {name.removesuffix('_branch')} branch is taken")
