"""Upsample (9, 10) and Resize (11, 13, 18, 19), GridSample (20).

Resize of opset 10 names no coordinates. Its linear mode is ``x_original = x_resized / scale``, as its own examples in
the standard have it (``asymmetric`` from opset 11 on). Which pixel is the nearest it leaves open: ONNX Runtime rounds
down when enlarging and up when shrinking. So *nearest* is converted only where every reading gives the same pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from penstock.opsets import down, up
from penstock.rewriting import Refusal, Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.place import Place


@up(9, "Upsample")
def scales_as_input(node: ir.Node, place: Place) -> Rewrite:
    """Scales became an input."""
    import numpy as np

    scales = place.constant(np.array(place.attribute(node, "scales"), np.float32))
    return place.renew(node, "scales became an input", [node.inputs[0], scales], scales=None)


@down(9, "Upsample")
def scales_as_attribute(node: ir.Node, place: Place) -> Rewrite:
    """Constant scales become an attribute."""
    return place.renew(node, "scales became an attribute", [node.inputs[0]], scales=list(_scales(node, place, 1)))


@up(10, "Upsample")
def called_resize(node: ir.Node, place: Place) -> Rewrite:
    """It is called Resize."""
    return place.renew(node, "it is called Resize", op="Resize")


@down(10, "Resize")
def called_upsample(node: ir.Node, place: Place) -> Rewrite:
    """What enlarges is called Upsample. Refused: what shrinks."""
    if min(_scales(node, place, 1)) < 1:
        raise Refusal("it shrinks, and Upsample of opset 9 only enlarges")
    return place.renew(node, "it is called Upsample", op="Upsample")


def _scales(node: ir.Node, place: Place, index: int) -> tuple[float, ...]:
    array = place.array(place.input(node, index))
    if array is None:
        raise Refusal("its scales are computed, and have to be fixed here")
    return tuple(float(one) for one in array.reshape(-1))


@up(11, "Resize")
def coordinates_named(node: ir.Node, place: Place) -> Rewrite:
    """The coordinates are named: asymmetric. Refused: *nearest* where the standard leaves the pixel open."""
    mode = place.attribute(node, "mode", "nearest")
    if mode == "nearest":
        scales = _scales(node, place, 1)
        shape = place.shape(node.inputs[0])
        for i, scale in enumerate(scales):
            size = None if shape is None else shape[i]
            if not _clear(scale, size if isinstance(size, int) else None):
                what = "which pixel is the nearest isn't fixed in opset 10, and in opset 11 it has to be said"
                raise Refusal(f"{what} (scale {scale:g} of axis {i})")
    inputs = [node.inputs[0], _no_floats(place), node.inputs[1]]
    return place.renew(node, "coordinate_transformation_mode=asymmetric", inputs, mode=mode,
                       coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip


def _clear(scale: float, size: int | None) -> bool:
    """Whether rounding down and rounding up, in 32-bit floats, give the same pixels."""
    if scale >= 1 and scale == int(scale):
        return True  # each pixel is repeated
    if scale < 1 and math.log2(scale) == int(math.log2(scale)):
        return True  # every 2nd, 4th, … pixel
    if size is None:
        return False
    places = [_place(i, scale) for i in range(math.floor(size * scale))]
    return all(place == int(place) for place in places)


def _place(i: int, scale: float) -> float:
    """Return x_resized / scale as runtimes compute it."""
    import numpy as np

    return float(np.float32(i) / np.float32(scale))


def _no_floats(place: Place) -> ir.Value:
    """Return an empty tensor of floats, which stood for what isn't given before opset 13."""
    import numpy as np

    return place.constant(np.zeros(0, np.float32))


@down(11, "Resize")
def coordinates_of_old(node: ir.Node, place: Place) -> Rewrite:
    """Linear asymmetric, and nearest that repeats pixels, are what opset 10 has. Refused: all others."""
    mode = place.attribute(node, "mode", "nearest")
    coordinates = place.attribute(node, "coordinate_transformation_mode", "half_pixel")
    x, scales = node.inputs[0], place.input(node, 2)
    assert x is not None
    if mode not in ("nearest", "linear"):
        raise Refusal(f"mode={mode} can be said from opset 11 on only")
    array = place.array(scales)
    if array is None or array.size == 0:
        scales, numbers = _from_sizes(node, place, x)
    else:
        numbers = tuple(float(one) for one in array.reshape(-1))
    shape = place.shape(x)
    sizes = [size if isinstance(size, int) else None for size in shape] if shape is not None else [None] * len(numbers)
    if mode == "linear" and any(scale != 1 for scale in numbers) and coordinates != "asymmetric":
        raise Refusal(f"coordinate_transformation_mode={coordinates} can be said from opset 11 on only")
    if mode == "nearest":
        rounding = place.attribute(node, "nearest_mode", "round_prefer_floor")
        for scale, size in zip(numbers, sizes, strict=True):
            if not _clear(scale, size) or not _repeats(scale, coordinates, rounding, size):
                raise Refusal(f"coordinate_transformation_mode={coordinates} with nearest_mode={rounding} "
                              f"and scale {scale:g} can be said from opset 11 on only")  # fmt: skip
    names = (
        "coordinate_transformation_mode",
        "cubic_coeff_a",
        "exclude_outside",
        "extrapolation_value",
        "nearest_mode",
    )
    gone: dict[str, Any] = dict.fromkeys(names)
    return place.renew(node, f"coordinates as opset 10 has them, mode={mode}", [x, scales], mode=mode,
                       **gone)  # fmt: skip


