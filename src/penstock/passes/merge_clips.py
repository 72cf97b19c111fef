"""Join Relu and Clip that follow each other: each keeps its input within bounds.

1. Clip(Clip(x, a, b), c, d) is Clip(x, max(a, c), min(max(b, c), d)); Relu is a Clip from 0 without an upper bound.
2. Relu(Relu(x)) is Relu(x).
3. Max and Min with a constant of one element are Clips with one bound.
4. The bounds have to be constants, and the type a floating-point one. Below opset 6 Clip isn't touched.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.rewriting import Rewrite
from penstock.rewriting.site import Site, attribute
from penstock.rewriting.sizes import same

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("Relu", "Clip", "Max", "Min")
_FLOATS = ("FLOAT", "FLOAT16", "DOUBLE")


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Join a node with the one before it."""
    outer = _bounds(node, site)
    if outer is None or site.opset < 6:
        return None
    middle, low, high = outer
    before = site.maker(middle, *OPERATORS)
    inner = None if before is None else _bounds(before, site)
    if before is None or inner is None:
        return None
    start, first_low, first_high = inner
    site.need_sole_reader(middle, f"the {before.op_type} before it")
    joined = (max(first_low, low), min(max(first_high, low), high))
    kind = start.dtype.name if start.dtype is not None else ""
    if kind not in _FLOATS or (kind != "FLOAT" and site.opset < 12 and joined != (0.0, math.inf)):
        return None  # Clip of other types came with opset 12
    what = f"{before.op_type} and {node.op_type} join"
    if joined == (0.0, math.inf):
        return site.instead(node, site.make("Relu", [start]), what)
    return site.instead(node, _clip(start, *joined, site), what)


def _bounds(node: ir.Node, site: Site) -> tuple[ir.Value, float, float] | None:
    """Return what a node keeps within which bounds."""
    source = node.inputs[0] if node.inputs else None
    if source is None:
        return None
    if node.op_type == "Relu":
        return source, 0.0, math.inf
    if node.op_type == "Clip":
        bounds = []
        for name, place, default in (("min", 1, -math.inf), ("max", 2, math.inf)):
            value: float | None = attribute(node, name, default)
            if len(node.inputs) > place and node.inputs[place] is not None:
                value = site.scalar(node.inputs[place])
            if value is None or math.isnan(value):
                return None
            bounds.append(float(value))
        return source, bounds[0], bounds[1]
    if len(node.inputs) != 2:
        return None
    for kept, other in ((0, 1), (1, 0)):
        number = site.scalar(node.inputs[other])
        held = node.inputs[kept]
        if number is None or held is None or math.isnan(number) or site.tensor(held) is not None:
            continue
        if same(site.shape(held), site.shape(node.outputs[0])):
            return (held, number, math.inf) if node.op_type == "Max" else (held, -math.inf, number)
    return None


def _clip(source: ir.Value, low: float, high: float, site: Site) -> ir.Value:
    import numpy as np

    assert source.dtype is not None
    if site.opset < 11:
        return site.make(
            "Clip", [source], min=None if low == -math.inf else low, max=None if high == math.inf else high
        )
    kind = source.dtype.numpy()
    bounds = [None if math.isinf(bound) else site.constant(np.array(bound, dtype=kind)) for bound in (low, high)]
    return site.make("Clip", [source, *bounds])
