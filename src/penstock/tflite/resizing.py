"""Resize → RESIZE_NEAREST_NEIGHBOR or RESIZE_BILINEAR.

Both libraries have several ways to place the pixels, under names of their own. Which of TFLite's is the one that is
asked for is found by the numbers: where each pixel of the result looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from penstock.tflite.flatfile import Array
from penstock.tflite.held import LAST
from penstock.tflite.place import Place

WAYS: tuple[dict[str, bool], ...] = ({}, {"half_pixel": True}, {"align_corners": True})


def resize(place: Place) -> None:
    """Resize, Upsample → RESIZE_NEAREST_NEIGHBOR or RESIZE_BILINEAR."""
    attributes, sizes, made = place.node.attributes, place.sizes(0), place.made
    place.need(len(sizes) == 4 and sizes[:2] == made[:2], "it resizes other axes than height and width")
    mode = attributes.get_string("mode", "nearest")
    place.need(mode in ("nearest", "linear"), f"there is no mode {mode!r}")
    place.need(not attributes.get_int("antialias", 0), "it smooths before")
    theirs = _wanted(place, mode, sizes[2:], made[2:])
    for way in WAYS:
        ours = _linear if mode == "linear" else _nearest
        if all(np.allclose(want, ours(size, out, way), atol=1e-5)
               for want, size, out in zip(theirs, sizes[2:], made[2:], strict=True)):  # fmt: skip
            break
    else:
        raise_way = attributes.get_string("coordinate_transformation_mode", "half_pixel")
        place.need(False, f"TFLite places no pixels like {raise_way!r}")
    sink = place.sink()
    whole = place.on_integers(sink, [0], moves=mode == "nearest")
    data = place.tensor(0, whole=whole, last=True)
    target = place.result(sink, tuple(made[axis] for axis in LAST), whole=whole, last=True, grid=data.grid)
    form = "RESIZE_BILINEAR" if mode == "linear" else "RESIZE_NEAREST_NEIGHBOR"
    version = 3 if way else 2 if whole else 1
    place.net.add(form, (data, place.net.numbers(made[2:])), target, version, **way)
    place.finish(sink, whole=whole)


def _wanted(place: Place, mode: str, sizes: Sequence[int], made: Sequence[int]) -> list[Array]:
    """Return where each pixel of the result looks, by ONNX, for both axes."""
    attributes = place.node.attributes
    how = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    rounding = attributes.get_string("nearest_mode", "round_prefer_floor")
    if place.node.op_type == "Upsample" or place.lowering.known.opset < 11:
        how, rounding = "asymmetric", "floor"
    index = 1 if len(place.node.inputs) == 2 else 2
    scales = None
    if place.has(index) and (array := place.array(index, "its scales")).size == 4:
        scales = array[2:]
    found = []
    for axis, (size, out) in enumerate(zip(sizes, made, strict=True)):
        scale = float(scales[axis]) if scales is not None else out / size
        x = np.arange(out, dtype=np.float64)
        if how in ("half_pixel", "half_pixel_symmetric") or (how == "pytorch_half_pixel" and out > 1):
            place.need(how != "half_pixel_symmetric" or math.isclose(out, size * scale), "it is cropped")
            at = (x + 0.5) / scale - 0.5
        elif how == "pytorch_half_pixel":
            at = np.zeros(out)
        elif how == "asymmetric":
            at = x / scale
        elif how == "align_corners":
            at = x * (size - 1) / (out - 1) if out > 1 else np.zeros(out)
        else:
            place.need(False, f"there is no {how!r}")
        at = at.clip(0, size - 1)
        if mode == "nearest":
            at = {"floor": np.floor(at), "ceil": np.ceil(at), "round_prefer_floor": np.ceil(at - 0.5),
                  "round_prefer_ceil": np.floor(at + 0.5)}[rounding]  # fmt: skip
        found.append(at.clip(0, size - 1))
    return found


def _nearest(size: int, out: int, way: dict[str, bool]) -> Array:
    aligned = way.get("align_corners") and out > 1
    scale = (size - 1) / (out - 1) if aligned else size / max(out, 1)
    at = (np.arange(out) + (0.5 if way.get("half_pixel") else 0.0)) * scale
    found: Array = np.minimum(np.floor(at + 0.5) if aligned else np.floor(at), size - 1)
    return found


def _linear(size: int, out: int, way: dict[str, bool]) -> Array:
    scale = (size - 1) / (out - 1) if way.get("align_corners") and out > 1 else size / max(out, 1)
    x = np.arange(out)
    at = (x + 0.5) * scale - 0.5 if way.get("half_pixel") else x * scale
    found: Array = at.clip(0, size - 1)
    return found


RULES = {"Resize": resize, "Upsample": resize}
