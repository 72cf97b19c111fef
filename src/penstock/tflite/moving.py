"""Rules for what moves elements and computes nothing: on integers the grid stays."""

from __future__ import annotations

import math

import numpy as np

from penstock.tflite.flatfile import Tensor
from penstock.tflite.held import BACK, LAST, Held, Integers, RefusedError
from penstock.tflite.net import same
from penstock.tflite.place import Place


def reshape(place: Place) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze → RESHAPE."""
    sizes, made = place.sizes(0), place.made
    held = place.held(0)
    sink, data = place.sink(), held.tensor
    flat: tuple[int, int, int] | None = None
    if held.last:
        n, h, w, c = data.shape
        if c == 1 or h * w == 1:
            data = place.net.reshaped(data, sizes)  # the same bytes in either order
        elif made == (n, c * h * w):
            flat = (c, h, w)  # who reads it may take its weights in this order
        else:
            data = place.lowering.plain(Held(data, True))
    elif held.flat is not None:
        data = place.lowering.plain(Held(data, False, held.flat))
    place.pass_on(sink, place.net.reshaped(data, made), flat=flat)


def transpose(place: Place) -> None:
    """Transpose → TRANSPOSE, or nothing where the tensor has that order already."""
    held, rank = place.held(0), len(place.made)
    order = tuple(place.node.attributes.get_ints("perm", tuple(reversed(range(rank)))))
    sink, data = place.sink(), held.tensor
    if held.last:
        if order == LAST:
            place.pass_on(sink, data)
            return
        place.pass_on(sink, place.net.transposed(data, tuple(LAST.index(axis) for axis in order)))
        return
    data = place.lowering.plain(Held(data, False, held.flat))
    if rank == 4 and order == BACK:  # the tensor is the result with its channels last
        place.pass_on(sink, data, last=True)
        return
    place.pass_on(sink, place.net.transposed(data, order))


def concat(place: Place) -> None:
    """Concat → CONCATENATION; parts on other grids than the result's are brought onto it."""
    indices = range(len(place.node.inputs))
    rank = len(place.made)
    sink = place.sink()
    whole = place.on_integers(sink, [*indices], constants=True, moves=True)
    held = [None if place.constant(index) else place.held(index) for index in indices]
    last = rank == 4 and any(one is not None and one.last for one in held)
    parts = [_part(place, index, whole, last) for index in indices]
    axis = place.node.attributes.get_int("axis", 0) % rank
    grid = parts[0].grid
    if whole:
        grid = place.lowering.grid(sink.quantize) if sink.quantize is not None else grid
        assert grid is not None
        parts = [place.net.on(part, grid) for part in parts]
    shape = tuple(place.made[one] for one in LAST) if last else place.made
    target = place.result(sink, shape, whole=whole, last=last, grid=grid)
    place.net.add(
        "CONCATENATION", tuple(parts), target, 2 if whole else 1, axis=LAST.index(axis) if last else axis, activation=0
    )


def _part(place: Place, index: int, whole: bool, last: bool) -> Tensor:
    if not place.constant(index) or whole:
        return place.tensor(index, whole=whole, last=last)
    array = place.array(index)
    return place.net.constant(str(place.value(index).name), array.transpose(LAST) if last else array)


def pad(place: Place) -> None:
    """Pad with a constant → PAD, or PADV2 where that isn't 0."""
    attributes = place.node.attributes
    place.need(attributes.get_string("mode", "constant") == "constant", "it pads with what is at the border")
    sizes = place.sizes(0)
    given = place.array(1, "its paddings") if place.has(1) else np.asarray(attributes.get_ints("pads", ()))
    axes = [int(axis) % len(sizes) for axis in place.array(3)] if place.has(3) else list(range(len(sizes)))
    pads = np.zeros((len(sizes), 2), np.int32)
    pads[axes] = np.asarray(given).reshape(2, -1).T
    place.need(bool((pads >= 0).all()), "it cuts off")
    worth = float(place.array(2).reshape(())) if place.has(2) else attributes.get_float("value", 0.0)
    sink = place.sink()
    whole = worth == 0 and place.on_integers(sink, [0])
    last = place.held(0).last
    data = place.tensor(0, whole=whole, last=last)
    shape = tuple(place.made[axis] for axis in LAST) if last else place.made
    target = place.result(sink, shape, whole=whole, last=last, grid=data.grid)
    table = place.net.numbers(pads[list(LAST)] if last else pads)
    if worth == 0:
        place.net.add("PAD", (data, table), target, 2 if whole else 1)
    else:
        place.net.add("PADV2", (data, table, place.net.constant("filler", np.array([worth], np.float32))), target)
    place.finish(sink, whole=whole)


def slice_(place: Place) -> None:
    """Slice by constants → STRIDED_SLICE."""
    attributes, sizes = place.node.attributes, place.sizes(0)
    if place.has(1):
        starts, ends = (place.array(index, "where it cuts").tolist() for index in (1, 2))
        axes = place.array(3).tolist() if place.has(3) else list(range(len(starts)))
        steps = place.array(4).tolist() if place.has(4) else [1] * len(starts)
    else:
        starts, ends = list(attributes.get_ints("starts", ())), list(attributes.get_ints("ends", ()))
        axes, steps = list(attributes.get_ints("axes", range(len(starts)))), [1] * len(starts)
    begin, end, stride = [0] * len(sizes), list(sizes), [1] * len(sizes)
    for start, stop, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(sizes)
        place.need(step > 0, "it goes backwards")
        begin[axis] = min(max(start + sizes[axis] if start < 0 else start, 0), sizes[axis])
        end[axis] = min(max(stop + sizes[axis] if stop < 0 else stop, 0), sizes[axis])
        stride[axis] = step
    _cut(place, begin, end, stride, 0)


