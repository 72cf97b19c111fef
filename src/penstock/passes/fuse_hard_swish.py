"""Make a HardSwish of x·HardSigmoid(x) with α = 1/6 and β = ½, which ``fuse-hard-sigmoid`` makes of the other forms.

HardSwish needs opset 14. Source: Howard et al., Searching for MobileNetV3 (2019).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import near, need_enclosed, need_narrow, need_opset, operands
from penstock.rewriting import Rewrite
from penstock.rewriting.site import Site, attribute

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("fuse-hard-sigmoid",)
OPERATORS: tuple[str, ...] = ("Mul",)
SINCE = 14


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from its multiplication."""
    for x, other in operands(node):
        gate = site.maker(other, "HardSigmoid")
        if gate is None or gate.inputs[0] is not x:
            continue
        if not near(attribute(gate, "alpha", 0.2), 1 / 6, x) or not near(attribute(gate, "beta", 0.5), 0.5, x):
            continue
        need_opset("HardSwish", SINCE, site)
        need_narrow("HardSwish", x)
        need_enclosed([gate], node)
        return site.instead(node, site.make("HardSwish", [x]), "Mul and HardSigmoid are a HardSwish")
    return None
