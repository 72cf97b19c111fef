"""Fold BatchNormalization into the linear operator before it, or after it.

In inference, per channel c::

    y = a·x + d,   a = scale / sqrt(var + epsilon),   d = bias − a·mean

and x = W∗u + b is linear in W and b, so y = (a·W)∗u + (a·b + d): the same operator with other numbers.

1. Conv: ``a`` scales axis 0 of W ``(M, C/group, k…)``.
2. ConvTranspose: W is ``(C, M/group, k…)``; output channel ``g·M/group + j`` is column ``j`` of group ``g``'s rows.
3. Gemm, Y = alpha·A·B + beta·C: ``a`` scales the output axis of B; C becomes ``a·beta·C + d`` and beta 1. MatMul: what
   is left of the offset becomes an Add.
4. A missing bias counts as zero and becomes ``d``.
5. A weight that others read as well is left to them, and the folded one is a new initializer.
6. Where what comes before isn't linear, a Conv, ConvTranspose, Gemm or MatMul after it takes it in:
   W·(a·x + d) + b = (W·a)·x + (W·d + b), ``a`` along the axis of input channels. Where there is an offset ``d``, a Conv
   mustn't pad (it would be missing at the border), and a ConvTranspose can't (each place would get another share).
7. Between the operator and it may stand Transposes, and an Add of a constant, as after a MatMul of more than two axes.

The numbers are computed in float64 and rounded once. Source: Ioffe and Szegedy, Batch Normalization (2015), 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._linear import OPERATORS as LINEAR
from penstock.passes._linear import (
    beside_constant,
    folded,
    linear_after,
    linear_before,
    numbers,
    per_channel,
    rounded,
    taken_in,
)
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.orders import order_of
from penstock.rewriting.site import Site, attribute

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.passes._linear import Array

PHASE: Phase = "fold"
AFTER: tuple[str, ...] = ("fold-constants",)
OPERATORS: tuple[str, ...] = ("BatchNormalization",)


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Fold one BatchNormalization."""
    slope, offset = _affine(node, site)
    try:
        linear = linear_before(node.inputs[0], site)
        if linear.op_type == "MatMul" and site.rank(node.inputs[0]) != 2:
            raise Refusal("it normalizes axis 1, which is the last axis of the product only where there are two")
        return site.instead(node, folded(linear, slope, offset, site), f"folded into the {linear.op_type} before it")
    except Refusal as refusal:
        if through := _through(node.inputs[0], slope, offset, 1, site):
            return site.instead(node, through, "folded into the weights before it")
        after = linear_after(node.outputs[0], site)
        if after is None:
            raise refusal
    value = taken_in(after, node.inputs[0], slope, offset, site)
    return Rewrite({after.outputs[0]: value}, f"folded into the {after.op_type} after it")


def _through(value: ir.Value | None, slope: Array, offset: Array, axis: int, site: Site) -> ir.Value | None:
    """Return slope·value + offset along an axis, from weights above a Transpose or an Add; ``None`` where none are."""
    maker, rank = site.maker(value, *LINEAR, "Transpose", "Add"), site.rank(value)
    if value is None or maker is None or rank is None or not site.sole_reader(value):
        return None
    if maker.op_type in LINEAR:
        if axis != (rank - 1 if maker.op_type == "MatMul" else 1):
            return None
        try:
            return folded(maker, slope, offset, site)
        except Refusal:
            return None
    if maker.op_type == "Transpose":
        order = order_of(maker, rank)
        inner = (
            None if order is None or len(order) != rank else _through(maker.inputs[0], slope, offset, order[axis], site)
        )
        return None if inner is None else site.copy(maker, [inner])
    place = beside_constant(maker, site)
    source = None if place is None else maker.inputs[place]
    if place is None or source is None or source.dtype is None or site.shape(source) != site.shape(value):
        return None
    added = per_channel(maker.inputs[1 - place], slope.size, rank, site, axis)
    inner = None if added is None else _through(source, slope, offset * 0.0, axis, site)
    if added is None or inner is None:
        return None
    bias = rounded(slope * added + offset, source.dtype, "bias").reshape(-1, *(1,) * (rank - 1 - axis))
    return site.make("Add", [inner, site.constant(bias, source.dtype)])


def _affine(node: ir.Node, site: Site) -> tuple[Array, Array]:
    """Return a and d, ``(channels,)`` each. Raises ``Refusal`` where the node doesn't compute that."""
    import numpy as np

    if site.opset < 7 and not attribute(node, "is_test", 0):
        raise Refusal("is_test=0: it normalizes by the statistics of the batch")
    if attribute(node, "training_mode", 0):
        raise Refusal("training_mode=1: it normalizes by the statistics of the batch")
    if site.opset < 9 and not attribute(node, "spatial", 1):
        raise Refusal("spatial=0: it has statistics for each position, not for each channel")
    told = any(value.name for value in node.outputs[1:])  # before opset 14 that is what training mode looks like
    if (told and site.opset < 14) or any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise Refusal("it also returns statistics, so it is in training mode or others read them")
    named = zip(("scale", "bias", "mean", "variance"), node.inputs[1:5], strict=True)
    scale, bias, mean, variance = (numbers(value, name, site) for name, value in named)
    if not scale.ndim == 1 or not scale.shape == bias.shape == mean.shape == variance.shape:
        raise Refusal("its scale, bias, mean and variance are not of one length")
    with np.errstate(all="ignore"):
        slope = scale / np.sqrt(variance + float(np.float32(attribute(node, "epsilon", 1e-5))))
    if not np.isfinite(slope).all():
        raise Refusal("a variance is negative or no number")
    return slope, bias - slope * mean
