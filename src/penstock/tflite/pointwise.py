"""Rules for what goes element by element, and for softmax, means and the like along axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from penstock.tflite.flatfile import TYPES, Grid, Tensor
from penstock.tflite.held import ACTIVATIONS, LAST, WHOLE
from penstock.tflite.net import FLOAT, INT8
from penstock.tflite.place import Place

# what the kernels on integers make, whatever is asked for: (scale, zero point)
TOPS = {"RELU": np.inf, "RELU6": 6.0}
FIXED = {"LOGISTIC": (1 / 256, -128), "SOFTMAX": (1 / 256, -128), "TANH": (1 / 128, 0)}


def unary(form: str, *, integers: bool = True) -> Callable[[Place], None]:
    """Return the rule of an operator with one input and no options."""

    def rule(place: Place) -> None:
        sink = place.sink()
        whole = integers and place.on_integers(sink, [0])
        last = place.held(0).last
        data = place.tensor(0, whole=whole, last=last)
        _need_numbers(place, data, whole)
        if whole and form in TOPS and _kept_by(data.grid, TOPS[form]):
            place.pass_on(sink, data, last=last)
            return
        grid = Grid(np.array([FIXED[form][0]], np.float32), np.array([FIXED[form][1]])) if form in FIXED else None
        target = place.result(sink, data.shape, whole=whole, last=last, grid=grid if whole else None)
        place.net.add(form, (data,), target, 2 if whole and form != "HARD_SWISH" else 1)
        place.finish(sink, whole=whole)

    return rule


def _kept_by(grid: Grid | None, top: float) -> bool:
    """Whether nothing on a grid lies below 0 or above ``top``."""
    if grid is None:
        return False
    low, high = (float(grid.scale[0]) * (end - int(grid.zero_point[0])) for end in (-128, 127))
    return low >= 0 and high <= top


def binary(form: str, *, fuses: bool = True, integers: bool = True) -> Callable[[Place], None]:
    """Return the rule of an operator on two tensors, which are broadcast against each other."""

    def rule(place: Place) -> None:
        place.need(len(place.node.inputs) == 2, f"it has {len(place.node.inputs)} inputs")
        sink = place.sink(fuse=fuses)
        whole = integers and place.on_integers(sink, [0, 1], constants=True)
        first, second, last = operands(place, whole)
        _need_numbers(place, first, whole or form in ("MAXIMUM", "MINIMUM"))
        shape = tuple(place.made[axis] for axis in LAST) if last else place.made
        if form in ("MAXIMUM", "MINIMUM") and whole:  # both have to be on the grid of the result
            assert sink.quantize is not None
            grid = place.lowering.grid(sink.quantize)
            first, second = place.net.on(first, grid), place.net.on(second, grid)
        target = place.result(sink, shape, whole=whole, last=last)
        options = {"activation": ACTIVATIONS[sink.activation]} if fuses else {}
        place.net.add(form, (first, second), target, 2 if whole else 1, **options)

    return rule


def _need_numbers(place: Place, data: Tensor, whole: bool) -> None:
    """Refuse to compute on narrow integers that stand for themselves: the kernels want a scale of them, or abort."""
    fine = whole or data.dtype in (FLOAT, np.dtype(np.int32), np.dtype(np.int64))
    place.need(fine, f"it computes on {data.dtype}, which has to have a scale there")


def operands(place: Place, whole: bool) -> tuple[Tensor, Tensor, bool]:
    """Return two tensors in one order of axes, and whether that has channels last."""
    rank = len(place.made)
    held = [None if place.constant(index) else place.held(index) for index in (0, 1)]
    last = rank == 4 and any(one is not None and one.last for one in held)
    found = []
    for index, one in enumerate(held):
        if one is None:
            found.append(_constant(place, index, whole, last))
            continue
        if last and len(one.tensor.shape) < 4:
            plain = place.tensor(index, whole=whole, last=False)
            wide = place.net.reshaped(plain, (1,) * (4 - len(plain.shape)) + plain.shape)
            found.append(place.net.transposed(wide, LAST))
        else:
            found.append(place.tensor(index, whole=whole, last=last))
    return found[0], found[1], last


def _constant(place: Place, index: int, whole: bool, last: bool) -> Tensor:
    if whole:
        return place.tensor(index, whole=True, last=last)
    array = place.array(index)
    place.need(array.dtype in (np.float32, np.int32, np.int64), f"it reads a constant of {array.dtype}")
    if last:
        array = array.reshape((1,) * (4 - array.ndim) + array.shape).transpose(LAST)
    return place.net.constant(str(place.value(index).name), array)


def clip(place: Place) -> None:
    """Clip → RELU, RELU6, or MINIMUM and MAXIMUM."""
    bounds = place.bounds()
    if bounds in ((0.0, np.inf), (0.0, 6.0)):
        unary("RELU" if bounds[1] == np.inf else "RELU6")(place)
        return
    last = place.held(0).last
    data = place.tensor(0, whole=False, last=last)
    sink = place.sink()
    target = place.result(sink, data.shape, whole=False, last=last)
    steps = [(form, bound) for form, bound in zip(("MAXIMUM", "MINIMUM"), bounds, strict=True) if np.isfinite(bound)]
    place.need(bool(steps), "it clips nothing")
    for number, (form, bound) in enumerate(steps):
        end = number == len(steps) - 1
        made = target if end else place.net.tensor(f"{target.name}/clipped", data.shape, FLOAT)
        data = place.net.add(form, (data, place.net.constant("bound", np.array([bound], np.float32))), made)


def leaky_relu(place: Place) -> None:
    """LeakyRelu → LEAKY_RELU."""
    sink = place.sink()
    whole = place.on_integers(sink, [0])
    last = place.held(0).last
    data = place.tensor(0, whole=whole, last=last)
    target = place.result(sink, data.shape, whole=whole, last=last)
    alpha = place.node.attributes.get_float("alpha", 0.01)
    place.net.add("LEAKY_RELU", (data,), target, 2 if whole else 1, alpha=alpha)


def prelu(place: Place) -> None:
    """PRelu → PRELU, in float."""
    sink = place.sink()
    last = place.held(0).last
    data = place.tensor(0, whole=False, last=last)
    slope = place.array(1, "its slope")
    if last:
        slope = slope.reshape((1,) * (4 - slope.ndim) + slope.shape).transpose(LAST)[0]
    target = place.result(sink, data.shape, whole=False, last=last)
    place.net.add("PRELU", (data, place.net.constant(str(place.value(1).name), slope)), target)


def hard_sigmoid(place: Place) -> None:
    """HardSigmoid → a MUL, an ADD with RELU6 and a MUL, in float; with slope 1/6 and offset 1/2 alone."""
    attributes = place.node.attributes
    slope, offset = attributes.get_float("alpha", 0.2), attributes.get_float("beta", 0.5)
    sink = place.sink()
    last = place.held(0).last
    data = place.tensor(0, whole=False, last=last)
    net, name = place.net, place.node.name
    target = place.result(sink, data.shape, whole=False, last=last)
    # 6·clip(slope·x + offset, 0, 1) = relu6(6·slope·x + 6·offset)
    scaled = net.tensor(f"{name}/scaled", data.shape, FLOAT)
    net.add("MUL", (data, net.constant("slope", np.array([6 * slope], np.float32))), scaled, activation=0)
    moved = net.tensor(f"{name}/moved", data.shape, FLOAT)
    net.add("ADD", (scaled, net.constant("offset", np.array([6 * offset], np.float32))), moved, activation=3)
    net.add("MUL", (moved, net.constant("sixth", np.array([1 / 6], np.float32))), target, activation=0)


def softmax(place: Place) -> None:
    """Softmax → SOFTMAX, which goes along the last axis."""
    held, rank = place.held(0), len(place.made)
    opset = place.lowering.known.opset
    axis = place.node.attributes.get_int("axis", -1 if opset >= 13 else 1) % rank
    if opset < 13 and axis != rank - 1:  # it goes over all axes from this one on
        place.need(all(size == 1 for size in place.made[axis + 1 :]), "it goes over several axes")
    sink = place.sink()
    whole = place.on_integers(sink, [0])
    last = held.last
    order = LAST if last else tuple(range(rank))
    data = place.tensor(0, whole=whole, last=last)
    at = order.index(axis)
    turned = (*(one for one in range(rank) if one != at), at)
    data = place.net.transposed(data, turned)
    grid = Grid(np.array([1 / 256], np.float32), np.array([-128])) if whole else None
    if turned == tuple(range(rank)):
        target = place.result(sink, data.shape, whole=whole, last=last, grid=grid)
        place.net.add("SOFTMAX", (data,), target, 2 if whole else 1, beta=1.0)
        place.finish(sink, whole=whole)
        return
    middle = place.net.tensor(f"{place.node.name}/turned", data.shape, INT8 if whole else FLOAT, grid)
    place.net.add("SOFTMAX", (data,), middle, 2 if whole else 1, beta=1.0)
    back = place.net.transposed(middle, tuple(int(one) for one in np.argsort(turned)))
    if whole:
        assert sink.quantize is not None
        back = place.net.on(back, place.lowering.grid(sink.quantize))
        place.lowering.done.add(sink.quantize)
        place.lowering.put(sink.quantize.outputs[0], back, last=last)
    else:
        place.lowering.put(sink.value, back, last=last)


def reduce(form: str) -> Callable[[Place], None]:
    """Return the rule of a mean, a sum or a maximum along axes."""

    def rule(place: Place) -> None:
        rank = len(place.sizes(0))
        given = place.node.attributes.get_ints("axes", ())
        axes = [int(axis) for axis in place.array(1, "its axes")] if place.has(1) else list(given)
        axes = sorted(axis % rank for axis in axes) or list(range(rank))
        keep = bool(place.node.attributes.get_int("keepdims", 1))
        sink = place.sink()
        whole = form == "MEAN" and place.on_integers(sink, [0])
        last = place.held(0).last and (keep or axes == [2, 3])  # (N, C) is left of both orders
        data = place.tensor(0, whole=whole, last=last)
        theirs = [LAST.index(axis) for axis in axes] if last else axes
        shape = tuple(place.made[axis] for axis in LAST) if last and keep else place.made
        target = place.result(sink, shape, whole=whole, last=last and keep)
        numbers = place.net.numbers(sorted(theirs))
        place.net.add(form, (data, numbers), target, 2 if whole else 1, keep_dims=keep)

    return rule


def arg_max(place: Place) -> None:
    """ArgMax → ARG_MAX; which of equals is taken is the first in both."""
    attributes, rank = place.node.attributes, len(place.sizes(0))
    place.need(not attributes.get_int("select_last_index", 0), "it takes the last of equals")
    axis = attributes.get_int("axis", 0) % rank
    data = place.tensor(0, whole=False, last=False)
    shape = tuple(size for at, size in enumerate(place.sizes(0)) if at != axis)
    found = place.net.tensor(str(place.node.outputs[0].name), shape, np.dtype(np.int64))
    place.net.add("ARG_MAX", (data, place.net.numbers(axis)), found, output_type=TYPES[np.dtype(np.int64)])
    if attributes.get_int("keepdims", 1):
        found = place.net.reshaped(found, place.made)
    place.lowering.put(place.node.outputs[0], found)


def cast(place: Place) -> None:
    """Cast → CAST; to the type that it has, nothing."""
    value, made = place.value(0), place.node.outputs[0]
    if value.dtype == made.dtype:
        identity(place)
        return
    place.need(value not in place.lowering.raw, WHOLE)
    held = place.held(0)
    data = place.net.floats(held.tensor)
    place.need(made.dtype is not None and np.dtype(made.dtype.numpy()) in TYPES, f"there is no type {made.dtype}")
    assert made.dtype is not None
    target = place.net.tensor(str(made.name), data.shape, np.dtype(made.dtype.numpy()))
    options = {"from": TYPES[data.dtype], "to": TYPES[target.dtype]}
    place.lowering.put(made, place.net.add("CAST", (data,), target, **options), last=held.last, flat=held.flat)


def identity(place: Place) -> None:
    """Identity and Dropout: nothing."""
    if place.node.op_type == "Dropout" and place.has(2):
        place.need(not place.array(2, "its training_mode").any(), "it is in training mode")
    value = place.value(0)
    if value in place.lowering.integers:
        place.lowering.integers[place.node.outputs[0]] = place.lowering.integers[value]
        return
    held = place.held(0)
    place.lowering.put(place.node.outputs[0], held.tensor, last=held.last, flat=held.flat)


RULES = {
    "Relu": unary("RELU"), "Sigmoid": unary("LOGISTIC"), "Tanh": unary("TANH"), "HardSwish": unary("HARD_SWISH"),
    "Exp": unary("EXP", integers=False), "Sqrt": unary("SQRT", integers=False), "Neg": unary("NEG", integers=False),
    "Abs": unary("ABS", integers=False), "Log": unary("LOG", integers=False),
    "Add": binary("ADD"), "Sub": binary("SUB"), "Mul": binary("MUL"), "Div": binary("DIV", integers=False),
    "Max": binary("MAXIMUM", fuses=False), "Min": binary("MINIMUM", fuses=False),
    "Pow": binary("POW", fuses=False, integers=False),
    "Clip": clip, "LeakyRelu": leaky_relu, "PRelu": prelu, "HardSigmoid": hard_sigmoid, "Softmax": softmax,
    "ReduceMean": reduce("MEAN"), "ReduceSum": reduce("SUM"), "ReduceMax": reduce("REDUCE_MAX"),
    "Identity": identity, "Dropout": identity, "Cast": cast, "ArgMax": arg_max,
}  # fmt: skip
