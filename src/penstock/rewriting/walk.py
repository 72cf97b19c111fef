"""Walk over all that a model holds: nodes before what is in their bodies, functions last.

onnx-ir has such walks too. These take a third of their time, which counts where a hundred thousand nodes are looked
at over and over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def bodies_of(attribute: ir.Attr) -> tuple[ir.Graph, ...]:
    """Return the graphs that an attribute holds."""
    import onnx_ir as ir

    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return tuple(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else ()


def has_attributes(node: ir.Node) -> bool:
    """Whether a node has attributes: most have none, and to ask their container itself takes ten times as long."""
    return bool(node.attributes.data)


def refers(node: ir.Node) -> bool:
    """Whether an attribute of the node is one of the function's in which it lies, and so differs from call to call."""
    return has_attributes(node) and any(attribute.is_ref() for attribute in node.attributes.values())


def bodies_in(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs that a node holds."""
    for attribute in node.attributes.values():
        yield from bodies_of(attribute)


def inside(node: ir.Node) -> list[ir.Node]:
    """Return a node, and all nodes in its bodies."""
    found = [node]
    for body in bodies_in(node) if has_attributes(node) else ():
        _collect(body, found, [])
    return found


def nodes_in(graph: ir.Graph) -> list[ir.Node]:
    """Return all nodes of a graph and of bodies in it."""
    found: list[ir.Node] = []
    _collect(graph, found, [])
    return found


def nodes_of(model: ir.Model) -> list[ir.Node]:
    """Return all nodes: of the graph, of bodies, of functions."""
    found = nodes_in(model.graph)
    for function in model.functions.values():
        _collect(function.graph, found, [])
    return found


def graphs_of(model: ir.Model) -> list[ir.Graph]:
    """Return all graphs: the main one, bodies, functions, and bodies in these."""
    graphs: list[ir.Graph] = []
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        _collect(graph, [], graphs)
    return graphs


def _collect(graph: ir.Graph, nodes: list[ir.Node], graphs: list[ir.Graph]) -> None:
    """Add a graph, and all in it; bodies lie in each other no deeper than the pre-check lets them."""
    graphs.append(graph)
    for node in graph:
        nodes.append(node)
        if has_attributes(node):
            for body in bodies_in(node):
                _collect(body, nodes, graphs)
