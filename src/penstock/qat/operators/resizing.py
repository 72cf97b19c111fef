"""Resize, nearest and linear, axis by axis as ONNX defines it. Imports torch: load it inside functions only."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from penstock.qat.operators._node import Node, Run, Untrainable, whole

_PLACES: dict[str, Callable[[Tensor, float, int, int], Tensor]] = {
    "half_pixel": lambda at, scale, old, new: (at + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda at, scale, old, new: (at + 0.5) / scale - 0.5 if new > 1 else at * 0,
    "asymmetric": lambda at, scale, old, new: at / scale,
    "align_corners": lambda at, scale, old, new: at * (old - 1) / (new - 1) if new > 1 else at * 0,
    "half_pixel_symmetric": lambda at, scale, old, new: old / 2 * (1 - new / (scale * old)) + (at + 0.5) / scale - 0.5,
}
_NEAREST: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _resize(node: Node) -> Run:
    mode, places = node.text("mode", "nearest"), node.text("coordinate_transformation_mode", "half_pixel")
    rule, listed = node.text("nearest_mode", "round_prefer_floor"), node.ints("axes")
    if mode not in ("nearest", "linear") or places not in _PLACES:
        raise Untrainable(f"a Resize of the mode {mode} with {places} isn't among what it knows")
    node.only("antialias", 0, node.integer("antialias", 0))
    node.only("keep_aspect_ratio_policy", "stretch", node.text("keep_aspect_ratio_policy", "stretch"))

    def run(x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:
        axes = list(range(x.ndim)) if listed is None else [axis % x.ndim for axis in listed]
        if sizes is not None and sizes.numel():
            wanted = [(axis, new, new / x.shape[axis]) for axis, new in zip(axes, whole(sizes), strict=True)]
        else:
            assert scales is not None
            given = [float(one) for one in scales.tolist()]
            wanted = [(a, math.floor(x.shape[a] * scale), scale) for a, scale in zip(axes, given, strict=True)]
        for axis, new, scale in wanted:
            if new != x.shape[axis] or scale != 1:
                at = _PLACES[places](torch.arange(new, dtype=torch.float64), scale, x.shape[axis], new)
                x = _nearest(x, axis, _NEAREST[rule](at)) if mode == "nearest" else _linear(x, axis, at)
        return x

    return run


def _nearest(x: Tensor, axis: int, at: Tensor) -> Tensor:
    return x.index_select(axis, at.long().clamp(0, x.shape[axis] - 1).to(x.device))


def _linear(x: Tensor, axis: int, at: Tensor) -> Tensor:
    at = at.clamp(0, x.shape[axis] - 1)
    before = at.floor().long()
    after = (before + 1).clamp(max=x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    share = (at - before).to(x.dtype).reshape(shape).to(x.device)
    return x.index_select(axis, before.to(x.device)) * (1 - share) + x.index_select(axis, after.to(x.device)) * share


BINDERS: dict[str, Callable[[Node], Run]] = {"Resize": _resize}
