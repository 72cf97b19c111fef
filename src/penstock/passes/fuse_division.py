"""Make a Div of a multiplication with a Reciprocal: ``a·(1/b)`` is ``a/b``.

The Reciprocal has to go with it, and the type to be a floating-point one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import is_float, operands
from penstock.rewriting import Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("fuse-layer-normalization", "fuse-rms-normalization")
OPERATORS: tuple[str, ...] = ("Mul",)


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from its multiplication."""
    for value, other in operands(node):
        inverse = site.maker(other, "Reciprocal")
        if inverse is None or not is_float(value) or not site.sole_reader(other):
            continue
        return site.instead(node, site.make("Div", [value, inverse.inputs[0]]), "Mul and Reciprocal are a Div")
    return None
