"""Rules for layers with weights: convolutions, depthwise and transposed ones, and products of matrices."""

from __future__ import annotations

import numpy as np

from penstock.tflite.flatfile import Array, Grid, Tensor
from penstock.tflite.held import ACTIVATIONS, LAST, Integers
from penstock.tflite.place import Place, Sink
from penstock.tflite.windows import padded, padding_of

PER_CHANNEL = 12  # version of FULLY_CONNECTED with a scale for each output


def conv(place: Place) -> None:
    """Conv → CONV_2D, or DEPTHWISE_CONV_2D where each channel has weights of its own.

    CONV_2D knows its groups by the channels of its weights, which are those of one group.
    """
    _, channels, *spatial = place.sizes(0)
    made = place.made
    place.need(
        len(spatial) == 2, f"it is a convolution over {len(spatial)} dimensions, and there are only those over 2"
    )
    attributes = place.node.attributes
    group = attributes.get_int("group", 1)
    depthwise = group > 1 and group == channels
    sink = place.sink(fuse=True)
    whole = _whole(place, sink)
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    held = place.lowering.integers.get(place.value(1))
    kernel = tuple((held.whole if held is not None else place.array(1, "its weight")).shape[2:])
    strides = tuple(attributes.get_ints("strides", (1, 1)))
    dilations = tuple(attributes.get_ints("dilations", (1, 1)))
    data = place.tensor(0, whole=whole, last=True)
    padding = padding_of(place, spatial, kernel, strides, dilations, made[2:])
    data = padded(place, data, padding)
    weights = _weights(place, order, 3 if depthwise else 0, whole)
    bias = _bias(place, made[1], data, weights, whole)
    target = place.result(sink, tuple(made[axis] for axis in LAST), whole=whole, last=True)
    options = {
        "padding": padding.kind, "stride_h": strides[0], "stride_w": strides[1],
        "activation": ACTIVATIONS[sink.activation], "dilation_h": dilations[0], "dilation_w": dilations[1],
    }  # fmt: skip
    if depthwise:
        version = 3 if whole else 2 if dilations != (1, 1) else 1
        place.net.add(
            "DEPTHWISE_CONV_2D", (data, weights, bias), target, version, multiplier=made[1] // channels, **options
        )
    else:
        place.net.add("CONV_2D", (data, weights, bias), target, 3 if whole else 1, **options)


