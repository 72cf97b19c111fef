"""Remove Dropout nodes that do nothing.

In inference a Dropout hands its input on unchanged. Models that were exported in training form still hold them.

1. Readers of the output read the input instead.
2. A Dropout stays where ``training_mode`` is true or not constant, where its mask is used, or where it hands out a
   graph output: the format wants a node there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Declined, PassResult, Phase

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "clean"
AFTER: tuple[str, ...] = ("lift-constants",)


def run(model: ir.Model) -> PassResult:
    """Remove what can be removed from the main graph and its subgraphs."""
    from onnx_ir import convenience

    version = model.opset_imports.get("", 1)
    changes, declined = [], []
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Dropout" or node.domain != "":
            continue
        if reason := _reason_to_stay(node, version):
            declined.append(Declined(node.name or "Dropout", reason))
            continue
        source = node.inputs[0]
        assert source is not None and node.graph is not None
        convenience.replace_all_uses_with(node.outputs[0], source)
        node.graph.remove(node, safe=True)
        changes.append(f"removed {node.name or 'Dropout'}")
    return PassResult(tuple(changes), tuple(declined))


def _reason_to_stay(node: ir.Node, version: int) -> str:
    from onnx_ir import convenience

    if version < 7:
        return f"opset {version}: its mode is an attribute of an older form"
    if node.inputs[0] is None:
        return "it has no input"
    if node.outputs[0].is_graph_output():
        return "it hands out a graph output"
    if any(output.name and (output.uses() or output.is_graph_output()) for output in node.outputs[1:]):
        return "its mask is used"
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is None:
        return ""
    value = convenience.get_const_tensor(mode)
    if value is None or mode.is_graph_input():
        return "training_mode is not constant"
    return "training_mode is true" if value.numpy().any() else ""
