"""Put nodes after what they read, keeping the order of those that don't depend on each other.

The format asks for it, some producers don't do it, and every later pass relies on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import PassResult, Phase

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "clean"
AFTER: tuple[str, ...] = ()


def run(model: ir.Model) -> PassResult:
    """Sort the main graph, its subgraphs and the functions."""
    from onnx_ir.passes.common import TopologicalSortPass

    moved = TopologicalSortPass()(model).modified
    return PassResult(("sorted the nodes",) if moved else ())
