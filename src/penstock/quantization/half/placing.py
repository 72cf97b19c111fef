"""Placing: where 16 bits begin and end, so that few Casts are needed.

Nodes with a reason compute in fp32; matrix products, convolutions and recurrences without one compute in 16 bits. The
others go by what it costs to move data: a Cast reads 4 bytes of a number and writes 2, a node in fp32 moves twice the
bytes of one in 16 bits. A cheapest choice is a cheapest cut of the graph, with the nodes in 16 bits on the one side and
one Cast for each value and direction, however many nodes read it. What comes after the last of the heavy nodes goes by
its Casts alone: the model's outputs are in fp32, so that there one more node in fp32 is more exact and costs no Cast.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from typing import TYPE_CHECKING

from penstock.quantization.half.binding import Binding, is_float32
from penstock.quantization.half.operators import COMPUTING
from penstock.quantization.half.seen import Seen
from penstock.quantization.placement import constant
from penstock.rewriting.minimum_cut import FOREVER, SINK, SOURCE, Network

if TYPE_CHECKING:
    import onnx_ir as ir

    Side = Callable[[ir.Node | None], Hashable]

VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})  # move no data
CALL = 400  # what a node costs besides its data, in bytes that could be moved meanwhile
ASKED = 1000  # times a gain, so that it outweighs Casts
BESIDE = "in 16 bits the Casts around it would cost more than it gains"
LAST = "it comes after the last layer with weights, and in fp32 it is more exact for no more Casts"


def place(
    model: ir.Model, bindings: Mapping[str, Binding], fixed: Collection[str], seen: Mapping[str, Seen]
) -> frozenset[str]:
    """Return the names of the nodes that compute in 16 bits; ``fixed`` are those that can't."""
    network = Network()
    nodes = {str(node.name): node for node in model.graph}

    def side(node: ir.Node | None) -> Hashable:
        name = "" if node is None else str(node.name)
        if name not in nodes or name in fixed or not bindings[name].possible:
            return SINK
        return SOURCE if nodes[name].op_type in COMPUTING else name

    last = tail(model)
    # a model without heavy nodes is in 16 bits because that was asked for, whatever Casts at its border cost
    weight = 1 if any(node.op_type in COMPUTING for node in model.graph) else ASKED
    for name, node in nodes.items():
        if side(node) == name:
            network.edge(SOURCE, name, 0 if name in last else weight * _gain(node, bindings[name], seen))
    for name, node in nodes.items():
        for index, value in enumerate(node.outputs):
            if is_float32(value):
                maker = side(node) if index in bindings[name].outputs else SINK
                _joined(network, value, maker, _readers(value, bindings, nodes, side), seen)
    for value in model.graph.inputs:
        if is_float32(value):
            _joined(network, value, SINK, _readers(value, bindings, nodes, side), seen)
    chosen, _ = network.cut()
    return frozenset(name for name, node in nodes.items() if side(node) in chosen)


def tail(model: ir.Model) -> set[str]:
    """Return the nodes behind the last of those that compute much; none where there is no such node."""
    ahead: set[str] = set()  # leads to a heavy node
    behind: set[str] = set()
    nodes = list(model.graph)
    for node in reversed(nodes):
        after = [use.node for value in node.outputs for use in value.uses()]
        if node.op_type in COMPUTING or any(one.op_type in COMPUTING or one.name in ahead for one in after):
            ahead.add(str(node.name))
    for node in nodes:
        before = [maker for value in node.inputs if value is not None and (maker := value.producer()) is not None]
        if node.name not in ahead and any(one.op_type in COMPUTING or one.name in behind for one in before):
            behind.add(str(node.name))
    return behind


def _readers(
    value: ir.Value, bindings: Mapping[str, Binding], nodes: Mapping[str, ir.Node], side: Side
) -> set[Hashable]:
    found: set[Hashable] = {SINK} if value.is_graph_output() else set()
    for use in value.uses():
        name = str(use.node.name)
        known = nodes.get(name) is use.node and use.idx in bindings[name].inputs
        found.add(side(use.node) if known else SINK)
    return found


def _joined(
    network: Network, value: ir.Value, maker: Hashable, readers: set[Hashable], seen: Mapping[str, Seen]
) -> None:
    """Say what the Casts behind a value cost: one where it is made in 16 bits and read in fp32, one the other way."""
    cost = CALL + 6 * _size(value, seen)
    others = readers - {maker}
    if maker != SINK and others:
        network.edge(maker, ("to fp32", value), cost)
        for reader in others:
            network.edge(("to fp32", value), reader, FOREVER)
    if maker != SOURCE and others - {SINK}:
        network.edge(("to 16 bits", value), maker, cost)
        for reader in others - {SINK}:
            network.edge(reader, ("to 16 bits", value), FOREVER)


def _gain(node: ir.Node, binding: Binding, seen: Mapping[str, Seen]) -> int:
    """Return the bytes that a node needn't move when it computes in 16 bits, at least 1."""
    if node.op_type in VIEWS:
        return 1
    values = [node.inputs[index] for index in binding.inputs] + [node.outputs[index] for index in binding.outputs]
    return 1 + sum(2 * _size(value, seen) for value in values if value is not None and not constant(value))


def _size(value: ir.Value, seen: Mapping[str, Seen]) -> int:
    return seen[str(value.name)].size if value.name in seen else 1
