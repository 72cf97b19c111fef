"""Make a LayerNormalization of its decomposed form, over the last axis or the last few.

With m = mean(x), d = x − m and v = mean(d²)::

    y = d / sqrt(v + ε) · γ + β

1. d / sqrt(v + ε), also as d·(1 / sqrt(…)), d·(γ / sqrt(…)) and with powers for the squares and roots, is a
   LayerNormalization; without a scale it gets one of ones.
2. A factor or a summand after one, along the normalized axes alone, becomes its scale or bias, where that is free.
3. A Cast to float32 before and the Cast back after it go: LayerNormalization computes in float32 by itself.
4. TensorFlow's x·s + (β − m·s) with s = γ / sqrt(v + ε) is d·s + β, at any opset: two nodes fewer, and no difference
   of large numbers.
5. LayerNormalization needs opset 17. It rounds to float32 in between, so float64 stays decomposed.

Source: Ba, Kiros and Hinton, Layer Normalization (2016), and the function body of LayerNormalization-17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import need_enclosed, need_opset, operands
from penstock.passes._moments import Normalized, is_beside, mean, normalized, weights
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site, attribute

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("Div", "Mul", "Add", "Cast")
SINCE = 17
NARROW = ("FLOAT", "FLOAT16", "BFLOAT16")


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from its division, or take what comes after into one that is there."""
    if node.op_type == "Cast":
        return _casts(node, site)
    if node.op_type == "Add":
        return _taken(node, site) or _difference(node, site)
    found = _core(node, site)
    if found is None:
        return _taken(node, site) if node.op_type == "Mul" else None
    whole, x, parts = found
    if x.dtype is None or x.dtype.name not in NARROW:
        raise Refusal("LayerNormalization computes in float32, the model in float64")
    need_opset("LayerNormalization", SINCE, site)
    need_enclosed(parts, node)
    scale = weights(whole.weight, x, whole.axis, "scale", site)
    value = site.make("LayerNormalization", [x, scale], axis=whole.axis, epsilon=whole.epsilon)
    return site.instead(node, value, f"{len(parts) + 1} nodes are a LayerNormalization")


def _core(node: ir.Node, site: Site) -> tuple[Normalized, ir.Value, list[ir.Node]] | None:
    """Return what is divided by the root of the variance, x, and the nodes in between."""
    for found in normalized(node, site):
        centred = site.maker(found.over, "Sub")
        average = None if centred is None else mean(centred.inputs[1], site)
        if centred is None or average is None or average.axis != found.axis or found.squared is not found.over:
            continue
        x = centred.inputs[0]
        if x is not None and average.of is x:
            return found, x, [*found.nodes, centred, average.node]
    return None


def _taken(node: ir.Node, site: Site) -> Rewrite | None:
    """Let a LayerNormalization take the Mul or Add after it in."""
    for value, other in operands(node):
        before = site.maker(value, "LayerNormalization")
        if before is None or before.inputs[0] is None or len(before.outputs) > 1:
            continue
        if len(before.inputs) > 2 and before.inputs[2] is not None:
            continue
        axis, rank = int(attribute(before, "axis", -1)), site.rank(value)
        if rank is None or other.dtype != value.dtype:
            continue
        axis = axis if axis < 0 else axis - rank
        if not is_beside(value, axis, other, site):
            continue
        x, scale = before.inputs[0], before.inputs[1]
        if node.op_type == "Mul" and not site.filled_with(scale, 1.0):
            continue
        site.need_sole_reader(value, "the LayerNormalization")
        weight = weights(other, x, axis, "scale" if node.op_type == "Mul" else "bias", site)
        inputs = [x, weight] if node.op_type == "Mul" else [x, scale, weight]
        made = site.copy(before, inputs)
        return site.instead(node, made, f"LayerNormalization takes the {node.op_type} after it in")
    return None


def _casts(node: ir.Node, site: Site) -> Rewrite | None:
    before = site.maker(node.inputs[0], "LayerNormalization")
    widening = None if before is None else site.maker(before.inputs[0], "Cast")
    if before is None or widening is None or node.inputs[0] is None or len(before.inputs) > 2:
        return None
    x = widening.inputs[0]
    if x is None or x.dtype is None or x.dtype.name not in NARROW or node.inputs[0].dtype is None:
        return None
    if attribute(node, "to") != x.dtype or node.inputs[0].dtype.name != "FLOAT":
        return None
    if not site.filled_with(before.inputs[1], 1.0):
        return None
    site.need_sole_reader(node.inputs[0], "the LayerNormalization")
    axis, rank = int(attribute(before, "axis", -1)), site.rank(x)
    if rank is None:
        return None
    scale = weights(None, x, axis if axis < 0 else axis - rank, "scale", site)
    return site.instead(node, site.copy(before, [x, scale]), "LayerNormalization computes in float32 by itself")


def _difference(node: ir.Node, site: Site) -> Rewrite | None:
    """Write x·s + (β − m·s) as (x − m)·s + β."""
    for product, rest in operands(node):
        scaled, less = site.maker(product, "Mul"), site.maker(rest, "Sub")
        shift = None if less is None else site.maker(less.inputs[1], "Mul")
        if scaled is None or less is None or shift is None or less.inputs[0] is None:
            continue
        for x, s in operands(scaled):
            for m, other in operands(shift):
                average = mean(m, site)
                if other is not s or average is None or average.of is not x:
                    continue
                for found in normalized(scaled, site):
                    centred = site.maker(found.squared, "Sub")
                    if centred is None or found.over is not x or list(centred.inputs) != [x, m]:
                        continue
                    need_enclosed([scaled, less, shift], node)
                    value = site.make("Add", [site.make("Mul", [found.squared, s]), less.inputs[0]])
                    return site.instead(node, value, "the difference is taken before it is scaled")
    return None
