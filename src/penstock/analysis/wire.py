"""Walk a model's protobuf without building anything: how deep it nests, how many nodes and messages it asks for.

A parsed message takes a hundred times the two bytes that an empty one has in the file, so a file within the size limit
could still fill the memory. The walk follows the fields of onnx.proto that hold messages, and stops at the limits.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

# message → field number → message that the field holds; "" for a text or bytes that is only counted
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 8: "", 14: "", 20: "Training", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 11: "Value", 12: "Value", 13: "Value", 14: "", 15: "Sparse", 16: ""},
    "Node": {1: "", 2: "", 5: "Attribute", 9: "", 10: ""},
    "Attribute": {5: "Tensor", 6: "Graph", 9: "", 10: "Tensor", 11: "Graph", 14: "Type", 15: "Type", 22: "Sparse",
                  23: "Sparse"},
    "Function": {4: "", 5: "", 6: "", 7: "Node", 9: "", 11: "Attribute", 12: "Value", 14: ""},
    "Training": {1: "Graph", 2: "Graph", 3: "", 4: ""},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {6: "", 13: "", 16: ""},
    "Value": {2: "Type", 4: ""},
    "Type": {1: "TensorType", 4: "InnerType", 5: "MapType", 8: "TensorType", 9: "InnerType"},
    "InnerType": {1: "Type"},
    "MapType": {2: "Type"},
    "TensorType": {2: "Shape"},
    "Shape": {1: ""},
}  # fmt: skip
_SUBGRAPH = {"Graph"}


@dataclass(frozen=True, slots=True)
class Extent:
    """What a file asks for. ``whole`` is false where the walk met a limit or bytes that are no protobuf."""

    nodes: int
    messages: int
    depth: int  # of protobuf messages
    subgraph_depth: int  # of graphs inside graphs; 1 is the main graph
    whole: bool


def extent(data: bytes | mmap.mmap, *, max_nodes: int, max_messages: int, max_depth: int) -> Extent:
    """Walk the bytes of a ``ModelProto`` as far as the limits allow."""
    with memoryview(data) as view:
        return _extent(view, max_nodes, max_messages, max_depth)


def _extent(view: memoryview, max_nodes: int, max_messages: int, max_depth: int) -> Extent:
    nodes = messages = deepest = deepest_graph = 0
    stack: list[tuple[str, int, int, int, int]] = [("Model", 0, len(view), 1, 0)]
    while stack:
        kind, position, end, depth, graphs = stack.pop()
        deepest, deepest_graph = max(deepest, depth), max(deepest_graph, graphs)
        if nodes > max_nodes or messages > max_messages or depth > max_depth:
            return Extent(nodes, messages, deepest, deepest_graph, False)
        inner = _FIELDS[kind]
        while position < end:
            tag, position = _varint(view, position, end)
            width = tag & 7 if tag >> 3 else 7  # there is no field 0
            if width == 2:
                length, position = _varint(view, position, end)
                if length < 0 or position + length > end:
                    return Extent(nodes, messages, deepest, deepest_graph, False)
                number = tag >> 3
                if number in inner:
                    messages += 1
                    child = inner[number]
                    nodes += child == "Node"
                    if child and length:
                        stack.append((child, position, position + length, depth + 1, graphs + (child in _SUBGRAPH)))
                    if messages > max_messages or nodes > max_nodes:
                        return Extent(nodes, messages, deepest, deepest_graph, False)
                position += length
            elif width == 0:
                _, position = _varint(view, position, end)
            elif width in (1, 5):
                position += 8 if width == 1 else 4
            else:
                position = -1
            if position < 0 or position > end:
                return Extent(nodes, messages, deepest, deepest_graph, False)
    return Extent(nodes, messages, deepest, deepest_graph, True)


def _varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    """Read a number; position -1 (and -1) where there is none."""
    result = shift = 0
    while 0 <= position < end and shift < 70:
        byte = view[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
    return -1, -1
