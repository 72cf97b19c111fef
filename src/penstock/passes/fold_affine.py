"""Fold multiplication and addition with constants, one number for each channel, into the linear operator before them.

1. Conv, ConvTranspose, Gemm or MatMul, then Mul or Div by a constant: the weights and the bias take it in.
2. Then Add or Sub of a constant: the bias takes it in. A MatMul has no bias: see ``fuse-gemm``.
3. ``c − x`` is (−1)·x + c. ``c / x`` isn't linear.
4. Neg is (−1)·x.
5. The constant has to be one number, or one for each channel along the operator's axis of channels, and must not make
   the result larger by broadcasting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._linear import OPERATORS as LINEAR
from penstock.passes._linear import channels_of, folded, linear_before, per_channel
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fold"
AFTER: tuple[str, ...] = ("fold-batchnorm",)
OPERATORS: tuple[str, ...] = ("Mul", "Div", "Add", "Sub", "Neg")


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Fold one of them."""
    import numpy as np

    if node.op_type == "Neg":
        return _negated(node, site)
    place = next((i for i in (0, 1) if site.maker(node.inputs[i], *LINEAR)), None)
    if place is None or site.tensor(node.inputs[1 - place]) is None:
        return None
    op, value, constant = node.op_type, node.inputs[place], node.inputs[1 - place]
    linear = linear_before(value, site)
    if linear.op_type == "MatMul" and op in ("Add", "Sub"):
        return None
    rank = site.rank(value)
    if rank is None:
        raise Refusal("the rank of the linear operator's output isn't known")
    axis = rank - 1 if linear.op_type == "MatMul" else 1
    count = channels_of(linear, site)
    numbers = per_channel(constant, count, rank, site, axis)
    if numbers is None:  # one number for each channel can't enlarge the output, whatever its sizes are
        raise Refusal("the constant isn't one number for each channel")
    one, none = np.ones(count), np.zeros(count)
    if op == "Add":
        slope, offset = one, numbers
    elif op == "Sub":
        slope, offset = (one, -numbers) if place == 0 else (-one, numbers)
    elif op == "Mul":
        slope, offset = numbers, none
    elif place == 0 and numbers.all():
        slope, offset = 1.0 / numbers, none
    else:
        return None
    return site.instead(node, folded(linear, slope, offset, site), f"{op} folded into {linear.op_type}")


def _negated(node: ir.Node, site: Site) -> Rewrite | None:
    import numpy as np

    if site.maker(node.inputs[0], *LINEAR) is None:
        return None
    linear = linear_before(node.inputs[0], site)
    count = channels_of(linear, site)
    return site.instead(
        node, folded(linear, -np.ones(count), np.zeros(count), site), f"Neg folded into {linear.op_type}"
    )
