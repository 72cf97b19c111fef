"""Pick out one place of an axis by a Gather, and by that alone.

1. A Squeeze of a Slice of one place, of the same axis, is a Gather with one index.
2. A Split into parts of one place, each of which is squeezed, is as many Gathers.
3. A Gather with one index that is unsqueezed to where it was is a Gather with a list of one.
4. A Gather with one index of a Transpose reads what was transposed along the other axis, where the axes that are left
   stand in order then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes.merge_reshapes import axes_of
from penstock.passes.merge_transposes import order_of
from penstock.rewriting import Rewrite
from penstock.rewriting.shape_rules import slices
from penstock.rewriting.site import Site, attribute
from penstock.rewriting.sizes import same

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("merge-slices",)
OPERATORS: tuple[str, ...] = ("Squeeze", "Unsqueeze", "Reshape", "Gather")
NEGATIVE_SINCE = 11  # Gather takes indices from the end


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Make a Gather, or let one read from further above."""
    if node.op_type == "Squeeze":
        return _of_slice(node, site) or _of_split(node, site)
    return _of_transpose(node, site) if node.op_type == "Gather" else _kept(node, site)


def _squeezed_axis(node: ir.Node, site: Site) -> int | None:
    axes, rank = axes_of(node, site), site.rank(node.inputs[0])
    return None if axes is None or len(axes) != 1 or rank is None else axes[0] % rank


def _of_slice(node: ir.Node, site: Site) -> Rewrite | None:
    before, axis = site.maker(node.inputs[0], "Slice"), _squeezed_axis(node, site)
    shape = None if before is None else site.shape(before.inputs[0])
    if before is None or node.inputs[0] is None or axis is None or shape is None:
        return None
    try:
        cuts = slices(before, site.known, len(shape))
    except Exception:  # axes or steps that aren't known
        return None
    size = shape[axis]
    if len(cuts) != 1 or cuts[0][0] != axis or cuts[0][3] != 1 or not site.sole_reader(node.inputs[0]):
        return None
    _, start, end, _ = cuts[0]
    if not isinstance(start, int) or not isinstance(end, int):
        return None
    if isinstance(size, int):
        start = start + size if start < 0 else start
        one = 0 <= start < size and len(range(*slice(cuts[0][1], end).indices(size))) == 1
    else:
        one = end == start + 1 if start >= 0 or start < -1 else end >= 2**31 - 1
        one = one and (start >= 0 or site.opset >= NEGATIVE_SINCE)
    if not one:
        return None
    made = site.make("Gather", [before.inputs[0], _index(start, site)], axis=axis)
    return site.instead(node, made, "Slice and Squeeze are a Gather")


def _of_split(node: ir.Node, site: Site) -> Rewrite | None:
    split, axis = site.maker(node.inputs[0], "Split"), _squeezed_axis(node, site)
    rank = None if split is None else site.rank(split.inputs[0])
    if split is None or axis is None or rank is None or int(attribute(split, "axis", 0)) % rank != axis:
        return None
    values, readers = {}, []
    for value in split.outputs:
        shape = site.shape(value)
        if shape is None or shape[axis] != 1 or not site.sole_reader(value):
            return None
        (use,) = value.uses()
        if use.node.op_type != "Squeeze" or use.node.domain != "" or _squeezed_axis(use.node, site) != axis:
            return None
        if use.node.graph is not node.graph:
            return None
        readers.append(use.node)
    for place, reader in enumerate(readers):
        values[reader.outputs[0]] = site.make("Gather", [split.inputs[0], _index(place, site)], axis=axis)
    return Rewrite(values, f"a Split and {len(readers)} Squeezes are Gathers", before=site.first_of(readers))


def _kept(node: ir.Node, site: Site) -> Rewrite | None:
    before = site.maker(node.inputs[0], "Gather")
    if before is None or node.inputs[0] is None or not site.sole_reader(node.inputs[0]):
        return None
    shape, picked = site.shape(before.inputs[0]), site.ints(before.inputs[1])
    if shape is None or picked is None or len(picked) != 1 or site.rank(before.inputs[1]) != 0:
        return None
    axis = int(attribute(before, "axis", 0)) % len(shape)
    if not same((*shape[:axis], 1, *shape[axis + 1 :]), site.shape(node.outputs[0])):
        return None
    if site.tensor(before.inputs[1]) is None:
        return None
    made = site.make("Gather", [before.inputs[0], site.int64s(picked)], axis=axis)
    return site.instead(node, made, f"Gather keeps the axis that {node.op_type} brings back")


def _of_transpose(node: ir.Node, site: Site) -> Rewrite | None:
    before = site.maker(node.inputs[0], "Transpose")
    if before is None or site.rank(node.inputs[1]) != 0 or before.inputs[0] is None:
        return None
    order = order_of(before, site)
    if order is None:
        return None
    axis = int(attribute(node, "axis", 0)) % len(order)
    rest = [place for place in order if place != order[axis]]
    if rest != sorted(rest):
        return None
    made = site.make("Gather", [before.inputs[0], node.inputs[1]], axis=order[axis])
    return site.instead(node, made, "Gather reads what was transposed")


def _index(place: int, site: Site) -> ir.Value:
    import numpy as np

    return site.constant(np.array(place, dtype=np.int64))
