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


def _is_sorted(graph: ir.Graph, outer: frozenset[ir.Node] = frozenset()) -> bool:
    """Whether every node comes after the makers of what it and its bodies read."""
    from penstock.rewriting.editor import bodies_of

    seen: set[ir.Node] = set()
    for node in graph:
        for value in node.inputs:
            maker = None if value is None else value.producer()
            if maker is not None and maker not in seen and maker not in outer:
                return False
        for attribute in node.attributes.values():
            for body in bodies_of(attribute):
                if not _is_sorted(body, outer | seen):
                    return False
        seen.add(node)
    return True
