"""Remove what nothing reads.

1. Nodes whose outputs nobody reads, and initializers nobody reads, in every graph.
2. Optional outputs at the end of a node that nobody reads, but for the statistics of a BatchNormalization before opset
   14, where that they are there says that it is in training mode, and in that mode, where they have to be.
3. Functions nobody calls, opset imports that no node uses.
4. The model's inputs and outputs stay, used or not: they are its interface.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import PassResult, Phase
from penstock.passes._library import node_label, remove_unused_functions, trains

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "lower"
AFTER: tuple[str, ...] = ()
# what they give goes by places; ONNX Runtime's Attention wants both parts of its memory, or none
_KEPT = frozenset(("Split", "If", "Loop", "Scan", "Attention"))


def run(model: ir.Model) -> PassResult:
    """Remove it from the graph, from bodies and from functions."""
    from penstock.rewriting.walk import graphs_of

    changes: list[str] = []
    opset = model.opset_imports.get("", 1)
    _nodes(model.graph, changes, opset)
    for function in model.functions.values():
        _nodes(function.graph, changes, function.opset_imports.get("", opset))
    for graph in graphs_of(model):
        _initializers(graph, changes)
    changes += remove_unused_functions(model)
    _imports(model, changes)
    return PassResult(tuple(changes))


def _nodes(graph: ir.Graph, changes: list[str], opset: int) -> None:
    from penstock.rewriting import wiring
    from penstock.rewriting.walk import bodies_in, has_attributes, inside

    for node in reversed(graph):
        if not any(value.is_graph_output() or wiring.read_count(value) for value in node.outputs):
            for inner in inside(node):
                wiring.let_go(inner)
            wiring.remove(node)
            changes.append(f"removed {node_label(node)}")
            continue
        for body in bodies_in(node) if has_attributes(node) else ():
            _nodes(body, changes, opset)
        if node.op_type not in _KEPT and not trains(node, opset):
            _outputs(node, changes)


def _outputs(node: ir.Node, changes: list[str]) -> None:
    """Drop optional outputs from the end; one in the middle has its place to keep."""
    import onnx

    last = node.outputs[-1] if len(node.outputs) > 1 else None
    if last is None or last.uses() or last.is_graph_output() or node.domain != "":
        return
    try:
        least = onnx.defs.get_schema(node.op_type, max_inclusive_version=onnx.defs.onnx_opset_version()).min_output
    except onnx.defs.SchemaError:
        return
    keep = len(node.outputs)
    while keep > max(least, 1) and not node.outputs[keep - 1].uses() and not node.outputs[keep - 1].is_graph_output():
        keep -= 1
    if keep < len(node.outputs):
        node.resize_outputs(keep)
        changes.append(f"dropped outputs of {node_label(node)} that nobody reads")


def _initializers(graph: ir.Graph, changes: list[str]) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
            changes.append(f"removed the initializer {name}")


def _imports(model: ir.Model, changes: list[str]) -> None:
    from penstock.rewriting.walk import nodes_of

    used = {node.domain for node in nodes_of(model)} | {""} | {key[0] for key in model.functions}
    for domain in [domain for domain in model.opset_imports if domain not in used]:
        del model.opset_imports[domain]
        changes.append(f"removed the import of {domain}")
