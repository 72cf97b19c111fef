"""Make a HardSigmoid of an addition and a Clip.

HardSigmoid(x) = max(0, min(1, α·x + β)).

1. Clip(x + b, 0, m)·n with m·n = 1 has α = n and β = b·n: ``Clip(x + 3, 0, 6) / 6`` is HardSigmoid with α = 1/6 and
   β = ½. The addition may be a Sub of a constant.
2. Clip(a·x + b, 0, 1) has α = a and β = b.
3. Where x is multiplied in between, x·Clip(x + 3, 0, 6) / 6 is x·HardSigmoid(x), at any opset; ``fuse-hard-swish``
   makes one node of that where the opset has it.
4. Not in float64: α and β are attributes, in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import factors, factors_of, near, need_enclosed, need_narrow, plus_number
from penstock.rewriting import Rewrite
from penstock.rewriting.site import Site, attribute

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("merge-clips",)
OPERATORS: tuple[str, ...] = ("Mul", "Div", "Clip")
FIRST_OPSET = 6


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from the Clip, or from the multiplication after it."""
    if site.opset < FIRST_OPSET:
        return None
    if node.op_type == "Clip":
        return _alone(node, site)
    found = factors(node, site)
    if found.number == 1.0 or found.number <= 0 or not 1 <= len(found.values) <= 2:
        return None
    for place, value in enumerate(found.values):
        clip = site.maker(value, "Clip")
        bounds = None if clip is None else clip_bounds(clip, site)
        added = None if clip is None else site.maker(clip.inputs[0], "Add", "Sub")
        if clip is None or bounds is None or added is None or bounds[0] != 0.0:
            continue
        if not near(bounds[1] * found.number, 1.0, value):
            continue
        for x, shift in plus_number(added, site):
            rest = found.values[1 - place] if len(found.values) == 2 else None
            if rest is not None and rest is not x:
                continue
            nodes = [*found.nodes, clip, added]
            need_narrow("HardSigmoid", x, *added.inputs)
            need_enclosed(nodes, node)
            made = site.make("HardSigmoid", [x], alpha=found.number, beta=shift * found.number)
            made = made if rest is None else site.make("Mul", [rest, made])
            return site.instead(node, made, f"{len(nodes)} nodes are a HardSigmoid")
    return None


def _alone(node: ir.Node, site: Site) -> Rewrite | None:
    added = site.maker(node.inputs[0], "Add", "Sub")
    if added is None or clip_bounds(node, site) != (0.0, 1.0):
        return None
    for value, shift in plus_number(added, site):
        found = factors_of(value, site)
        if found.nodes and len(found.values) == 1:
            nodes = [added, *found.nodes]
            need_narrow("HardSigmoid", value, *added.inputs)
            need_enclosed(nodes, node)
            made = site.make("HardSigmoid", found.values, alpha=found.number, beta=shift)
            return site.instead(node, made, f"{len(nodes) + 1} nodes are a HardSigmoid")
    return None


def clip_bounds(node: ir.Node, site: Site) -> tuple[float, float] | None:
    """Return the two bounds of a Clip that has both as constants."""
    found = []
    for name, place in (("min", 1), ("max", 2)):
        bound = attribute(node, name)
        if bound is None and len(node.inputs) > place:
            bound = site.scalar(node.inputs[place])
        if bound is None:
            return None
        found.append(float(bound))
    return found[0], found[1]
