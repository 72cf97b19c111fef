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
    """Sort the main graph, its bodies and the functions, where one isn't sorted."""
    from onnx_ir.passes.common import TopologicalSortPass

    if all(_is_sorted(graph) for graph in (model.graph, *(f.graph for f in model.functions.values()))):
        return PassResult()
    moved = TopologicalSortPass()(model).modified
    return PassResult(("sorted the nodes",) if moved else ())


def _is_sorted(graph: ir.Graph, outer: tuple[set[ir.Node], ...] = ()) -> bool:
    """Whether every node comes after the makers of what it and its bodies read."""
    from penstock.rewriting.walk import bodies_in

    seen: set[ir.Node] = set()
    scopes = (seen, *outer)
    for node in graph:
        for value in node.inputs:
            maker = None if value is None else value.producer()
            if maker is not None and maker not in seen and not any(maker in scope for scope in outer):
                return False
        for body in bodies_in(node) if node.attributes else ():
            if not _is_sorted(body, scopes):
                return False
        seen.add(node)
    return True
