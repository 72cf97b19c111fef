"""Make a Swish of x·sigmoid(α·x), with α a number or left out. Swish needs opset 24, and gets no other.

ONNX Runtime 1.32 has no kernel for it and runs it by its function body, which it finds in models of opset 24 alone: in
those of 25 to 27 a Swish doesn't load.

Source: Ramachandran, Zoph and Le, Searching for Activation Functions (2017).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import factors_of, need_enclosed, need_narrow, need_opset, operands
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("Mul",)
SINCE = 24


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from its multiplication."""
    for x, other in operands(node):
        gate = site.maker(other, "Sigmoid")
        if gate is None:
            continue
        inner = factors_of(gate.inputs[0], site)
        plain = gate.inputs[0] is x
        if not plain and inner.values != [x]:
            continue
        need_opset("Swish", SINCE, site)
        if site.opset > SINCE:
            raise Refusal(f"ONNX Runtime runs no Swish in opset {site.opset}, only in {SINCE}")
        need_enclosed([gate, *([] if plain else inner.nodes)], node)
        need_narrow("Swish", x)
        alpha = None if plain or inner.number == 1.0 else inner.number
        return site.instead(node, site.make("Swish", [x], alpha=alpha), "Mul and Sigmoid are a Swish")
    return None
