"""MaxPool and AveragePool: rounding up (10), indices (8); RoiAlign's half pixels (16)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penstock.opsets import down, up
from penstock.rewriting import Refusal, Rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.opsets.place import Place


@down(10, "MaxPool", "AveragePool")
def padding_instead_of_rounding_up(node: ir.Node, place: Place) -> Rewrite | None:
    """``ceil_mode`` is more padding at the end, where the sizes are fixed and padding doesn't count."""
    if not place.attribute(node, "ceil_mode", 0):
        return None
    if place.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return place.renew(node, "ceil_mode is dropped, auto_pad fixes the sizes", ceil_mode=None)
    if place.attribute(node, "count_include_pad", 0):
        raise Refusal("ceil_mode=1 can be said from opset 10 on only, and padding would count in the average")
    if any(one != 1 for one in place.attribute(node, "dilations", ())):
        raise Refusal("dilations can be said from opset 10 on only")
    sizes = place.shape(node.inputs[0])
    kernel = list(place.attribute(node, "kernel_shape"))
    strides = list(place.attribute(node, "strides") or [1] * len(kernel))
    pads = list(place.attribute(node, "pads") or [0] * 2 * len(kernel))
    for i, (k, stride) in enumerate(zip(kernel, strides, strict=True)):
        size = None if sizes is None else sizes[2 + i]
        if not isinstance(size, int):
            raise Refusal("ceil_mode=1 can be said from opset 10 on only, and the sizes aren't fixed")
        begin, end = pads[i], pads[len(kernel) + i]
        count = math.ceil((size + begin + end - k) / stride) + 1
        if (count - 1) * stride >= size + begin:
            count -= 1  # a window that would begin in the padding at the end
        pads[len(kernel) + i] = max(end, (count - 1) * stride + k - size - begin)
    what = f"ceil_mode became pads={pads}"
    return place.renew(node, what, ceil_mode=None, dilations=None, pads=pads, auto_pad=None)


@up(16, "RoiAlign")
def without_half_pixel(node: ir.Node, place: Place) -> Rewrite:
    """The old coordinates are named: ``output_half_pixel``."""
    return place.renew(node, "coordinate_transformation_mode=output_half_pixel, as it was",
                       coordinate_transformation_mode="output_half_pixel")  # fmt: skip


@down(16, "RoiAlign")
def half_pixel(node: ir.Node, place: Place) -> Rewrite:
    """Refused: any other coordinates than ``output_half_pixel``."""
    if place.attribute(node, "coordinate_transformation_mode", "half_pixel") != "output_half_pixel":
        raise Refusal("coordinate_transformation_mode=half_pixel can be said from opset 16 on only")
    return place.renew(node, "coordinate_transformation_mode is dropped", coordinate_transformation_mode=None)
