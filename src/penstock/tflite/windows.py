"""Windows that move over a picture: TFLite's two paddings, and what has to be padded before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.tflite.flatfile import Tensor
from penstock.tflite.held import ACTIVATIONS, LAST
from penstock.tflite.net import INT8

if TYPE_CHECKING:
    from penstock.tflite.place import Place

SAME, VALID = 0, 1


@dataclass(frozen=True, slots=True)
class Padding:
    """TFLite's kind of padding, and what is padded before: (top, left, bottom, right)."""

    kind: int
    before: tuple[int, int, int, int] = (0, 0, 0, 0)


def padding_of(
    place: Place, spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    made: Sequence[int], *, same: bool = True,
) -> Padding:  # fmt: skip
    """Return how a node's paddings are said: SAME where it is that, else VALID behind a padding of its own."""
    attributes = place.node.attributes
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto = attributes.get_string("auto_pad", "NOTSET")
    pads = list(attributes.get_ints("pads", (0, 0, 0, 0))) if auto in ("NOTSET", "") else [0, 0, 0, 0]
    # what the windows reach over, which with ceil_mode is more than the paddings say
    total = [(out - 1) * s + r - size for out, s, r, size in zip(made, strides, reach, spatial, strict=True)]
    if auto == "SAME_LOWER":
        pads = [max(t, 0) - max(t, 0) // 2 for t in total] + [max(t, 0) // 2 for t in total]
    elif auto == "SAME_UPPER":
        pads = [max(t, 0) // 2 for t in total] + [max(t, 0) - max(t, 0) // 2 for t in total]
    ends = [max(t - first, 0) for t, first in zip(total, pads[:2], strict=True)]  # beyond them no window reaches
    if not any(pads[:2]) and not any(ends):
        return Padding(VALID)
    fits = all(
        out == -(-size // s) and first == max(t, 0) // 2
        for out, size, s, first, t in zip(made, spatial, strides, pads[:2], total, strict=True)
    )
    return Padding(SAME) if fits and same else Padding(VALID, (pads[0], pads[1], ends[0], ends[1]))


def padded(place: Place, data: Tensor, padding: Padding, low: float | None = None) -> Tensor:
    """Return the data with what is padded before, of zeros, or of the lowest number for a maximum."""
    if not any(padding.before):
        return data
    top, left, bottom, right = padding.before
    n, h, w, c = data.shape
    made = place.net.tensor(
        f"{place.node.name}/padded", (n, h + top + bottom, w + left + right, c), data.dtype, data.grid
    )
    sizes = place.net.numbers([[0, 0], [top, bottom], [left, right], [0, 0]])
    if low is None:  # integers are padded with their zero
        return place.net.add("PAD", (data, sizes), made, 2 if data.dtype == INT8 else 1)
    worth = np.array([-128], np.int8) if data.dtype == INT8 else np.array([low], np.float32)
    filler = place.net.constant("lowest", worth, data.grid)
    return place.net.add("PADV2", (data, sizes, filler), made, 2 if data.dtype == INT8 else 1)


def max_pool(place: Place) -> None:
    """MaxPool → MAX_POOL_2D."""
    place.need(len(place.node.outputs) == 1 or not place.node.outputs[1].uses(), "its indices are read")
    place.need(set(place.node.attributes.get_ints("dilations", (1, 1))) == {1}, "it is dilated")
    _pool(place, "MAX_POOL_2D", low=float(np.finfo(np.float32).min))


def average_pool(place: Place) -> None:
    """AveragePool → AVERAGE_POOL_2D, which leaves what is padded out of the average.

    One over a whole picture is a mean: MEAN has another grid for what it makes, and rounds once, where the pool rounds
    to the grid of what it reads, and a QUANTIZE once more.
    """
    attributes, sizes = place.node.attributes, place.sizes(0)
    place.need(set(attributes.get_ints("dilations", (1, 1))) == {1}, "it is dilated")
    kernel = tuple(attributes.get_ints("kernel_shape", ()))
    whole = len(sizes) == 4 and kernel == sizes[2:] and place.made[2:] == (1, 1)
    if whole and not any(attributes.get_ints("pads", ())):
        global_average(place)
        return
    _pool(place, "AVERAGE_POOL_2D", counted=bool(place.node.attributes.get_int("count_include_pad", 0)))


def _pool(place: Place, form: str, *, low: float | None = None, counted: bool | None = None) -> None:
    sizes, made, attributes = place.sizes(0), place.made, place.node.attributes
    place.need(len(sizes) == 4, "it isn't over 2 dimensions")
    kernel = tuple(attributes.get_ints("kernel_shape", ()))
    strides = tuple(attributes.get_ints("strides", (1, 1)))
    sink = place.sink()
    whole = place.on_integers(sink, [0], moves=form == "MAX_POOL_2D")
    data = place.tensor(0, whole=whole, last=True)
    padding = padding_of(place, sizes[2:], kernel, strides, (1, 1), made[2:], same=not counted)
    if counted is not None and padding != Padding(VALID):
        place.need(counted or padding.kind == SAME, "what it pads is none of TFLite's two paddings, and isn't counted")
        up = bool(attributes.get_int("ceil_mode", 0))
        place.need(not (counted and up), "it counts what is padded, and rounds sizes up")
    data = padded(place, data, padding, low)
    target = place.result(sink, tuple(made[axis] for axis in LAST), whole=whole, last=True, grid=data.grid)
    place.net.add(
        form, (data,), target, 2 if whole else 1, padding=padding.kind, stride_h=strides[0], stride_w=strides[1],
        filter_h=kernel[0], filter_w=kernel[1], activation=ACTIVATIONS[""],
    )  # fmt: skip
    place.finish(sink, whole=whole)


def global_average(place: Place) -> None:
    """GlobalAveragePool → MEAN."""
    made = place.made
    place.need(len(made) == 4, "it isn't over 2 dimensions")
    sink = place.sink()
    whole = place.on_integers(sink, [0])
    data = place.tensor(0, whole=whole, last=True)
    target = place.result(sink, tuple(made[axis] for axis in LAST), whole=whole, last=True)
    place.net.add("MEAN", (data, place.net.numbers([1, 2])), target, 2 if whole else 1, keep_dims=True)


RULES = {"MaxPool": max_pool, "AveragePool": average_pool, "GlobalAveragePool": global_average}
