"""Keep one of several initializers that hold the same numbers in the same type and shape.

1. Within each graph. Data is read only where type and shape are equal, and of large weights beside the model only the
   beginning unless that is equal too: most are never looked at.
2. Inputs and outputs of graphs keep theirs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.passes import PassResult, Phase
from penstock.passes._library import trains

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "clean"
AFTER: tuple[str, ...] = ("lift-constants",)
BEGINNING_BYTES = 4096
PART_BYTES = 1 << 20


def run(model: ir.Model) -> PassResult:
    """Deduplicate them, in the main graph and in every body."""
    from penstock.rewriting.walk import graphs_of

    changes: list[str] = []
    training = any(trains(node, 14) for function in model.functions.values() for node in function.all_nodes())
    calls = set(model.functions) if training else set()
    for graph in graphs_of(model):
        _in_graph(graph, changes, calls)
    return PassResult(tuple(changes))


def _in_graph(graph: ir.Graph, changes: list[str], calls: set[ir.OperatorIdentifier]) -> None:
    """Deduplicate those of one graph; what a node that trains may write into stays, ``calls`` of such too."""
    from penstock.rewriting import wiring

    alike: dict[object, list[ir.Value]] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output() or tensor.dtype.is_string():
            continue
        if any(trains(use.node, 14) or use.node.op_identifier() in calls for use in value.uses()):
            continue
        alike.setdefault((tensor.dtype, tuple(tensor.shape.numpy())), []).append(value)
    instead: dict[ir.Value, ir.Value] = {}
    for group in alike.values():
        if len(group) < 2:
            continue
        beginnings = [_beginning(value) for value in group]
        often = Counter(beginnings)
        first: dict[bytes, ir.Value] = {}
        for value, beginning in zip(group, beginnings, strict=True):
            if often[beginning] < 2:
                continue
            kept = first.setdefault(_digest(value), value)
            if kept is value:
                continue
            instead[value] = kept
            changes.append(f"{value.name} is {kept.name}")
    wiring.take_over(instead)
    for value in instead:
        del graph.initializers[str(value.name)]


def _beginning(value: ir.Value) -> bytes:
    """Return the first bytes of data beside the model, nothing where the data is inside."""
    import onnx_ir as ir

    tensor = value.const_value
    if not isinstance(tensor, ir.ExternalTensor) or tensor.nbytes <= BEGINNING_BYTES:
        return b""
    with Path(tensor.path).open("rb") as file:
        file.seek(tensor.offset or 0)
        return file.read(BEGINNING_BYTES)


def _digest(value: ir.Value) -> bytes:
    """Return what tells the data from other data; what lies beside the model is read in parts."""
    import onnx_ir as ir

    tensor = value.const_value
    assert tensor is not None
    if not isinstance(tensor, ir.ExternalTensor):
        data = tensor.tobytes()
        return data if len(data) <= 64 else hashlib.sha256(data).digest()
    total, left = hashlib.sha256(), tensor.nbytes
    with Path(tensor.path).open("rb") as file:
        file.seek(tensor.offset or 0)
        while left and (part := file.read(min(left, PART_BYTES))):
            total.update(part)
            left -= len(part)
    return total.digest()