def split(place: Place) -> None:
    """Split → a STRIDED_SLICE for each part."""
    sizes = place.sizes(0)
    axis = place.node.attributes.get_int("axis", 0) % len(sizes)
    start = 0
    for index, value in enumerate(place.node.outputs):
        part = place.lowering.sizes(value)[axis]
        begin, end = [0] * len(sizes), list(sizes)
        begin[axis], end[axis] = start, start + part
        _cut(place, begin, end, [1] * len(sizes), index)
        start += part


def _cut(place: Place, begin: list[int], end: list[int], stride: list[int], index: int) -> None:
    held = place.held(0)
    value = place.node.outputs[index]
    raw = place.value(0) in place.lowering.raw
    reader = place.lowering.only_reader(value, "QuantizeLinear")
    whole = held.tensor.grid is not None and (raw or reader is not None)
    data = place.tensor(0, whole=whole, last=held.last)
    order = LAST if held.last else tuple(range(len(begin)))
    tables = [place.net.numbers([table[axis] for axis in order]) for table in (begin, end, stride)]
    shape = tuple(math.ceil(max(end[axis] - begin[axis], 0) / stride[axis]) for axis in order)
    made = place.net.tensor(str(value.name), shape, data.dtype, data.grid)
    place.net.add(
        "STRIDED_SLICE", (data, *tables), made, 2 if whole else 1, begin=0, end=0, ellipsis=0, new=0, shrink=0
    )
    if whole and reader is not None:
        place.lowering.done.add(reader)
        made = place.net.on(made, place.lowering.grid(reader))
        value = reader.outputs[0]
    place.lowering.put(value, made, last=held.last)
    if whole:
        place.lowering.raw.add(value)


def blocks(place: Place) -> None:
    """DepthToSpace and SpaceToDepth → DEPTH_TO_SPACE and SPACE_TO_DEPTH, whose order is that of the mode DCR."""
    attributes = place.node.attributes
    place.need(attributes.get_string("mode", "DCR") == "DCR", "it takes columns first (CRD)")
    form = {"DepthToSpace": "DEPTH_TO_SPACE", "SpaceToDepth": "SPACE_TO_DEPTH"}[place.node.op_type]
    sink = place.sink()
    whole = place.on_integers(sink, [0], moves=True)
    data = place.tensor(0, whole=whole, last=True)
    shape = tuple(place.made[axis] for axis in LAST)
    target = place.result(sink, shape, whole=whole, last=True, grid=data.grid)
    size = attributes.get_int("blocksize", 0)
    place.net.add(form, (data,), target, 2 if whole else 1, block_size=size)
    place.finish(sink, whole=whole)


def gather(place: Place) -> None:
    """Gather → GATHER, in float."""
    rank = len(place.sizes(0))
    data = place.tensor(0, whole=False, last=False)
    index = place.tensor(1, whole=False, last=False)
    place.need(index.dtype in (np.int32, np.int64), f"its indices are {index.dtype}")
    if index.data is not None and (index.data < 0).any():
        axis_size = place.sizes(0)[place.node.attributes.get_int("axis", 0) % rank]
        index = place.net.constant(index.name, np.where(index.data < 0, index.data + axis_size, index.data))
    target = place.result(place.sink(), place.made, whole=False)
    place.net.add("GATHER", (data, index), target, axis=place.node.attributes.get_int("axis", 0) % rank, batch_dims=0)


def quantize(place: Place) -> None:
    """QuantizeLinear of what is computed in float → QUANTIZE; of integers on a grid: their grid changes."""
    held = place.held(0)
    grid = place.lowering.grid(place.node)
    place.lowering.put(place.node.outputs[0], place.net.on(held.tensor, grid), last=held.last, flat=held.flat)
    place.lowering.raw.add(place.node.outputs[0])


def dequantize(place: Place) -> None:
    """DequantizeLinear: of data, the integers go on, and who wants floats makes them; of a constant, it is kept."""
    array = place.lowering.array(place.value(0))
    if array is not None:
        scale = place.array(1, "its scale")
        zero = place.array(2) if place.has(2) else np.zeros(1, array.dtype)
        place.need(place.node.attributes.get_int("block_size", 0) == 0, "its weights are quantized in blocks")
        axis = place.node.attributes.get_int("axis", 1)
        axis = axis % array.ndim if array.ndim and scale.size > 1 else 0
        place.lowering.integers[place.node.outputs[0]] = Integers(array, scale.reshape(-1), zero.reshape(-1), axis)
        return
    held = place.held(0)
    grid = held.tensor.grid
    if grid is None:
        raise RefusedError("its integers come from no QuantizeLinear")
    place.need(same(grid, place.lowering.grid(place.node)), "it reads integers by another grid than they were made by")
    place.lowering.put(place.node.outputs[0], held.tensor, last=held.last, flat=held.flat)


RULES = {
    "Reshape": reshape, "Flatten": reshape, "Squeeze": reshape, "Unsqueeze": reshape, "Transpose": transpose,
    "Concat": concat, "Gather": gather, "Pad": pad, "Slice": slice_, "Split": split,
    "DepthToSpace": blocks, "SpaceToDepth": blocks,
    "QuantizeLinear": quantize, "DequantizeLinear": dequantize,
}  # fmt: skip
