"""The operators that can be written for another order of axes, one function for operators alike; see ``turned``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penstock.passes.fold_shapes import as_numbers
from penstock.rewriting import Refusal
from penstock.rewriting.orders import Order, keeps, reordered, within, without
from penstock.rewriting.site import Site, attribute
from penstock.rewriting.sizes import equal
from penstock.rewriting.turned import Build, Turned, turning_rule

if TYPE_CHECKING:
    import onnx_ir as ir

_ELEMENT_WISE = """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Elu Erf Exp
Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink
Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu""".split()  # noqa: SIM905  # a long list
_BROADCAST = """Add Sub Mul Div Pow Mod And Or Xor Max Min Sum Mean BitShift BitwiseAnd BitwiseOr BitwiseXor Equal
Greater Less GreaterOrEqual LessOrEqual Where PRelu""".split()  # noqa: SIM905
_REDUCE = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


def _like(node: ir.Node, order: Order, *, every_input: bool = False, **changed: Any) -> Turned:
    """Return the node with the same order everywhere, and some attributes changed."""
    count = len(node.inputs)
    inputs = (order,) * count if every_input else (order, *(None,) * (count - 1))
    return Turned(inputs, (order,) * len(node.outputs), lambda site, new: site.copy(node, new, **changed))


def _axis(node: ir.Node, order: Order, default: int | None = None, name: str = "axis") -> int:
    axis = attribute(node, name, default)
    if axis is None or not -len(order) <= axis < len(order):
        raise Refusal("the axis isn't known")
    return int(axis) % len(order)


def _one_output(node: ir.Node) -> bool:
    return not any(value.uses() or value.is_graph_output() for value in node.outputs[1:])


@turning_rule(*_ELEMENT_WISE)
def _element_wise(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    return _like(node, order)


@turning_rule(*_BROADCAST)
def _broadcast(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    rank = len(order)
    if site.rank(node.outputs[0]) != rank or site.opset < 7:  # before 7 an attribute said along which axes
        return None
    inputs: list[Order | None] = []
    for value in node.inputs:
        shape = site.shape(value)
        if shape is None or len(shape) > rank:
            return None
        padded = (1,) * (rank - len(shape)) + shape
        if keeps(padded, order):
            inputs.append(None)
        elif len(shape) == rank or site.tensor(value) is not None:
            inputs.append(order)
        else:
            return None
    return Turned(tuple(inputs), (order,), lambda site, new: site.copy(node, new))


@turning_rule("Concat")
def _concat(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    return _like(node, order, every_input=True, axis=order[_axis(node, order)])


@turning_rule("Split")
def _split(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    return _like(node, order, axis=order[_axis(node, order, 0)])


@turning_rule("TopK", "LpNormalization")
def _along_axis(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    return _like(node, order, axis=order[_axis(node, order, -1)])


@turning_rule("Softmax", "LogSoftmax", "Hardmax")
def _softmax(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    if site.opset >= 13:
        return _like(node, order, axis=order[_axis(node, order, -1)])
    last = len(order) - 1  # before 13 it took all axes from this one on together
    return _like(node, order) if _axis(node, order, 1) == last == order[last] else None


@turning_rule("CumSum")
def _cumsum(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    axis = site.array(node.inputs[1])
    if axis is None or axis.size != 1:
        return None
    new_axis = axis * 0 + order[int(axis.reshape(-1)[0])]
    build: Build = lambda site, new: site.copy(node, [new[0], site.constant(new_axis)])  # noqa: E731
    return Turned((order, None), (order,), build)


@turning_rule(*(f"Reduce{kind}" for kind in _REDUCE))
def _reduce(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    rank = site.rank(node.inputs[0])
    given = len(node.inputs) > 1 and node.inputs[1] is not None
    axes = site.ints(node.inputs[1]) if given else attribute(node, "axes")
    if rank is None or (given and axes is None):
        return None
    if not axes and attribute(node, "noop_with_empty_axes", 0):
        return _like(node, order)
    gone = {axis % rank for axis in axes or range(rank)}
    whole, rest = _both(order, gone, of_output, bool(attribute(node, "keepdims", 1)))
    places = sorted(whole[axis] for axis in gone)

    def build(site: Site, new: list[ir.Value | None]) -> ir.Value:
        if given:
            return site.copy(node, [new[0], site.int64s(places)])
        return site.copy(node, new, axes=places if axes else None)

    return Turned((whole, *(None,) * (len(node.inputs) - 1)), (rest,), build)


def _both(order: Order, gone: set[int], of_smaller: bool, keeps_rank: bool = False) -> tuple[Order, Order]:
    """Return the orders with and without some axes, given one of them."""
    if keeps_rank:
        return order, order
    return (within(order, gone), order) if of_smaller else (order, without(order, gone))


@turning_rule("ArgMax", "ArgMin")
def _arg(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    rank = site.rank(node.inputs[0])
    if rank is None:
        return None
    gone = {int(attribute(node, "axis", 0)) % rank}
    whole, rest = _both(order, gone, of_output, bool(attribute(node, "keepdims", 1)))
    (axis,) = (whole[axis] for axis in gone)
    return Turned((whole,), (rest,), lambda site, new: site.copy(node, new, axis=axis))


@turning_rule("Gather")
def _gather(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    rank, picked = site.rank(node.inputs[0]), site.rank(node.inputs[1])
    if rank is None or picked not in (0, 1):
        return None
    axis = int(attribute(node, "axis", 0)) % rank
    whole, rest = _both(order, {axis}, of_output, keeps_rank=picked == 1)
    return Turned((whole, None), (rest,), lambda site, new: site.copy(node, new, axis=whole[axis]))


@turning_rule("Squeeze", "Unsqueeze")
def _squeeze(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    larger = node.inputs[0] if node.op_type == "Squeeze" else node.outputs[0]
    shape = site.shape(larger)
    axes = attribute(node, "axes") or (site.ints(node.inputs[1]) if len(node.inputs) > 1 else None)
    if shape is None or not axes:
        return None
    new = {int(axis) % len(shape) for axis in axes}
    whole, rest = _both(order, new, of_output == (larger is node.inputs[0]))
    places = sorted(whole[axis] for axis in new)
    first, last = (whole, rest) if larger is node.inputs[0] else (rest, whole)

    def build(site: Site, inputs: list[ir.Value | None]) -> ir.Value:
        assert inputs[0] is not None
        return site.with_axes(node.op_type, inputs[0], places)

    return Turned((first, *(None,) * (len(node.inputs) - 1)), (last,), build)


@turning_rule("Reshape", "Flatten")
def _reshape(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    """A Reshape that only puts in and takes out axes of size 1."""
    start, end = site.shape(node.inputs[0]), site.shape(node.outputs[0])
    if start is None or end is None or 0 in (*start, *end) or site.opset < 5:
        return None
    first, last = ([axis for axis, size in enumerate(shape) if size != 1] for shape in (start, end))
    if len(first) != len(last) or not all(equal(start[a], end[b]) for a, b in zip(first, last, strict=True)):
        return None
    mine, other, rank = (last, first, len(start)) if of_output else (first, last, len(end))
    moved = [order[axis] for axis in mine]
    answer = list(range(rank))
    for axis, place in zip(other, moved, strict=True):
        answer[axis] = other[sorted(moved).index(place)]
    before, behind = (tuple(answer), order) if of_output else (order, tuple(answer))
    target = as_numbers(tuple(reordered(end, behind)), tuple(reordered(start, before)))
    build: Build = lambda site, new: site.make("Reshape", [new[0], site.int64s(target)])  # noqa: E731
    return Turned((before, *(None,) * (len(node.inputs) - 1)), (behind,), build)


@turning_rule("Pad")
def _pad(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    rank = len(order)
    given = len(node.inputs) > 1
    pads = site.ints(node.inputs[1]) if given else attribute(node, "pads")
    axes: Sequence[int] | None = range(rank)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = site.ints(node.inputs[3])
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return None
    ends = [[0] * rank, [0] * rank]
    for place, axis in enumerate(axes):
        for end in (0, 1):
            ends[end][order[axis % rank]] = int(pads[place + end * len(axes)])
    flat = [*ends[0], *ends[1]]

    def build(site: Site, new: list[ir.Value | None]) -> ir.Value:
        return site.copy(node, [new[0], site.int64s(flat), *new[2:3]]) if given else site.copy(node, new, pads=flat)

    return Turned((order, *(None,) * (len(node.inputs) - 1)), (order,), build)


@turning_rule("Slice")
def _slice(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    import numpy as np

    if len(node.inputs) == 1:
        axes = attribute(node, "axes") or range(len(attribute(node, "starts") or ()))
        return _like(node, order, axes=[order[axis] for axis in axes])
    starts = node.inputs[1]
    count = site.static(starts)
    known = site.ints(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    if starts is None or count is None or len(count) != 1 or (known is None and len(node.inputs) > 3):
        return None
    kind = starts.dtype or (tensor.dtype if (tensor := site.tensor(starts)) is not None else None)
    if kind is None:
        return None
    places = np.array([order[axis] for axis in known or range(count[0])], dtype=kind.numpy())
    build: Build = lambda site, new: site.copy(node, [*new[:3], site.constant(places), *new[4:]])  # noqa: E731
    return Turned((order, *(None,) * (len(node.inputs) - 1)), (order,), build)


@turning_rule("Tile", "Expand")
def _repeat(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    counts = site.ints(node.inputs[1])
    if counts is None or len(counts) != len(order) or site.rank(node.inputs[0]) != len(order) or site.opset < 6:
        return None
    new_counts = reordered(counts, order)
    build: Build = lambda site, new: site.copy(node, [new[0], site.int64s(new_counts)])  # noqa: E731
    return Turned((order, None), (order,), build)


@turning_rule("QuantizeLinear", "DequantizeLinear")
def _quantize(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    scale = site.static(node.inputs[1])
    if scale is None or len(scale) > 1 or attribute(node, "block_size", 0):
        return None
    if scale in ((), (1,)):  # one number for the whole tensor
        return _like(node, order)
    return _like(node, order, axis=order[_axis(node, order, 1)])


@turning_rule("BatchNormalization", "LRN")
def _by_channel(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    fits = order[1] == 1 and _one_output(node) and not attribute(node, "training_mode", 0) and site.opset >= 7
    if node.op_type == "BatchNormalization" and not attribute(node, "spatial", 1):
        return None  # until opset 8 there may be a scale for each element
    return _like(node, order) if fits else None


@turning_rule("InstanceNormalization", "GroupNormalization", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _by_image(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    return _like(node, order) if order[:2] == (0, 1) and site.opset >= 7 else None


@turning_rule("MaxPool", "AveragePool", "LpPool")
def _pool(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    if order[:2] != (0, 1) or not _one_output(node):
        return None
    inner = tuple(place - 2 for place in order[2:])
    changed: dict[str, Any] = {}
    for name in ("kernel_shape", "strides", "dilations"):
        if (numbers := attribute(node, name)) is not None:
            changed[name] = reordered(numbers, inner)
    if (pads := attribute(node, "pads")) is not None:
        changed["pads"] = [*reordered(pads[: len(inner)], inner), *reordered(pads[len(inner) :], inner)]
    return _like(node, order, **changed)


@turning_rule("LayerNormalization", "RMSNormalization")
def _last_axes(node: ir.Node, site: Site, order: Order, of_output: bool) -> Turned | None:
    axis = _axis(node, order, -1)
    for value in node.inputs[1:]:
        rank = site.rank(value)
        if value is not None and (rank is None or rank > len(order) - axis):
            return None
    fits = _one_output(node) and order[axis:] == tuple(range(axis, len(order)))
    return _like(node, order) if fits else None
