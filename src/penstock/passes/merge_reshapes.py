"""Join Reshape, Flatten, Squeeze and Unsqueeze that follow each other: all of them leave the elements in their order.

1. Two become one Reshape from the first input to the last shape, where that can be written with numbers, sizes that
   stay in their place, and one size that isn't known before a run.
2. Where it can't, two Unsqueezes become one, and two Squeezes become one, with the axes of both.
3. Where the last shape is that of the first input, both go.
4. A Reshape between two that others read as well stays for them; then only 3 applies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes.fold_shapes import as_numbers
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site, attribute
from penstock.rewriting.sizes import same

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
FIRST_OPSET = 5  # in which Reshape takes its shape as an input


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Join a node with the one before it."""
    middle = node.inputs[0]
    before = site.maker(middle, *OPERATORS)
    if before is None or middle is None or before.inputs[0] is None or site.opset < FIRST_OPSET:
        return None
    start, end = before.inputs[0], node.outputs[0]
    if same(site.shape(start), site.shape(end)):
        return site.instead(node, start, f"{before.op_type} and {node.op_type} cancel")
    site.need_sole_reader(middle, f"the {before.op_type} before it")
    what = f"{before.op_type} and {node.op_type} join"
    shape = site.shape(end)
    if shape is not None:
        try:
            target = as_numbers(shape, site.shape(start))
            if 0 in shape:
                raise Refusal("an axis is empty")
            return site.instead(node, site.make("Reshape", [start, site.int64s(target)]), what)
        except Refusal:
            pass
    axes = _joined_axes(before, node, site)
    if axes is None:
        raise Refusal("the joined shape has more than one size that isn't known before a run")
    return site.instead(node, site.with_axes(node.op_type, start, axes), what)


def _joined_axes(before: ir.Node, node: ir.Node, site: Site) -> list[int] | None:
    """Return the axes of one node for two of the same kind."""
    if before.op_type != node.op_type or node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    ranks = [site.rank(value) for value in (before.inputs[0], before.outputs[0], node.outputs[0])]
    first, second = (axes_of(one, site) for one in (before, node))
    if first is None or second is None or None in ranks:
        return None
    outer, middle, inner = (rank or 0 for rank in ranks)
    if node.op_type == "Unsqueeze":
        second = [axis % inner for axis in second]
        places = [place for place in range(inner) if place not in second]  # of the middle's axes
        return sorted([*second, *(places[axis % middle] for axis in first)])
    first = [axis % outer for axis in first]
    places = [place for place in range(outer) if place not in first]
    return sorted([*first, *(places[axis % middle] for axis in second)])


def axes_of(node: ir.Node, site: Site) -> list[int] | None:
    """Return the axes of a Squeeze or Unsqueeze, an attribute or an input depending on the opset."""
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1:
        axes = site.ints(node.inputs[1])
    return None if axes is None else [int(axis) for axis in axes]
