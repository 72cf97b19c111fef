"""Make a Sigmoid of a Tanh that is brought between 0 and 1: ½·(1 + tanh(z)) = σ(2z).

1. The ½ may be multiplied to another factor as well: ½·(1 + tanh(z))·y is σ(2z)·y.
2. The 2 goes into the number that z is multiplied with anyway; where it isn't, a Mul is added.

The Gelu with tanh, in models whose opset doesn't have Gelu, becomes two nodes shorter so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import beside_number, factors, near, need_enclosed
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("fuse-gelu",)
OPERATORS: tuple[str, ...] = ("Mul", "Div")


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from its multiplication."""
    import numpy as np

    found = factors(node, site)
    if not 1 <= len(found.values) <= 2:
        return None
    for place, value in enumerate(found.values):
        added = site.maker(value, "Add")
        for inner, number in () if added is None else beside_number(added, site):
            tanh = site.maker(inner, "Tanh")
            z = None if tanh is None else tanh.inputs[0]
            if tanh is None or added is None or z is None or number != 1.0 or not near(found.number, 0.5, value):
                continue
            nodes = [*found.nodes, added, tanh]
            need_enclosed(nodes, node)
            dtype = None if z.dtype is None else z.dtype
            if dtype is None:
                raise Refusal("its type isn't known")
            scale, source = 2.0, z
            before = site.maker(z, "Mul")
            for start, times in () if before is None or not site.sole_reader(z) else beside_number(before, site):
                scale, source = 2.0 * times, start
            factor = site.constant(np.array(scale, dtype=dtype.numpy()), dtype)
            made = site.make("Sigmoid", [site.make("Mul", [source, factor])])
            if len(found.values) == 2:
                made = site.make("Mul", [found.values[1 - place], made])
            return site.instead(node, made, f"½·(1 + tanh(z)), {len(nodes)} nodes, is a Sigmoid")
    return None
