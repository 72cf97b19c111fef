"""A model without the operators that no oracle knows, so that the rest of it can be proved.

What such an operator makes becomes an input of the model, and what it reads an output. Two models that hold the same
operators, under the same names of what these make, can be compared in that form.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from penstock import graph
from penstock.analysis.structure import KNOWN_DOMAINS


def cut(source: Path, into: Path) -> list[str]:
    """Write the model without its unknown operators to ``into``; return them as ``domain::Operator``, each once.

    Raises ``ValueError`` where there is none, where one lies in a body, or where its results have no type and rank.
    """
    model = graph.parse(source)
    held = model.graph
    unknown = [node for node in graph.all_nodes(model) if _is_unknown(node, model)]
    if not unknown or any(node.graph is not held for node in unknown):
        raise ValueError("its unknown operators lie in bodies, or there are none")
    outputs = list(held.outputs)
    for node in unknown:
        for place, value in enumerate(node.inputs):
            if value is not None:
                read = ir.Node("", "Identity", [value], num_outputs=1)
                read.outputs[0].name = f"{node.outputs[0].name}.reads.{place}"
                held.append(read)
                outputs.append(read.outputs[0])
        for made in node.outputs:
            if not made.name and not made.uses():
                continue
            if made.type is None or made.shape is None:
                raise ValueError(f"what {node.domain}::{node.op_type} makes, {made.name!r}, has no type and shape")
            given = ir.Value(name=made.name, type=made.type, shape=made.shape)
            for use in list(made.uses()):
                use.node.replace_input_with(use.idx, given)
            outputs = [value for value in outputs if value is not made]
            held.inputs.append(given)
    held.outputs.clear()
    held.outputs.extend(outputs)
    held.remove(unknown)
    graph.save(model, into)
    return sorted({f"{node.domain}::{node.op_type}" for node in unknown})


def _is_unknown(node: ir.Node, model: ir.Model) -> bool:
    return node.domain not in KNOWN_DOMAINS and node.op_identifier() not in model.functions
