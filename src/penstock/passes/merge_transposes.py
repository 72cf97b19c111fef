"""Join Transposes that follow each other, and let those that only move axes of size 1 be Reshapes.

1. ``Transpose(Transpose(x, p), q)`` is ``Transpose(x, p∘q)`` with ``(p∘q)[i] = p[q[i]]``; where that leaves all axes in
   place, both go: ``Transpose(Transpose(x, [0, 2, 3, 1]), [0, 3, 1, 2])`` is x.
2. A Transpose after (or before) a reshaping becomes one of these where it only moves axes of size 1, so that the two
   can be joined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes.fold_shapes import as_numbers
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site, attribute

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("Transpose",)
_RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Join a Transpose with what is before it."""
    source = node.inputs[0]
    if source is None:
        return None
    order = order_of(node, site)
    before = site.maker(source, "Transpose")
    if before is not None and before.inputs[0] is not None and order is not None:
        first = order_of(before, site)
        if first is not None and len(first) == len(order):
            joined = [first[axis] for axis in order]
            if joined == sorted(joined):
                return site.instead(node, before.inputs[0], "two Transposes cancel")
            site.need_sole_reader(source, "the Transpose before it")
            return site.instead(node, site.make("Transpose", [before.inputs[0]], perm=joined), "two Transposes join")
    return _as_reshape(node, source, order, site)


def order_of(node: ir.Node, site: Site) -> list[int] | None:
    """Return the order of axes of a Transpose, ``None`` where it reverses an unknown rank."""
    order = attribute(node, "perm")
    if order is not None:
        return [int(axis) for axis in order]
    rank = site.rank(node.inputs[0])
    return None if rank is None else list(reversed(range(rank)))


def _as_reshape(node: ir.Node, source: ir.Value, order: list[int] | None, site: Site) -> Rewrite | None:
    shape = site.shape(source)
    if shape is None or order is None or site.opset < 5:
        return None
    moving = [axis for axis in order if shape[axis] != 1]
    if moving != sorted(moving) or order == sorted(order):
        return None
    beside = site.maker(source, *_RESHAPING) is not None and site.sole_reader(source)
    readers = [use.node for use in node.outputs[0].uses()]
    beside = beside or bool(readers and all(r.op_type in _RESHAPING and r.domain == "" for r in readers))
    if not beside:
        return None
    try:
        target = as_numbers(tuple(shape[axis] for axis in order), shape)
    except Refusal:
        return None
    return site.instead(node, site.make("Reshape", [source, site.int64s(target)]), "it only moves axes of size 1")
