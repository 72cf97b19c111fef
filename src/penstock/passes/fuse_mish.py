"""Make a Mish of x·tanh(softplus(x)). Mish needs opset 18. Source: Misra, Mish (2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import need_enclosed, need_narrow, need_opset, operands
from penstock.rewriting import Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("fuse-softplus",)
OPERATORS: tuple[str, ...] = ("Mul",)
SINCE = 18


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from its multiplication."""
    for x, other in operands(node):
        tanh = site.maker(other, "Tanh")
        inner = None if tanh is None else site.maker(tanh.inputs[0], "Softplus")
        if tanh is None or inner is None or inner.inputs[0] is not x:
            continue
        need_opset("Mish", SINCE, site)
        need_narrow("Mish", x)
        need_enclosed([tanh, inner], node)
        return site.instead(node, site.make("Mish", [x]), "Mul, Tanh and Softplus are a Mish")
    return None