def conv_transpose(place: Place) -> None:
    """ConvTranspose → TRANSPOSE_CONV, and a SLICE where its paddings are none of TFLite's two."""
    *_, height, width = place.sizes(0)
    made = place.made
    place.need(len(made) == 4, "it isn't over 2 dimensions")
    attributes = place.node.attributes
    place.need(attributes.get_int("group", 1) == 1, "it has groups")
    place.need(set(attributes.get_ints("dilations", (1, 1))) == {1}, "it is dilated")
    place.need(attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID"), "its paddings are automatic")
    sink = place.sink(fuse=True)
    whole = _whole(place, sink)
    held = place.lowering.integers.get(place.value(1))
    kernel = (held.whole if held is not None else place.array(1, "its weight")).shape[2:]
    strides = tuple(attributes.get_ints("strides", (1, 1)))
    pads = tuple(attributes.get_ints("pads", (0, 0, 0, 0)))
    out = made[2:]
    full = tuple((size - 1) * s + k for size, s, k in zip((height, width), strides, kernel, strict=True))
    data = place.tensor(0, whole=whole, last=True)
    weights = _weights(place, (1, 2, 3, 0), 0, whole)
    bias = _bias(place, made[1], data, weights, whole)
    same = all(
        max(f - o, 0) // 2 == pad and -(-o // s) == size and f >= o
        for f, o, pad, s, size in zip(full, out, pads, strides, (height, width), strict=False)
    )
    cut = tuple(f != o for f, o in zip(full, out, strict=True))
    kind, shape = (0, out) if same and any(cut) else (1, full)
    place.need(
        kind == 0 or all(pad + o <= f for pad, o, f in zip(pads, out, full, strict=False)),
        "its result reaches beyond what the input covers",
    )
    options = {
        "padding": kind,
        "stride_h": strides[0],
        "stride_w": strides[1],
        "activation": ACTIVATIONS[sink.activation],
    }
    sizes = place.net.numbers((made[0], *shape, made[1]))
    if kind == 0 or not any(cut):
        target = place.result(sink, tuple(made[axis] for axis in LAST), whole=whole, last=True)
        place.net.add("TRANSPOSE_CONV", (sizes, weights, data, bias), target, 4, **options)
        return
    target = place.result(sink, tuple(made[axis] for axis in LAST), whole=whole, last=True)
    larger = place.net.tensor(f"{target.name}/full", (made[0], *full, made[1]), target.dtype, target.grid)
    place.net.add("TRANSPOSE_CONV", (sizes, weights, data, bias), larger, 4, **options)
    begin, size = place.net.numbers((0, pads[0], pads[1], 0)), place.net.numbers(target.shape)
    place.net.add("SLICE", (larger, begin, size), target, 2 if whole else 1)


def gemm(place: Place) -> None:
    """Gemm → FULLY_CONNECTED."""
    attributes = place.node.attributes
    place.need(
        attributes.get_float("alpha", 1.0) == 1 and attributes.get_float("beta", 1.0) == 1, "it has an alpha or beta"
    )
    place.need(not attributes.get_int("transA", 0), "its data is transposed")
    _product(place, transposed=bool(attributes.get_int("transB", 0)), bias=place.has(2))


def matmul(place: Place) -> None:
    """MatMul by constant weights → FULLY_CONNECTED."""
    place.need(len(place.sizes(1)) == 2, "its second matrix has more than two dimensions")
    _product(place, transposed=False, bias=False)


def _product(place: Place, *, transposed: bool, bias: bool) -> None:
    sink = place.sink(fuse=True)
    whole = _whole(place, sink)
    held = place.held(0)
    made = place.made
    order = (0, 1) if transposed else (1, 0)
    outputs = made[-1]
    if held.flat is not None:
        weights = _weights(place, order, 0, whole, held.flat)
        data = held.tensor if whole else place.net.floats(held.tensor)
    else:
        weights = _weights(place, order, 0, whole)
        data = place.tensor(0, whole=whole, last=False)
    row = _bias(place, outputs, data, weights, whole) if bias or whole else None
    target = place.result(sink, made, whole=whole)
    version = (PER_CHANNEL if weights.grid is not None and weights.grid.scale.size > 1 else 5) if whole else 5
    place.net.add(
        "FULLY_CONNECTED", (data, weights, row), target, version, activation=ACTIVATIONS[sink.activation],
        keep_num_dims=len(made) > 2,
    )  # fmt: skip


def _whole(place: Place, sink: Sink) -> bool:
    """Whether a layer computes on integers: data, weights and bias are on grids, and so is what it makes."""
    held = place.lowering.integers.get(place.value(1))
    biased = place.has(2)
    row = place.lowering.integers.get(place.value(2)) if biased else None
    return (
        place.on_integers(sink, [0])
        and held is not None and held.whole.dtype == np.int8 and not held.zero_point.any()
        and (not biased or (row is not None and row.whole.dtype == np.int32))
    )  # fmt: skip


def _weights(
    place: Place, order: tuple[int, ...], axis: int, whole: bool, flat: tuple[int, int, int] | None = None
) -> Tensor:
    """Put the weights into the net, their axes in ``order``; ``axis``: that of the outputs, which scales go by.

    ``flat``: the data's columns go by H, W and C where the weights' go by C, H and W.
    """
    value = place.value(1)
    held = place.lowering.integers.get(value)
    array = held.whole if whole and held is not None else place.array(1, "its weight")
    array = array.transpose(order)
    if flat is not None:
        c, h, w = flat
        array = array.reshape(len(array), c, h, w).transpose(0, 2, 3, 1).reshape(len(array), -1)
    grid = Grid(held.scale.reshape(-1), held.zero_point.reshape(-1).astype(np.int64), axis) if whole and held else None
    if grid is not None and grid.zero_point.size != grid.scale.size:
        grid = Grid(grid.scale, np.zeros(grid.scale.size, np.int64), axis)
    if grid is None:
        place.need(array.dtype == np.float32, f"its weights are {array.dtype}")
    return place.net.constant(str(value.name), array, grid)


def _bias(place: Place, count: int, data: Tensor, weights: Tensor, whole: bool) -> Tensor:
    """Put the bias into the net, a row of zeros where there is none; on integers its scale is that of the products."""
    name = str(place.value(2).name) if place.has(2) else f"{place.node.name}/bias"
    if not whole:
        row = place.array(2, "its bias").reshape(-1) if place.has(2) else np.zeros(1, np.float32)
        place.need(row.size in (1, count), f"its bias has {row.size} numbers for {count} outputs")
        return place.net.constant(name, np.broadcast_to(row.astype(np.float32), (count,)).copy())
    assert data.grid is not None and weights.grid is not None
    scale = (data.grid.scale * weights.grid.scale).astype(np.float32)
    row = np.zeros(count, np.int32)
    if place.has(2):
        row = _on(place.lowering.integers[place.value(2)], count, scale)
    return place.net.constant(name, row, Grid(scale, np.zeros(scale.size, np.int64), 0))


def _on(held: Integers, count: int, scale: Array) -> Array:
    """Return a bias on the grid of the products; where it is on that one already, its integers as they are."""
    whole = np.broadcast_to(held.whole.reshape(-1), (count,))
    theirs, ours = np.broadcast_to(held.scale.reshape(-1), (count,)), np.broadcast_to(scale, (count,))
    if np.allclose(theirs, ours, rtol=1e-5, atol=0):
        return whole.astype(np.int32)
    real = whole.astype(np.float64) * theirs.astype(np.float64) / ours.astype(np.float64)
    return np.clip(np.rint(real), -(2**31), 2**31 - 1).astype(np.int32)


RULES = {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul}
