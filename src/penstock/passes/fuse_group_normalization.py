"""Make a GroupNormalization of the Reshape, InstanceNormalization and Reshape that exporters write for it.

1. x ``(N, C, …)`` is reshaped to ``(N, G, …)``, normalized in each of the G groups, and reshaped back. What scale and
   bias the InstanceNormalization has for each group is that of all its channels.
2. A Mul or an Add after it with one number for each channel goes into its scale and bias, computed in float64:
   (a·x̂ + b)·g + h = (a·g)·x̂ + (b·g + h).
3. GroupNormalization has a scale for each channel from opset 21 on (in 18, for each group). It computes in float32, so
   float64 stays as it is.

Only run when asked for: ONNX Runtime has no kernel for it and runs the body of its definition, with the variance as
E[x²] - E[x]². Where the mean is large beside the spread (100 beside 1) that loses three digits and more, at 5000 all of
them; and it is slower than the three nodes.

Source: Wu and He, Group Normalization (2018).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import need_enclosed, need_opset, operands
from penstock.passes._linear import numbers, per_channel, rounded
from penstock.passes.fuse_layer_normalization import NARROW
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site, attribute
from penstock.rewriting.sizes import equal, same

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPTIONAL = True
OPERATORS: tuple[str, ...] = ("Reshape", "Mul", "Add")
SINCE = 21


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from its last Reshape, or take what comes after into one that is there."""
    return _made(node, site) if node.op_type == "Reshape" else _taken(node, site)


def _made(node: ir.Node, site: Site) -> Rewrite | None:
    import numpy as np

    norm = site.maker(node.inputs[0], "InstanceNormalization")
    first = None if norm is None else site.maker(norm.inputs[0], "Reshape")
    x = None if first is None else first.inputs[0]
    if norm is None or first is None or x is None or x.dtype is None:
        return None
    shape, grouped = site.shape(x), site.shape(norm.inputs[0])
    if shape is None or grouped is None or len(shape) < 3 or not same(shape, site.shape(node.outputs[0])):
        return None
    channels, groups = shape[1], grouped[1]
    if not isinstance(channels, int) or not isinstance(groups, int) or not groups or channels % groups:
        raise Refusal("the number of channels isn't known, or not a multiple of the groups")
    if not equal(shape[0], grouped[0]):
        raise Refusal("the first Reshape isn't known to keep the batch")
    if x.dtype.name not in NARROW:
        raise Refusal("GroupNormalization computes in float32, the model in float64")
    need_opset("GroupNormalization with a scale for each channel", SINCE, site)
    need_enclosed([norm, first], node)
    weights = []
    for place, what in ((1, "scale"), (2, "bias")):
        array = numbers(norm.inputs[place], f"the {what} of InstanceNormalization", site)
        weights.append(site.constant(np.repeat(array, channels // groups).astype(x.dtype.numpy()), x.dtype))
    epsilon = float(attribute(norm, "epsilon", 1e-5))
    value = site.make("GroupNormalization", [x, *weights], num_groups=groups, epsilon=epsilon)
    return site.instead(node, value, "InstanceNormalization between two Reshapes is a GroupNormalization")


def _taken(node: ir.Node, site: Site) -> Rewrite | None:
    for value, other in operands(node):
        before = site.maker(value, "GroupNormalization")
        rank, shape = site.rank(value), site.shape(value)
        if before is None or rank is None or shape is None or site.tensor(other) is None or value.dtype is None:
            continue
        if site.opset < SINCE or not isinstance(shape[1], int):
            return None
        more = per_channel(other, shape[1], rank, site)
        if more is None:
            raise Refusal("the constant isn't one number for each channel")
        site.need_sole_reader(value, "the GroupNormalization")
        scale, bias = (numbers(before.inputs[place], "the scale or bias", site) for place in (1, 2))
        scale, bias = (scale * more, bias * more) if node.op_type == "Mul" else (scale, bias + more)
        made = [site.constant(rounded(array, value.dtype, "weights"), value.dtype) for array in (scale, bias)]
        joined = site.copy(before, [before.inputs[0], *made])
        return site.instead(node, joined, f"GroupNormalization takes the {node.op_type} after it in")
    return None
