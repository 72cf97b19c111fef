"""Make an RMSNormalization of its decomposed form, over the last axis or the last few.

1. x / sqrt(mean(x²) + ε), also as x·(1 / sqrt(…)), x·(γ / sqrt(…)) and with powers for the squares and roots, is an
   RMSNormalization; without a scale it gets one of ones.
2. A factor after one, along the normalized axes alone, becomes its scale, where that is still of ones.
3. A Cast to float32 before and the Cast back after it go, as LLaMA writes them: it computes in float32 by itself.
4. RMSNormalization needs opset 23. It rounds to float32 in between, so float64 stays decomposed.

Source: Zhang and Sennrich, Root Mean Square Layer Normalization (2019), and the function body of RMSNormalization-23.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import need_enclosed, need_opset, operands
from penstock.passes._moments import is_beside, normalized, weights
from penstock.passes.fuse_layer_normalization import NARROW
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site, attribute

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("fuse-layer-normalization",)
OPERATORS: tuple[str, ...] = ("Div", "Mul", "Cast")
SINCE = 23


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from its division, or take what comes after into one that is there."""
    if node.op_type == "Cast":
        return _casts(node, site)
    found = next((found for found in normalized(node, site) if found.over is found.squared), None)
    if found is None:
        return _taken(node, site) if node.op_type == "Mul" else None
    x = found.over
    if _is_centred(x, site):
        return None  # a LayerNormalization, or nearly
    if x.dtype is None or x.dtype.name not in NARROW:
        raise Refusal("RMSNormalization computes in float32, the model in float64")
    need_opset("RMSNormalization", SINCE, site)
    need_enclosed(found.nodes, node)
    scale = weights(found.weight, x, found.axis, "scale", site)
    value = site.make("RMSNormalization", [x, scale], axis=found.axis, epsilon=found.epsilon)
    return site.instead(node, value, f"{len(found.nodes) + 1} nodes are an RMSNormalization")


def _is_centred(x: ir.Value, site: Site) -> bool:
    less = site.maker(x, "Sub")
    return less is not None and site.maker(less.inputs[1], "ReduceMean") is not None


def _taken(node: ir.Node, site: Site) -> Rewrite | None:
    for value, other in operands(node):
        before = site.maker(value, "RMSNormalization")
        rank = site.rank(value)
        if before is None or before.inputs[0] is None or rank is None or other.dtype != value.dtype:
            continue
        axis = int(attribute(before, "axis", -1))
        axis = axis if axis < 0 else axis - rank
        if not site.filled_with(before.inputs[1], 1.0) or not is_beside(value, axis, other, site):
            continue
        site.need_sole_reader(value, "the RMSNormalization")
        scale = weights(other, before.inputs[0], axis, "scale", site)
        made = site.copy(before, [before.inputs[0], scale])
        return site.instead(node, made, "RMSNormalization takes the Mul after it in")
    return None


def _casts(node: ir.Node, site: Site) -> Rewrite | None:
    middle = node.inputs[0]
    before = site.maker(middle, "RMSNormalization")
    widening = None if before is None else site.maker(before.inputs[0], "Cast")
    x = None if widening is None else widening.inputs[0]
    if before is None or middle is None or middle.dtype is None or x is None or x.dtype is None:
        return None
    rank = site.rank(x)
    if x.dtype.name not in NARROW or attribute(node, "to") != x.dtype or middle.dtype.name != "FLOAT" or rank is None:
        return None
    if not site.filled_with(before.inputs[1], 1.0):
        return None
    site.need_sole_reader(middle, "the RMSNormalization")
    axis = int(attribute(before, "axis", -1))
    scale = weights(None, x, axis if axis < 0 else axis - rank, "scale", site)
    return site.instead(node, site.copy(before, [x, scale]), "RMSNormalization computes in float32 by itself")
