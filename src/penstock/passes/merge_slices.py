"""Join Slices: those that follow each other, and those that cut a tensor into pieces along one axis without a gap.

1. Two or more Slices of the same tensor in the same graph, each along the same axis alone with a step of 1, which
   together cover it from its beginning to its end, become one Split. What they are read by doesn't change.
2. The size of the axis has to be known.
3. A Slice of a Slice that nothing else reads is one Slice, where the bounds are constants, and the size of an axis that
   both cut is known (or both count from its beginning).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Rewrite
from penstock.rewriting.shape_rules import slices
from penstock.rewriting.site import Site
from penstock.rewriting.sizes import Size
from penstock.rewriting.wiring import read_count

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("merge-concats",)
OPERATORS: tuple[str, ...] = ("Slice",)
MOST_READERS = 64


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Join a Slice with the one before it, or with its neighbours; the first of these in the graph stands for all."""
    if joined := _nested(node, site):
        return joined
    source = node.inputs[0]
    mine = None if source is None else _piece(node, site)
    if source is None or mine is None or read_count(source) > MOST_READERS:
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


def _nested(node: ir.Node, site: Site) -> Rewrite | None:
    middle = node.inputs[0]
    before = site.maker(middle, "Slice")
    shape = None if before is None else site.shape(before.inputs[0])
    if middle is None or before is None or before.inputs[0] is None or shape is None or not site.sole_reader(middle):
        return None
    try:
        first = {cut[0]: cut[1:] for cut in slices(before, site.known, len(shape))}
        second = {cut[0]: cut[1:] for cut in slices(node, site.known, len(shape))}
    except Exception:  # axes or steps that aren't known
        return None
    joined: list[tuple[int, int, int, int]] = []
    for axis in sorted({*first, *second}):
        cut = _composed(first.get(axis), second.get(axis), shape[axis])
        if cut is None:
            return None
        joined.append((axis, *cut))
    axes, starts, ends, steps = (list(column) for column in zip(*joined, strict=True))
    if site.opset < 10:
        made = site.make("Slice", [before.inputs[0]], axes=axes, starts=starts, ends=ends)
    else:
        lists = [starts, ends, axes, *([] if set(steps) == {1} else [steps])]
        made = site.make("Slice", [before.inputs[0], *map(site.int64s, lists)])
    return site.instead(node, made, "two Slices join")


Cut = tuple["Size", "Size", int]


def _composed(first: Cut | None, second: Cut | None, size: Size) -> tuple[int, int, int] | None:
    """Return (start, end, step) of a cut after a cut of the same axis."""
    if first is None or second is None:
        start, end, step = first or second or (None, None, 1)
        return (start, end, step) if isinstance(start, int) and isinstance(end, int) else None
    bounds = [bound for bound in (*first[:2], *second[:2]) if isinstance(bound, int)]
    if len(bounds) != 4:
        return None
    if isinstance(size, int):
        left = range(size)[bounds[0] : bounds[1] : first[2]][bounds[2] : bounds[3] : second[2]]
        if not len(left):
            return None
        return left.start, left.stop if left.stop >= 0 else -(2**63), left.step
    if first[2] != 1 or second[2] != 1 or min(bounds) < 0:
        return None
    return bounds[0] + bounds[2], min(bounds[1], bounds[0] + bounds[3]), 1
