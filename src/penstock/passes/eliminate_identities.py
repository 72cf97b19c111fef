"""Remove Identity nodes.

1. Readers of the Identity's output read its input instead, in inner graphs too.
2. Where the output is a graph output, the input takes over its name.
3. The Identity stays where it hands out, as a graph output, a graph input, an initializer, a value of an outer graph or
   one that is an output already: the format wants a node of the same graph there, and each output once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Declined, PassResult, Phase
from penstock.passes._library import node_label

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "clean"
AFTER: tuple[str, ...] = ("lift-constants",)


def run(model: ir.Model) -> PassResult:
    """Remove what can be removed from the main graph, its subgraphs and the functions."""
    from onnx_ir import convenience

    changes, declined = [], []
    functions = (node for function in model.functions.values() for node in function.all_nodes())
    for node in [*model.graph.all_nodes(), *functions]:
        if node.op_type != "Identity" or node.domain != "" or len(node.inputs) != 1:
            continue
        source, result = node.inputs[0], node.outputs[0]
        scope = node.graph
        if source is None or scope is None:
            continue
        if reason := _reason_to_stay(node, source):
            declined.append(Declined(node_label(node), reason))
            continue
        name, handed_out = result.name, result.is_graph_output()
        source.type = source.type or result.type
        if source.shape is None or handed_out:  # an output keeps what the model declares of it, no more, no less
            source.shape = result.shape
        convenience.replace_all_uses_with(result, source, replace_graph_outputs=True)
        scope.remove(node, safe=True)
        if handed_out:
            source.name = name
        changes.append(f"removed {node_label(node)}")
    return PassResult(tuple(changes), tuple(declined))


def _reason_to_stay(node: ir.Node, source: ir.Value) -> str:
    if not node.outputs[0].is_graph_output():
        return ""
    producer = source.producer()
    if producer is None:
        return "hands a graph input or an initializer out"
    if producer.graph is not node.graph:
        return "hands a value of an outer graph out"
    if source.is_graph_output():
        return "its input is a graph output too"
    return ""
