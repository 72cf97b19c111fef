"""Fold multiplication and addition with constants, one number for each channel, into the linear operator beside them.

1. Conv, ConvTranspose, Gemm or MatMul, then Mul or Div by a constant: the weights and the bias take it in.
2. Then Add or Sub of a constant: the bias takes it in. A MatMul has no bias: see ``fuse-gemm``.
3. ``c − x`` is (−1)·x + c. ``c / x`` isn't linear.
4. Neg is (−1)·x.
5. The constant has to be one number, or one for each channel along the operator's axis of channels, and must not make
   the result larger by broadcasting.
6. Where what comes before isn't linear, the operator after them takes them in: see ``fold-batchnorm``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._linear import OPERATORS as LINEAR
from penstock.passes._linear import beside_constant, channels_of, folded, linear_after, linear_before, step, taken_in
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fold"
AFTER: tuple[str, ...] = ("fold-batchnorm",)
OPERATORS: tuple[str, ...] = ("Mul", "Div", "Add", "Sub", "Neg")


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Fold one of them into what comes before, else into what comes after."""
    try:
        before = _before(node, site)
    except Refusal as refusal:
        if after := _after(node, site):
            return after
        raise refusal
    return before or _after(node, site)


def _before(node: ir.Node, site: Site) -> Rewrite | None:
    place = beside_constant(node, site)
    if place is None or site.maker(node.inputs[place], *LINEAR) is None:
        return None
    value = node.inputs[place]
    linear = linear_before(value, site)
    if linear.op_type == "MatMul" and node.op_type in ("Add", "Sub"):
        return None
    rank = site.rank(value)
    if rank is None:
        raise Refusal("the rank of the linear operator's output isn't known")
    axis = rank - 1 if linear.op_type == "MatMul" else 1
    found = step(node, place, channels_of(linear, site), rank, axis, site)
    if found is None:
        return None
    return site.instead(node, folded(linear, *found, site), f"{node.op_type} folded into {linear.op_type}")


def _after(node: ir.Node, site: Site) -> Rewrite | None:
    """Fold it into the operator that alone reads it."""
    place, after = beside_constant(node, site), linear_after(node.outputs[0], site)
    if place is None or after is None or site.tensor(after.inputs[1]) is None:
        return None
    value, shape = node.inputs[place], site.shape(node.inputs[place])
    count = shape[1] if shape is not None and len(shape) > 1 else None
    if shape is None or not isinstance(count, int) or len(shape) != site.rank(node.outputs[0]):
        return None
    found = step(node, place, count, len(shape), 1, site)
    if found is None:
        return None
    made = taken_in(after, value, *found, site)
    return Rewrite({after.outputs[0]: made}, f"{node.op_type} folded into the {after.op_type} after it")