def _from_sizes(node: ir.Node, place: Place, x: ir.Value) -> tuple[ir.Value, tuple[float, ...]]:
    """Return the scales that give the sizes."""
    import numpy as np

    wanted = place.need_ints(place.input(node, 3), "sizes")
    own = place.need_static(x)
    scales = np.array([new / old for new, old in zip(wanted, own, strict=True)], np.float32)
    if any(math.floor(old * float(scale)) != new for new, old, scale in zip(wanted, own, scales, strict=True)):
        raise Refusal("no scales give its sizes, and opset 10 has scales only")
    return place.constant(scales), tuple(float(scale) for scale in scales)


def _repeats(scale: float, coordinates: str, rounding: str, size: int | None) -> bool:
    """Whether *nearest* takes the pixels that rounding x_resized / scale takes."""
    if scale == 1:
        return coordinates != "tf_crop_and_resize"
    count = math.floor(size * scale) if size is not None else 4 * max(1, round(scale))
    for i in range(count):
        if coordinates == "asymmetric":
            x = i / scale
        elif coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and count > 1):
            x = (i + 0.5) / scale - 0.5
        else:
            return False
        last = 10**9 if size is None else size - 1
        low, high = {"floor": (math.floor(x),) * 2, "ceil": (math.ceil(x),) * 2}.get(
            rounding, (math.ceil(x - 0.5), math.floor(x + 0.5))
        )
        chosen = high if rounding == "round_prefer_ceil" else low
        if min(max(chosen, 0), last) != min(math.floor(_place(i, scale)), last):
            return False
    return True


@down(13, "Resize")
def roi_written_out(node: ir.Node, place: Place) -> Rewrite | None:
    """Empty tensors stand for what isn't given."""
    x, roi, scales = (place.input(node, index) for index in range(3))
    if roi is not None and scales is not None:
        return None
    inputs = [x, roi or _no_floats(place), scales or _no_floats(place), *node.inputs[3:]]
    return place.renew(node, "roi and scales written out as empty", inputs)


@down(18, "Resize")
def all_axes(node: ir.Node, place: Place) -> Rewrite | None:
    """Scales or sizes are given for all axes. Refused: antialias, and sizes that keep an aspect ratio."""
    if place.attribute(node, "antialias", 0):
        raise Refusal("antialias=1 can be said from opset 18 on only")
    policy = place.attribute(node, "keep_aspect_ratio_policy", "stretch")
    if policy != "stretch" and place.input(node, 3) is not None:
        raise Refusal(f"keep_aspect_ratio_policy={policy} can be said from opset 18 on only")
    dropped: dict[str, Any] = {"antialias": None, "keep_aspect_ratio_policy": None, "axes": None}
    axes = place.attribute(node, "axes")
    if axes is None:
        usual = dropped.keys() & node.attributes.keys()
        return place.renew(node, f"{', '.join(sorted(usual))} as usual", **dropped) if usual else None
    if place.attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise Refusal("axes with a region can be said from opset 18 on only")
    x = node.inputs[0]
    assert x is not None
    rank = place.need_rank(x)
    front = [axis % rank for axis in axes]
    inputs = [*node.inputs] + [None] * (4 - len(node.inputs))
    inputs[1] = None
    for index in (2, 3):
        if (given := inputs[index]) is not None:
            inputs[index] = _spread(place, x, given, front, rank, sizes=index == 3)
    return place.renew(node, "scales or sizes are given for all axes", inputs, **dropped)


def _spread(place: Place, x: ir.Value, given: ir.Value, axes: list[int], rank: int, *, sizes: bool) -> ir.Value:
    """Put the numbers of some axes among those of all: scales of 1, or the sizes as they are."""
    import numpy as np

    array = place.array(given)
    if array is not None and array.size == 0:
        return given
    shape = place.shape(x)
    others = [1.0] * rank if not sizes else list(shape) if shape is not None else [None] * rank
    rest = [axis for axis in range(rank) if axis not in axes]
    if array is not None and all(isinstance(others[axis], int | float) for axis in rest):
        numbers = np.array([0 if axis in axes else others[axis] for axis in range(rank)], array.dtype)
        numbers[axes] = array
        return place.constant(numbers)
    whole = place.make("Shape", [x]) if sizes else place.constant(np.ones(rank, np.float32))
    kept = place.make("Gather", [whole, place.int64s(rest)], axis=0)
    mixed = place.make("Concat", [given, kept], axis=0) if rest else given
    order = [(axes + rest).index(axis) for axis in range(rank)]
    return place.make("Gather", [mixed, place.int64s(order)], axis=0)


@down(19, "Resize")
def no_symmetry(node: ir.Node, place: Place) -> Rewrite | None:
    """Refused: ``half_pixel_symmetric``."""
    if place.attribute(node, "coordinate_transformation_mode", "half_pixel") == "half_pixel_symmetric":
        raise Refusal("coordinate_transformation_mode=half_pixel_symmetric can be said from opset 19 on only")
    return None


NEW = {"bilinear": "linear", "bicubic": "cubic"}


@up(20, "GridSample")
def modes_renamed(node: ir.Node, place: Place) -> Rewrite:
    """``bilinear`` is called ``linear``, ``bicubic`` ``cubic``."""
    mode = place.attribute(node, "mode", "bilinear")
    return place.renew(node, f"mode={NEW.get(mode, mode)}", mode=NEW.get(mode, mode))


@down(20, "GridSample")
def modes_of_old(node: ir.Node, place: Place) -> Rewrite:
    """``linear`` is called ``bilinear``, ``cubic`` ``bicubic``. Refused: other than two dimensions."""
    if place.need_rank(node.inputs[0]) != 4:
        raise Refusal("volumes can be sampled from opset 20 on only")
    mode = place.attribute(node, "mode", "linear")
    old = {new: old for old, new in NEW.items()}.get(mode, mode)
    return place.renew(node, f"mode={old}", mode=old)
