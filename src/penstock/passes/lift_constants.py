"""Turn Constant nodes into initializers.

1. A Constant with any one attribute (a tensor, a number, numbers) becomes an initializer.
2. A Constant that is itself an output of its graph stays, and so do those inside functions, which have no initializers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "clean"
AFTER: tuple[str, ...] = ("inline-functions", "unlist-initializers")
OPERATORS: tuple[str, ...] = ("Constant",)


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Put an initializer in its place; its data isn't copied."""
    tensor = site.tensor(node.outputs[0])
    if tensor is None or site.in_function(node):
        return None
    return site.instead(node, site.held(tensor), "a constant")
