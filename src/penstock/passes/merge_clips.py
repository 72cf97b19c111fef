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
RELU = (0.0, math.inf)
_FLOATS = ("FLOAT", "FLOAT16", "DOUBLE")


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Join the last of such nodes with those before it."""
    outer = _bounds(node, site)
    if outer is None or site.opset < 6 or outer[0].dtype is None or outer[0].dtype.name not in _FLOATS:
        return None
    if site.sole_reader(node.outputs[0]) and _bounds(next(iter(node.outputs[0].uses())).node, site) is not None:
        return None  # that one joins them all
    relus_alone = outer[0].dtype.name != "FLOAT" and site.opset < 12  # Clip of other types came with opset 12
    start, low, high = outer
    joined: list[ir.Node] = []
    while (before := site.maker(start, *OPERATORS)) is not None and (inner := _bounds(before, site)) is not None:
        bounds = max(inner[1], low), min(max(inner[2], low), high)
        if math.inf in bounds[:1] or -math.inf in bounds[1:]:
            return None  # all become infinite, and a Clip without its other bound ends at the largest float
        if (relus_alone and bounds != RELU) or (joined and not site.sole_reader(start)):
            break
        site.need_sole_reader(start, f"the {before.op_type} before it")
        joined.append(before)
        start, (low, high) = inner[0], bounds
    if not joined:
        return None
    what = f"{joined[0].op_type} and {node.op_type} join"
    if len(joined) > 1:
        what = f"{node.op_type} and the {len(joined)} before it join"
    new = site.make("Relu", [start]) if (low, high) == RELU else _clip(start, low, high, site)
    return site.instead(node, new, what)


def _bounds(node: ir.Node, site: Site) -> tuple[ir.Value, float, float] | None:
    """Return what a node keeps within which bounds; ``None`` for one that does something else."""
    if node.domain != "" or node.op_type not in OPERATORS:
        return None
    source = node.inputs[0] if node.inputs else None
    if source is None:
        return None
    if node.op_type == "Relu":
        return source, *RELU
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
