"""Make one Split of Slices that cut a tensor into pieces along one axis without a gap.

1. Two or more Slices of the same tensor in the same graph, each along the same axis alone with a step of 1, which
   together cover it from its beginning to its end, become one Split. What they are read by doesn't change.
2. The size of the axis has to be known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Rewrite
from penstock.rewriting.shape_rules import slices
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("merge-concats",)
OPERATORS: tuple[str, ...] = ("Slice",)
MOST_READERS = 64


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Join a Slice with its neighbours; the first of them in the graph stands for all."""
    source = node.inputs[0]
    mine = None if source is None else _piece(node, site)
    if source is None or mine is None or len(source.uses()) > MOST_READERS:
        return None
    axis, start, _ = mine
    if start != 0:
        return None
    pieces: dict[int, tuple[int, ir.Node]] = {}
    for use in source.uses():
        other = use.node
        if other.op_type != "Slice" or other.domain != "" or use.idx != 0 or other.graph is not node.graph:
            continue
        piece = _piece(other, site)
        if piece is not None and piece[0] == axis and pieces.setdefault(piece[1], (piece[2], other))[0] != piece[2]:
            return None  # they overlap
    shape = site.shape(source)
    assert shape is not None
    sizes, found, place = [], [], 0
    while place != shape[axis]:
        if place not in pieces:
            return None
        end, other = pieces[place]
        sizes.append(end - place)
        found.append(other)
        place = end
    if len(found) < 2:
        return None
    first = site.first_of(found)
    if site.opset < 13:
        made = site.make("Split", [source], outputs=len(found), axis=axis, split=sizes)
    else:
        made = site.make("Split", [source, site.int64s(sizes)], outputs=len(found), axis=axis)
    producer = made.producer()
    assert producer is not None
    values = {other.outputs[0]: value for other, value in zip(found, producer.outputs, strict=True)}
    return Rewrite(values, f"{len(found)} Slices are a Split", before=first)


def _piece(node: ir.Node, site: Site) -> tuple[int, int, int] | None:
    """Return (axis, start, end) of a Slice that cuts one axis alone."""
    source, rank = site.shape(node.inputs[0]), site.rank(node.inputs[0])
    shape = site.shape(node.outputs[0])
    if source is None or rank is None or shape is None:
        return None
    try:
        cuts = slices(node, site.known, rank)
    except Exception:  # axes or steps that aren't known
        return None
    found = None
    for axis, start, end, step in cuts:
        if step != 1 or not isinstance(start, int) or not isinstance(end, int):
            return None
        length = source[axis]
        if not isinstance(length, int):
            if start == 0 and shape[axis] is not None and shape[axis] == length:
                continue
            return None
        begin, stop, _ = slice(start, end, 1).indices(length)
        if (begin, stop) == (0, length):
            continue
        if found is not None or begin >= stop:
            return None
        found = (axis, begin, stop)
    return found
