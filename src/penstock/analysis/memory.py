"""Peak activation memory: which values must be held at the same time if nodes run in the file's order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Peak:
    """The most bytes of activations held at once, at which node, and how many values of unknown size were left out."""

    bytes: int
    node: str
    unknown_values: int


def value_bytes(value: ir.Value, shapes: Mapping[ir.Value, Shape]) -> int | None:
    """Return a tensor's size in bytes, or ``None`` where shape or type aren't known; strings have no known size."""
    import onnx_ir as ir

    if value not in shapes or value.dtype is None or value.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return None
    return math.ceil(math.prod(shapes[value]) * value.dtype.itemsize)


def peak(graph: ir.Graph, shapes: Mapping[ir.Value, Shape]) -> Peak:
    """Find the peak over the nodes of a graph in order.

    An input is held until its last reader, an output from its node to the end, anything else from its node to its last
    reader; weights, constants and what is computed from them alone aren't counted. While a node runs, its inputs and
    outputs are all held, and the peak of its largest body besides. Nothing is computed in place, so this is what a
    runtime without in-place kernels needs.
    """
    return _peak(graph, shapes, constant_values(graph))


def constant_values(graph: ir.Graph) -> set[ir.Value]:
    """Return what depends on no input: initializers and results of nodes that read nothing else, in bodies too.

    A runtime computes these once, when it loads the model; a dequantized weight is one.
    """
    found = set(graph.initializers.values())
    for node in graph.all_nodes():
        inner = [value for body in bodies(node) for value in body.initializers.values()]
        found.update(inner)
        fixed = all(value is None or value in found or value.is_initializer() for value in node.inputs)
        if fixed and not any(True for _ in bodies(node)) and not node.op_type.startswith(("Random", "Multinomial")):
            found.update(node.outputs)
    return found


def _peak(graph: ir.Graph, shapes: Mapping[ir.Value, Shape], fixed: set[ir.Value]) -> Peak:
    nodes = list(graph)
    outputs = set(graph.outputs)
    last: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        for value in _reads(node):
            last[value] = index
    sizes = {
        value: value_bytes(value, shapes)
        for value in (*graph.inputs, *(v for node in nodes for v in node.outputs if v.name))
        if value not in fixed or value in outputs
    }
    unknown = sum(size is None for size in sizes.values())
    held = sum(sizes.get(value) or 0 for value in graph.inputs)
    best, where = held, ""
    dying: dict[int, list[ir.Value]] = {}
    for value in sizes:
        if value not in outputs and value in last:
            dying.setdefault(last[value], []).append(value)
    for index, node in enumerate(nodes):
        born = [value for value in node.outputs if value in sizes]
        held += sum(sizes[value] or 0 for value in born)
        inner = [_peak(body, shapes, fixed) for body in bodies(node)]
        unknown += sum(item.unknown_values for item in inner)
        total = held + max((item.bytes for item in inner), default=0)
        if total > best or not where:
            best, where = max(total, best), node.name or node.op_type
        held -= sum(sizes[value] or 0 for value in dying.get(index, ()))
        held -= sum(sizes[value] or 0 for value in born if value not in last and value not in outputs)
    return Peak(best, where, unknown)


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """Give the subgraphs of a node."""
    import onnx_ir as ir

    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    for body in bodies(node):
        yield from (value for value in body.outputs if value is not None)
        for inner in body:
            yield from _reads(inner)
