"""Keep one of several initializers that hold the same numbers in the same type and shape.

1. Within each graph. Data is read only where type and shape are equal, so most large weights are never looked at.
2. Inputs and outputs of graphs keep theirs.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from penstock.passes import PassResult, Phase

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "clean"
AFTER: tuple[str, ...] = ("lift-constants",)


def run(model: ir.Model) -> PassResult:
    """Deduplicate them, in the main graph and in every body."""
    changes: list[str] = []
    for graph in model.graphs():
        _in_graph(graph, changes)
    return PassResult(tuple(changes))


def _in_graph(graph: ir.Graph, changes: list[str]) -> None:
    from onnx_ir import convenience

    alike: dict[object, list[ir.Value]] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output() or tensor.dtype.is_string():
            continue
        alike.setdefault((tensor.dtype, tuple(tensor.shape.numpy())), []).append(value)
    for group in alike.values():
        if len(group) < 2:
            continue
        first: dict[bytes, ir.Value] = {}
        for value in group:
            assert value.const_value is not None
            data = value.const_value.tobytes()
            kept = first.setdefault(data if len(data) <= 64 else hashlib.sha256(data).digest(), value)
            if kept is value:
                continue
            convenience.replace_all_uses_with(value, kept)
            del graph.initializers[str(value.name)]
            changes.append(f"{value.name} is {kept.name}")
