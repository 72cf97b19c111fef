"""Remove a QuantizeLinear that undoes the DequantizeLinear before it.

1. ``Q(DQ(x))`` is x where both have the same type, constant scales, zero points and axis, and where rounding to the
   scale's type keeps every integer (:mod:`penstock.passes._quantization`).
2. ``DQ(Q(x))`` is never removed: it rounds, it is the quantization.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._quantization import quantization
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("QuantizeLinear",)


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Let readers of the quantized value read the integers that it was made of."""
    before = site.maker(node.inputs[0], "DequantizeLinear")
    if before is None or before.inputs[0] is None:
        return None
    first, second = quantization(before, site), quantization(node, site)
    if reason := first.difference(second) or first.inexact():
        raise Refusal(reason)
    return site.instead(node, before.inputs[0], "DequantizeLinear and QuantizeLinear cancel")
