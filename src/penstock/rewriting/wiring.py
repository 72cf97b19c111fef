"""Who reads what, where there is much of it.

onnx-ir changes the inputs of a node one by one and copies all of them for each: a node that reads 50,000 values takes
minutes to empty. It copies the list of readers whenever somebody asks for them, if only for their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

FEW = 16  # inputs of a node whose are changed one by one


def read_count(value: ir.Value) -> int:
    """Return in how many places a value is read."""
    uses = getattr(value, "_uses", None)
    return len(value.uses() if uses is None else uses)


def read_instead(node: ir.Node, changes: Mapping[int, ir.Value | None]) -> None:
    """Let a node read other values at these places, or nothing."""
    before = node.inputs
    slowly = len(before) <= FEW or not hasattr(node, "_inputs") or bool(getattr(node, "device_configurations", None))
    if slowly or not all(0 <= place < len(before) for place in changes):
        for place, value in changes.items():
            node.replace_input_with(place, value)
        return
    after = list(before)
    for place, value in changes.items():
        after[place] = value
    node._inputs = tuple(after)
    for place, value in changes.items():
        if (old := before[place]) is not None:
            old._remove_usage(node, place)
        if value is not None:
            value._add_usage(node, place)


def let_go(node: ir.Node) -> None:
    """Let a node read nothing any more."""
    inputs = node.inputs
    if len(inputs) == 1 and inputs[0] is not None:  # most nodes
        node.replace_input_with(0, None)
    elif inputs:
        read_instead(node, {place: None for place, value in enumerate(inputs) if value is not None})


def remove(node: ir.Node) -> None:
    """Take a node that nobody reads out of its graph; onnx-ir goes through all of the graph's outputs for each."""
    graph = node.graph
    assert graph is not None
    nodes = getattr(graph, "_nodes", None)
    if nodes is None:
        graph.remove(node)
        return
    node.graph = None
    nodes.remove(node)


def take_over(values: Mapping[ir.Value, ir.Value]) -> None:
    """Let all readers of the keys read what stands for them, and graphs hand that out; no key may stand for another."""
    changes: dict[ir.Node, dict[int, ir.Value | None]] = {}
    graphs: dict[ir.Graph, None] = {}
    for old, new in values.items():
        for use in old.uses():
            changes.setdefault(use.node, {})[use.idx] = new
        if old.is_graph_output() and old.graph is not None:
            graphs[old.graph] = None
    for node, places in changes.items():
        read_instead(node, places)
    for graph in graphs:
        for place, value in enumerate(graph.outputs[:]):  # a plain list: theirs is slow to go through
            if value in values:
                graph.outputs[place] = values[value]
