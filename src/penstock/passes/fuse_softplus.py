"""Make a Softplus of log(exp(x) + 1).

Where exp(x) overflows, the decomposed form is infinite and Softplus isn't: it gives x, which is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import beside_number, need_enclosed, need_narrow
from penstock.rewriting import Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ()
OPERATORS: tuple[str, ...] = ("Log",)


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from its logarithm."""
    added = site.maker(node.inputs[0], "Add")
    for value, number in () if added is None else beside_number(added, site):
        power = site.maker(value, "Exp")
        if added is None or power is None or power.inputs[0] is None or number != 1.0:
            continue
        need_narrow("Softplus", power.inputs[0], added.inputs[0], added.inputs[1])
        need_enclosed([added, power], node)
        return site.instead(node, site.make("Softplus", [power.inputs[0]]), "Exp, Add and Log are a Softplus")
    return None
