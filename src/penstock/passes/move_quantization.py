"""Let operators that only move or choose elements work on the integers, where that takes a node away.

1. ``Q(op(DQ(x)))`` is ``op(x)`` for a Reshape, Flatten, Transpose, Squeeze, Unsqueeze, Expand, Tile, Slice, Gather,
   MaxPool or Concat, or several of them that nothing else reads, where all Q and DQ are alike, with one scale for the
   tensor. A MaxPool commutes with what rises: for scales above 0.
2. ``Q(op(y))`` where y is quantized alike anyway, before that, is ``op(Q(y))``.
   Not for int8 between a QuantizeLinear and a DequantizeLinear: on x86 ONNX Runtime (1.32) computes with signed
   integers only where these two stand next to each other (a small network became 3.8 times slower); unsigned ones
   don't mind.
3. ``op(DQ(constant))`` for a Reshape, Flatten, Squeeze, Unsqueeze or Slice is ``DQ(op(constant))``, so that the
   operator can be computed beforehand; the DequantizeLinear stays. Transposes do so by themselves (push-transposes).

1 and 2 remove a QuantizeLinear each and add none; 3 moves a DequantizeLinear down over one of the operators below it,
of which there are finitely many. So it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from penstock.passes import Phase
from penstock.passes._quantization import Quantization, quantization
from penstock.rewriting import Refusal, Rewrite
from penstock.rewriting.site import Site

if TYPE_CHECKING:
    import onnx_ir as ir

PHASE: Phase = "fuse"
AFTER: tuple[str, ...] = ("cancel-quantization-pairs",)
OPERATORS: tuple[str, ...] = ("QuantizeLinear", "DequantizeLinear")
_MOVING = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Tile", "Slice", "Gather")
_OF_WEIGHTS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice")
_TYPES = ("INT8", "UINT8", "INT16", "UINT16")  # that runtimes move
_POOLED = ("INT8", "UINT8")
_POOLS_INTEGERS = 12  # the opset from which on MaxPool takes them
MOST_STEPS = 64

Make = Callable[[], "ir.Value"]


def rewrite(node: ir.Node, site: Site) -> Rewrite | None:
    """Look above a QuantizeLinear, or below the DequantizeLinear of a constant."""
    if node.op_type == "DequantizeLinear":
        return _of_weight(node, site)
    if site.maker(node.inputs[0], *_MOVING, "MaxPool", "Concat") is None:
        return None
    budget = [MOST_STEPS]
    try:
        wanted = quantization(node, site)
    except Refusal:
        return None
    make = _on_integers(node.inputs[0], node, wanted, site, budget)
    if make is None:
        return None
    if not wanted.per_tensor:
        raise Refusal("it has a scale for each channel")
    if wanted.dtype.name not in _TYPES:
        raise Refusal(f"runtimes don't move elements of {wanted.dtype.name}")
    if reason := wanted.inexact():
        raise Refusal(reason)
    if wanted.dtype.name == "INT8" and _in_pairs(node, site):
        raise Refusal("onnxruntime wants a QuantizeLinear and a DequantizeLinear of int8 next to each other")
    return site.instead(node, make(), f"{MOST_STEPS - budget[0]} operators work on the integers")


def _on_integers(
    value: ir.Value | None, node: ir.Node, wanted: Quantization, site: Site, budget: list[int]
) -> Make | None:
    """Return how the quantized ``value`` is made without quantizing, ``None`` where it isn't. Raises ``Refusal``."""
    if value is None or budget[0] <= 0:
        return None
    source = site.maker(value, "DequantizeLinear")
    if source is not None and source.inputs[0] is not None:
        if reason := quantization(source, site).difference(wanted):
            raise Refusal(f"{reason} above and below what moves the elements")
        integers = source.inputs[0]
        return lambda: integers
    if (there := _quantized_already(value, node, wanted, site)) is not None:
        return lambda: there
    maker = site.maker(value, *_MOVING, "MaxPool", "Concat")
    if maker is None or maker.graph is not node.graph:
        return None
    pool = maker.op_type == "MaxPool"
    if pool and (len(maker.outputs) > 1 or wanted.dtype.name not in _POOLED or site.opset < _POOLS_INTEGERS):
        return None
    if pool and not (wanted.scale > 0).all():
        raise Refusal("a scale is not above 0, which turns the largest into the smallest")
    budget[0] -= 1
    data = list(maker.inputs) if maker.op_type == "Concat" else [maker.inputs[0]]
    made = [_on_integers(one, node, wanted, site, budget) for one in data]
    found = [make for make in made if make is not None]
    if len(found) != len(data):
        return None
    site.need_sole_reader(value, f"the result of {maker.op_type}")
    return lambda: site.copy(maker, [*(make() for make in found), *maker.inputs[len(data) :]])


def _in_pairs(node: ir.Node, site: Site) -> bool:
    """Whether the integers below, or those above what moves them, belong to a quantizing pair."""
    if any(use.node.op_type == "DequantizeLinear" for use in node.outputs[0].uses()):
        return True
    above = [node.inputs[0]]
    for value in above:
        maker = None if value is None else value.producer()
        if maker is None:
            continue
        if maker.op_type == "DequantizeLinear":
            if site.maker(maker.inputs[0], "QuantizeLinear") is not None:
                return True
        elif maker.op_type in (*_MOVING, "MaxPool", "Concat") and len(above) < MOST_STEPS:
            above.extend(maker.inputs if maker.op_type == "Concat" else maker.inputs[:1])
    return False


def _quantized_already(value: ir.Value, node: ir.Node, wanted: Quantization, site: Site) -> ir.Value | None:
    """Return what another QuantizeLinear makes of the value, if it is alike and comes first."""
    for use in value.uses():
        other = use.node
        if other is node or other.op_type != "QuantizeLinear" or other.domain != "" or use.idx != 0:
            continue
        if other.graph is not node.graph or site.first_of([other, node]) is not other:
            continue
        try:
            if not quantization(other, site).difference(wanted):
                return other.outputs[0]
        except Refusal:
            continue
    return None


def _of_weight(node: ir.Node, site: Site) -> Rewrite | None:
    data, result = node.inputs[0], node.outputs[0]
    if data is None or site.tensor(data) is None or not site.sole_reader(result):
        return None
    (use,) = result.uses()
    reader = use.node
    if reader.op_type not in _OF_WEIGHTS or reader.domain != "" or use.idx != 0 or reader.graph is not node.graph:
        return None
    if any(site.tensor(value) is None for value in reader.inputs[1:] if value is not None):
        return None
    if not site.sole_reader(data):
        raise Refusal("others read the quantized constant as well")
    if site.static(node.inputs[1]) not in ((), (1,)):
        raise Refusal("it has a scale for each channel")
    moved = site.copy(reader, [data, *reader.inputs[1:]])
    what = f"{reader.op_type} works on the quantized constant"
    return Rewrite({reader.outputs[0]: site.copy(node, [moved, *node.inputs[1:]])}, what, before=reader)
