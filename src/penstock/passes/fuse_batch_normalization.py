"""Make a BatchNormalization of multiplication and addition with constants, one number for each channel, in a row.

``((x − m)·s)·γ + β`` is a·x + d with a = s·γ and d = β − a·m, per channel: a BatchNormalization with scale a, bias d,
mean 0, variance 1 and epsilon 0. Exporters write one out in this way where they decompose it.

1. Two Mul, Div, Add, Sub or Neg in a row, or more, nobody else reading what lies between; at least one of the constants
   has a number for each channel, along axis 1, and x has that many channels.
2. What a linear operator beside them takes in is left to ``fold-affine``.
3. x − m first takes what x has in common with m away without rounding, a·x + d doesn't. Where m is more than a thousand
   times what the next step divides by, it stays.
4. The scale and bias of a group normalization, which is spelt out around an InstanceNormalization, stay what they are.
5. From opset 9 on: before that the operator has attributes that say more.

The numbers are computed in float64 and rounded once. Source: Ioffe and Szegedy, Batch Normalization (2015), 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._expressions import FLOATS
from penstock.passes._linear import MOST_AWAY, beside_constant, per_channel, rounded, step
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.passes._linear import Array

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("fuse-group-normalization", "fuse-layer-normalization", "fuse-rms-normalization")
OPERATORS: tuple[str, ...] = ("Mul", "Div", "Add", "Sub", "Neg")
SINCE = 9


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Recognise it from the last of them."""
    shape, x = site.shape(node.outputs[0]), node.outputs[0]
    if site.opset < SINCE or shape is None or len(shape) < 2 or not _is_step(node, site) or _goes_on(node, site):
        return None
    nodes: list[ir.Node] = []
    maker: ir.Node | None = node
    while maker is not None and _is_step(maker, site):
        nodes.insert(0, maker)
        value = maker.inputs[beside_constant(maker, site) or 0]
        assert value is not None  # it is a step
        x, maker = value, site.maker(value, *OPERATORS) if site.sole_reader(value) else None
        if maker is not None and maker.graph is not node.graph:
            break
    if len(nodes) < 2 or all(_size(one, site) == 1 for one in nodes):
        return None
    if x.dtype is None or x.dtype.name not in FLOATS:
        return None
    above = site.maker(x, "Reshape")
    if above is not None and site.maker(above.inputs[0], "InstanceNormalization") is not None:
        raise Refusal("it is the scale and bias of a group normalization, see fuse-group-normalization")
    slope, offset = _together(nodes, len(shape), site)
    parts = {"scale": slope, "bias": offset, "mean": slope * 0.0, "variance": slope * 0.0 + 1.0}
    held = [site.constant(rounded(part, x.dtype, what), x.dtype) for what, part in parts.items()]
    made = site.make("BatchNormalization", [x, *held], epsilon=0.0)
    return site.instead(node, made, f"{len(nodes)} nodes are a BatchNormalization")


def _is_step(node: ir.Node, site: Site) -> bool:
    """Whether a node is slope·x + offset for each channel, and no larger than x."""
    place = beside_constant(node, site)
    if node.domain != "" or node.op_type not in OPERATORS or place is None or (node.op_type == "Div" and place):
        return False
    shape, made = site.shape(node.inputs[place]), site.shape(node.outputs[0])
    if shape is None or made is None or len(shape) != len(made) or len(shape) < 2:
        return False
    count = shape[1]
    if not isinstance(count, int) or count < 2 or made[1] != count:
        return False
    return node.op_type == "Neg" or per_channel(node.inputs[1 - place], count, len(shape), site) is not None


def _goes_on(node: ir.Node, site: Site) -> bool:
    """Whether another step alone reads this one: then the last of them is to come."""
    value = node.outputs[0]
    if not site.sole_reader(value):
        return False
    (use,) = value.uses()
    after = use.node
    return after.graph is node.graph and _is_step(after, site) and beside_constant(after, site) == use.idx


def _size(node: ir.Node, site: Site) -> int:
    tensor = None if node.op_type == "Neg" else site.tensor(node.inputs[1 - (beside_constant(node, site) or 0)])
    return 1 if tensor is None else tensor.size


def _together(nodes: list[ir.Node], rank: int, site: Site) -> tuple[Array, Array]:
    """Return slope and offset of all steps, ``(count,)`` each. Raises ``Refusal`` where digits would be missing."""
    import numpy as np

    shape = site.shape(nodes[0].outputs[0])
    assert shape is not None and isinstance(shape[1], int)  # it is a step
    count = shape[1]
    slope, offset = np.ones(count), np.zeros(count)
    for node in nodes:
        found = step(node, beside_constant(node, site) or 0, count, rank, 1, site)
        if found is None:
            raise Refusal("it divides by zero")
        times, plus = found
        if (np.abs(times * offset) > MOST_AWAY).any():
            raise Refusal("what is subtracted first is so large that digits of the difference would be missing")
        slope, offset = slope * times, offset * times + plus
    return slope, offset
