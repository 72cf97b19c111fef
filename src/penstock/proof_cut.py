"""A model without the operators that no oracle knows, so that the rest of it can be proved.

What such an operator makes becomes an input of the model, and what it reads an output. Two models that hold the same
operators, by their names or else in the same order, can be compared in that form.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir

from penstock import graph
from penstock.analysis.structure import KNOWN_DOMAINS
from penstock.passes import remove_unused as unread


def cut(source: Path, into: Path) -> list[str]:
    """Write the model without its unknown operators to ``into``; return them as ``domain::Operator``, each once.

    Raises ``ValueError`` where there is none, where one lies in a body, or where its results have no type and rank.
    """
    model = graph.parse(source)
    held = model.graph
    unread.run(model)  # of what nobody reads there is nothing to prove
    unknown = [node for node in graph.all_nodes(model) if _is_unknown(node, model)]
    if not unknown or any(node.graph is not held for node in unknown):
        raise ValueError("its unknown operators lie in bodies, or there are none")
    outputs = {value: value for value in held.outputs}  # as they came → as they are handed out then
    names = Counter(node.name for node in unknown)
    for number, node in enumerate(unknown):
        label = f"penstock::{node.name if node.name and names[node.name] == 1 else number}"
        for place, value in enumerate(node.inputs):
            if value is not None:
                read = _identity(held, value, f"{label} reads {place}")
                outputs[read] = read
        for place, made in enumerate(node.outputs):
            if not made.uses() and not made.is_graph_output():
                continue
            if made.type is None or made.shape is None:
                raise ValueError(f"what {node.domain}::{node.op_type} makes, {made.name!r}, has no type and shape")
            given = ir.Value(name=f"{label} makes {place}", type=made.type, shape=made.shape)
            for use in list(made.uses()):
                use.node.replace_input_with(use.idx, given)
            held.inputs.append(given)
            if made in outputs:
                outputs[made] = _identity(held, given, str(made.name))
                outputs[made].type, outputs[made].shape = made.type, made.shape
    handed_out = [outputs[value] for value in held.outputs]
    handed_out += [new for value, new in outputs.items() if value not in held.outputs]
    held.outputs.clear()
    held.outputs.extend(handed_out)
    held.remove(unknown)
    graph.save(model, into)
    return sorted({f"{node.domain}::{node.op_type}" for node in unknown})


def _identity(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """Hand a value on under another name, at the end of the graph."""
    node = ir.Node("", "Identity", [value], num_outputs=1)
    node.outputs[0].name = name
    graph.append(node)
    return node.outputs[0]


def _is_unknown(node: ir.Node, model: ir.Model) -> bool:
    return node.domain not in KNOWN_DOMAINS and node.op_identifier() not in model.functions
