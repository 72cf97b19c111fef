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
6. Where what comes before isn't linear, a Conv without padding, a Gemm or a MatMul after it takes it in:
   W·(a·x + d) + b = (W·a)·x + (W·d + b), ``a`` along the axis of input channels. With padding, the offset would be
   missing at the border.

The numbers are computed in float64 and rounded once. Source: Ioffe and Szegedy, Batch Normalization (2015), 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._linear import folded, linear_before, numbers, rounded
from penstock.rewriting import Refusal, Rewrite
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
        after = _linear_after(node, site)
        if after is None:
            raise refusal
    value = _into(after, node, slope, offset, site)
    return Rewrite({after.outputs[0]: value}, f"folded into the {after.op_type} after it")


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
        slope = scale / np.sqrt(variance + float(attribute(node, "epsilon", 1e-5)))
    if not np.isfinite(slope).all():
        raise Refusal("a variance is negative or no number")
    return slope, bias - slope * mean


def _linear_after(node: ir.Node, site: Site) -> ir.Node | None:
    """Return the linear operator that alone reads the node's result and can take it in."""
    value = node.outputs[0]
    if not site.sole_reader(value):
        return None
    (use,) = value.uses()
    after = use.node
    if (
        use.idx != 0
        or after.domain != ""
        or after.op_type not in ("Conv", "Gemm", "MatMul")
        or after.graph is not node.graph
    ):
        return None
    if after.op_type == "Conv":
        auto = attribute(after, "auto_pad", "NOTSET")
        if any(attribute(after, "pads") or ()) or auto not in ("NOTSET", "VALID"):
            return None
    elif attribute(after, "transA", 0) or site.rank(value) != 2:
        return None
    return after


def _into(after: ir.Node, node: ir.Node, slope: Array, offset: Array, site: Site) -> ir.Value:
    """Return the linear operator after a BatchNormalization with that inside."""
    weight = numbers(after.inputs[1], f"the weight of {after.op_type}", site)
    tensor = site.tensor(after.inputs[1])
    bias = after.inputs[2] if len(after.inputs) > 2 else None
    assert tensor is not None
    if after.op_type == "Conv":
        groups, width = int(attribute(after, "group", 1)), weight.shape[1]
        if groups * width != slope.size:
            raise Refusal(f"Conv has {groups * width} input channels for {slope.size}")
        tail = (1,) * (weight.ndim - 2)
        outputs = weight.shape[0] // groups

        def by_output(numbers: Array) -> Array:  # (input channels,) → one row of its group for each output channel
            rows: Array = numbers.reshape(groups, 1, width).repeat(outputs, 1).reshape(-1, width, *tail)
            return rows

        new_weight = weight * by_output(slope)
        extra = (weight * by_output(offset)).reshape(weight.shape[0], -1).sum(1)
    else:
        turned = bool(attribute(after, "transB", 0))
        rows = weight.T if turned else weight
        if rows.shape[0] != slope.size:
            raise Refusal(f"{after.op_type} has {rows.shape[0]} rows for {slope.size} channels")
        scaled = rows * slope[:, None]
        new_weight, extra = (scaled.T if turned else scaled), float(attribute(after, "alpha", 1.0)) * (offset @ rows)
    old = (
        0.0
        if bias is None
        else numbers(bias, f"the bias of {after.op_type}", site) * float(attribute(after, "beta", 1.0))
    )
    held = [site.constant(rounded(part, tensor.dtype, what), tensor.dtype)
            for part, what in ((new_weight, "weights"), (old + extra, "bias"))]  # fmt: skip
    source = node.inputs[0]
    if after.op_type == "MatMul":
        return site.make("Add", [site.make("MatMul", [source, held[0]]), held[1]])
    changed = {"beta": None} if after.op_type == "Gemm" else {}
    return site.copy(after, [source, *held], **changed)
