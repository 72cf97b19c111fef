"""Source lines: the line of the user's code that a node of a model comes from, kept in the node's metadata.

The value is ``relative/file.py:line``. It never holds an absolute path; one that a model brings along is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

KEY = "penstock.source"
PLACE = re.compile(r"(?!.*\.\./)[^/\\:\x00-\x1f][^\\:\x00-\x1f]{0,250}:\d{1,7}")


def line_of(node: ir.Node) -> str:
    """Return ``file:line``, or an empty text where the node carries none, or something else than a relative place."""
    place = node.metadata_props.get(KEY, "")
    return place if PLACE.fullmatch(place) else ""


def lines(nodes: Iterable[ir.Node]) -> dict[str, str]:
    """Map the names of values to the line of the node that makes them."""
    return {output.name or "": line for node in nodes if (line := line_of(node)) for output in node.outputs}


def inherit(nodes: Iterable[ir.Node], known: dict[str, str]) -> None:
    """Give nodes without a line the one that made their output before, else that of a consumer, else of a producer.

    A pass that replaces nodes keeps the names of the values that others read, so ``known`` (:func:`lines` of the graph
    as it was) tells what a new node stands for. A node that a pass puts in front of another belongs to its consumer.
    One in the body of an If or a Loop that has nothing else takes the line of that.
    """
    nodes = list(nodes)
    pending = [node for node in nodes if not line_of(node)]
    for node in pending:
        place = next((known[output.name] for output in node.outputs if output.name in known), "")
        if place:
            node.metadata_props[KEY] = place
    _from_neighbours(pending)
    _from_owner([node for node in nodes if line_of(node)])
    _from_neighbours(pending)  # what is read in a body alone, by a node that has its line from the owner


def _from_neighbours(pending: list[ir.Node]) -> None:
    for node in reversed(pending):
        if not line_of(node):
            users = (use.node for output in node.outputs for use in output.uses())
            _take(node, (line_of(user) for user in users))
    for node in pending:
        if not line_of(node):
            makers = (value.producer() for value in node.inputs if value is not None)
            _take(node, (line_of(maker) for maker in makers if maker is not None))


def _from_owner(owners: Iterable[ir.Node]) -> None:
    for owner in owners:
        for attribute in owner.attributes.values():
            for body in _bodies(attribute):
                for node in body.all_nodes():
                    if not line_of(node):
                        _take(node, [line_of(owner)])


def _bodies(attribute: ir.Attr) -> list[ir.Graph]:
    import onnx_ir as ir

    if attribute.is_ref():
        return []
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


def _take(node: ir.Node, places: Iterable[str]) -> None:
    if place := next((place for place in places if place), ""):
        node.metadata_props[KEY] = place
