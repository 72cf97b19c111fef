"""Make a Gelu of its decomposed forms.

1. ½·x·(1 + erf(x / √2)), the factors in any order and place, as in x·(½ + ½·erf(x / √2)): Gelu.
2. ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), also with the cube written out or x outside: Gelu with approximate=tanh.
3. Gelu needs opset 20.

Source: Hendrycks and Gimpel, Gaussian Error Linear Units (2016).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import (
    Factors,
    beside_number,
    factors,
    factors_of,
    near,
    need_enclosed,
    need_narrow,
    need_opset,
    operands,
)  # fmt: skip
from penstock.rewriting import Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("Mul", "Div")
SINCE = 20
CUBIC = 0.044715


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from its last multiplication."""
    found = factors(node, site)
    if len(found.values) != 2:
        return None
    for x, other in (found.values, found.values[::-1]):
        added = site.maker(other, "Add")
        for value, number in () if added is None else beside_number(added, site):
            inner = factors_of(value, site)  # number·(1 + curve): the number may stand outside, or at both
            if added is None or len(inner.values) != 1 or not near(found.number * number, 0.5, x):
                continue
            if not near(inner.number, number, x):
                continue
            curve = inner.values[0]
            for way, parts in (("none", _erf(curve, x, site)), ("tanh", _tanh(curve, x, site))):
                if parts is None:
                    continue
                need_opset("Gelu", SINCE, site)
                need_narrow("Gelu", x)
                nodes = [*found.nodes, added, *inner.nodes, *parts]
                need_enclosed(nodes, node)
                return site.instead(node, site.make("Gelu", [x], approximate=way), f"{len(nodes)} nodes are a Gelu")
    return None


def _erf(value: ir.Value, x: ir.Value, site: Site) -> list[ir.Node] | None:
    erf = site.maker(value, "Erf")
    if erf is None:
        return None
    inner = factors_of(erf.inputs[0], site)
    return [erf, *inner.nodes] if inner.values == [x] and near(inner.number, math.sqrt(0.5), x) else None


def _tanh(value: ir.Value, x: ir.Value, site: Site) -> list[ir.Node] | None:
    tanh = site.maker(value, "Tanh")
    if tanh is None:
        return None
    inner = factors_of(tanh.inputs[0], site)
    if not near(inner.number, math.sqrt(2 / math.pi), x):
        return None
    outside = inner.values.count(x)  # x·(1 + c·x²), or x + c·x³
    rest = [item for item in inner.values if item is not x]
    added = site.maker(rest[0], "Add") if len(rest) == 1 and outside <= 1 else None
    if added is None:
        return None
    for first, second in operands(added):
        cube = factors_of(second, site)
        plain = site.scalar(first) == 1.0 if outside else first is x
        if plain and _is_power(cube, x, 3 - outside) and near(cube.number, CUBIC, x):
            return [tanh, *inner.nodes, added, *cube.nodes]
    return None


def _is_power(found: Factors, x: ir.Value, power: int) -> bool:
    return found.values == [x] * power
