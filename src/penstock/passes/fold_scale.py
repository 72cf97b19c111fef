"""Fold the number that scores of an attention are multiplied with into the weights that make the queries or keys.

1. s·(A·B) is (s·A)·B. Where A or B comes from a Gemm, a Conv, or a MatMul with weights, with nothing in between but
   nodes that move elements (Reshape, Transpose, Squeeze, Unsqueeze, Flatten) and an Add of a constant, s goes into its
   weights and its bias, computed in float64.
2. All that is read elsewhere as well stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import beside_number
from penstock.passes._linear import OPERATORS as LINEAR
from penstock.passes._linear import channels_of, folded, numbers, rounded
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fold"
AFTER: tuple[str, ...] = ("fold-affine",)
OPERATORS: tuple[str, ...] = ("Mul", "Div")
_MOVING = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")
LONGEST = 6


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from the multiplication after the product."""
    for value, number in beside_number(node, site):
        product = site.maker(value, "MatMul")
        if product is None or any(site.tensor(factor) is not None for factor in product.inputs):
            return None  # ``fold-affine`` knows what to do with weights
        if not number or not site.sole_reader(value):
            return None
        scale = number if node.op_type == "Mul" else 1.0 / number
        for place in (0, 1):
            made = _scaled(product.inputs[place], scale, site, LONGEST)
            if made is not None:
                inputs = [made if i == place else one for i, one in enumerate(product.inputs)]
                return site.instead(node, site.copy(product, inputs), f"{node.op_type} folded into the weights before")
        raise Refusal("neither factor of the product comes from weights that nothing else uses")
    return None


def _scaled(value: ir.Value | None, scale: float, site: Site, left: int) -> ir.Value | None:
    """Return the value times a number, or ``None`` where no weights take it."""
    import numpy as np

    maker = site.maker(value, *LINEAR, *_MOVING, "Add")
    if maker is None or value is None or not left or not site.sole_reader(value):
        return None
    if maker.op_type in LINEAR:
        if site.tensor(maker.inputs[1]) is None:
            return None
        try:
            count = channels_of(maker, site)
            return folded(maker, np.full(count, scale), np.zeros(count), site)
        except Refusal:
            return None
    if maker.op_type in _MOVING:
        inner = _scaled(maker.inputs[0], scale, site, left - 1)
        return None if inner is None else site.copy(maker, [inner, *maker.inputs[1:]])
    place = next((i for i in (0, 1) if site.tensor(maker.inputs[1 - i]) is not None), None)
    tensor = None if place is None else site.tensor(maker.inputs[1 - place])
    inner = None if place is None else _scaled(maker.inputs[place], scale, site, left - 1)
    if place is None or tensor is None or inner is None:
        return None
    bias = rounded(numbers(maker.inputs[1 - place], "the bias", site) * scale, tensor.dtype, "bias")
    return site.make("Add", [inner, site.constant(bias, tensor.dtype)])
