"""Recognise what normalizations are made of: means, mean squares, and the division by a root."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.passes._expressions import beside_number, operands
from penstock.rewriting import Refusal
from penstock.rewriting.site import Site, attribute

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of a value over its last axes, from ``axis`` (negative) on, kept as axes of size 1."""

    of: ir.Value
    axis: int
    node: ir.Node


@dataclass(frozen=True, slots=True)
class Normalized:
    """``over``·``weight`` / sqrt(mean(``squared``²) + ``epsilon``), the mean over the axes from ``axis`` on."""

    over: ir.Value
    weight: ir.Value | None
    squared: ir.Value
    axis: int
    epsilon: float
    nodes: tuple[ir.Node, ...]


def mean(value: ir.Value | None, site: Site) -> Mean | None:
    """Recognise a ReduceMean over the last axes."""
    node = site.maker(value, "ReduceMean")
    if node is None or node.inputs[0] is None or not attribute(node, "keepdims", 1):
        return None
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1:
        axes = site.ints(node.inputs[1])
    rank = site.rank(node.inputs[0])
    if not axes or rank is None:
        return None
    places = sorted(int(axis) % rank for axis in axes)
    if places != list(range(rank - len(places), rank)):
        return None
    return Mean(node.inputs[0], -len(places), node)


def square(value: ir.Value | None, site: Site) -> tuple[ir.Value, ir.Node] | None:
    """Recognise x·x, or x to the power of 2."""
    node = site.maker(value, "Mul", "Pow")
    if node is None or node.inputs[0] is None:
        return None
    if node.op_type == "Mul":
        return (node.inputs[0], node) if node.inputs[0] is node.inputs[1] else None
    return (node.inputs[0], node) if site.scalar(node.inputs[1]) == 2.0 else None


def normalized(node: ir.Node, site: Site) -> Iterator[Normalized]:
    """Yield the ways in which a Div or Mul divides by the root of a mean of squares.

    1. x / sqrt(…); x·(1 / sqrt(…)); x·(w / sqrt(…)); x·((1 / sqrt(…))·w); powers of 0.5 and −0.5 for the roots.
    """
    ways: list[tuple[ir.Value | None, ir.Value | None, Root]] = []
    if node.op_type == "Div":
        ways += [(node.inputs[0], None, root) for root in _root(node.inputs[1], site)]
    else:
        ways += [(over, *found) for over, factor in operands(node) for found in _inverse_root(factor, site)]
    for over, weight, (inner, nodes) in ways:
        added = site.maker(inner, "Add")
        for value, epsilon in () if added is None else beside_number(added, site):
            average = mean(value, site)
            squared = None if average is None else square(average.of, site)
            if over is None or average is None or squared is None or added is None:
                continue
            parts = (*nodes, added, average.node, squared[1])
            yield Normalized(over, weight, squared[0], average.axis, epsilon, parts)


Root = tuple["ir.Value | None", tuple["ir.Node", ...]]


def _root(value: ir.Value | None, site: Site, power: float = 0.5) -> Iterator[Root]:
    """Yield x where the value is sqrt(x), or x to the power of ±0.5."""
    node = site.maker(value, "Sqrt", "Pow")
    if node is None:
        return
    if (node.op_type == "Sqrt" and power > 0) or (node.op_type == "Pow" and site.scalar(node.inputs[1]) == power):
        yield node.inputs[0], (node,)


def _inverse_root(value: ir.Value | None, site: Site, inside: bool = False) -> Iterator[tuple[ir.Value | None, Root]]:
    """Yield (w, x) where the value is w / sqrt(x)."""
    for root in _root(value, site, -0.5):
        yield None, root
    node = site.maker(value, "Reciprocal", "Div", "Mul")
    if node is None:
        return
    if node.op_type == "Reciprocal":
        for inner, nodes in _root(node.inputs[0], site):
            yield None, (inner, (*nodes, node))
    elif node.op_type == "Div":
        one = site.scalar(node.inputs[0]) == 1.0
        for inner, nodes in _root(node.inputs[1], site):
            yield (None if one else node.inputs[0]), (inner, (*nodes, node))
    elif not inside:
        for factor, weight in operands(node):
            for none, (inner, nodes) in _inverse_root(factor, site, inside=True):
                if none is None:
                    yield weight, (inner, (*nodes, node))


def weights(value: ir.Value | None, like: ir.Value, axis: int, what: str, site: Site) -> ir.Value:
    """Return a scale or bias in the shape of the normalized axes; ``None`` stands for ones. Raises ``Refusal``."""
    import numpy as np

    shape = site.shape(like)
    wanted = None if shape is None else tuple(size for size in shape[axis:] if isinstance(size, int))
    if wanted is None or len(wanted) != -axis or like.dtype is None:
        raise Refusal("the size of the normalized axes isn't known")
    if value is None:
        return site.constant(np.ones(wanted, dtype=like.dtype.numpy()), like.dtype)
    tensor, own = site.tensor(value), site.static(value)
    if own == wanted:
        return value
    if tensor is None or own is None or shape is None or len(own) > len(shape):
        raise Refusal(f"the shape of the {what} isn't that of the normalized axes")
    array = tensor.numpy()
    while array.ndim > len(wanted) and array.shape[0] == 1:
        array = array[0]
    try:
        return site.constant(np.broadcast_to(array, wanted).copy(), tensor.dtype)
    except ValueError:
        raise Refusal(f"the {what} isn't one number for each place of the normalized axes") from None


def is_beside(value: ir.Value, axis: int, other: ir.Value, site: Site) -> bool:
    """Whether a factor or summand lies along the normalized axes alone: constant, or of their shape."""
    own, shape = site.static(other), site.shape(value)
    if own is None or shape is None or len(own) > len(shape):
        return False
    while len(own) > -axis and own[0] == 1 and site.tensor(other) is not None:
        own = own[1:]
    return len(own) <= -axis and all(
        size == wanted or (size == 1 and site.tensor(other) is not None)
        for size, wanted in zip(reversed(own), reversed(shape), strict=False)
    )
