"""Operators that move elements, and those that compute sizes. Imports torch: load it inside functions only.

Sizes are tensors in the processor's memory, whatever device the rest is on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from penstock.qat.operators._node import Node, Run, Untrainable, axes_of, pairs, together, whole


def _constant(node: Node) -> Run:
    import numpy as np

    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if node.has("value"):
        held = torch.from_numpy(np.array(node.attributes["value"].as_tensor().numpy()))
    elif name := next((one for one in kinds if node.has(one)), ""):
        held = torch.from_numpy(np.array(node.attributes[name].value, kinds[name]))
    else:
        raise Untrainable("a Constant of texts or of a sparse tensor isn't among what it knows")
    return lambda: held


def _shape(node: Node) -> Run:
    start, end = node.integer("start", 0), node.integer("end", 2**31)
    return lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _reshape(node: Node) -> Run:
    zero = bool(node.integer("allowzero", 0))

    def run(x: Tensor, shape: Tensor) -> Tensor:
        wanted = whole(shape)
        return x.reshape([x.shape[i] if size == 0 and not zero else size for i, size in enumerate(wanted)])

    return run


def _flatten(node: Node) -> Run:
    axis = node.integer("axis", 1)

    def run(x: Tensor) -> Tensor:
        first = math.prod(x.shape[: axis if axis >= 0 else axis + x.ndim])
        return x.reshape(first, x.numel() // first if first else math.prod(x.shape[axis:]))

    return run


def _transpose(node: Node) -> Run:
    order = node.ints("perm")
    return lambda x: x.permute(order if order is not None else list(reversed(range(x.ndim))))


def _concat(node: Node) -> Run:
    axis = node.integer("axis", 0)
    return lambda *tensors: torch.cat(together(*tensors), dim=axis)


def _split(node: Node) -> Run:
    axis, number = node.integer("axis", 0), node.outputs

    def run(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        if sizes is not None:
            return torch.split(x, whole(sizes), dim=axis)
        return torch.split(x, math.ceil(x.shape[axis] / number), dim=axis)

    return run


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    first, last = whole(starts), whole(ends)
    along = list(range(len(first))) if axes is None else whole(axes)
    strides = [1] * len(first) if steps is None else whole(steps)
    for start, end, axis, step in zip(first, last, along, strides, strict=True):
        size = x.shape[axis]
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
            continue
        # ends far below 0 mean "to the first": a slice of Python's would count them from the end
        start = min(start + size if start < 0 else start, size - 1)
        end = max(end + size if end < 0 else end, -1)
        x = x.index_select(axis, torch.arange(start, end, step, device=x.device))
    return x


def _squeeze(node: Node) -> Run:
    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = axes_of(node, axes, x.ndim)
        return x.squeeze(tuple(chosen)) if chosen else x.squeeze()

    return run


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    added = whole(axes)
    rank = x.ndim + len(added)
    for axis in sorted(one % rank for one in added):
        x = x.unsqueeze(axis)
    return x


def _gather(node: Node) -> Run:
    axis = node.integer("axis", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        at = axis % x.ndim
        x, index = together(x, index.long())
        index = torch.where(index < 0, index + x.shape[at], index)
        found = x.index_select(at, index.reshape(-1))
        return found.reshape(x.shape[:at] + index.shape + x.shape[at + 1 :])

    return run


def _gather_elements(node: Node) -> Run:
    axis = node.integer("axis", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        x, index = together(x, index.long())
        return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))

    return run


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    wanted = torch.broadcast_shapes(x.shape, whole(shape))  # type: ignore[no-untyped-call]  # untyped in torch
    return x.expand(wanted)


def _tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(whole(repeats))


def _pad(node: Node) -> Run:
    mode = node.text("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        raise Untrainable(f"a Pad of the mode {mode} isn't among what it knows")

    def run(x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        along = list(range(x.ndim)) if axes is None else [one % x.ndim for one in whole(axes)]
        chosen = dict(zip(along, pairs(whole(pads)), strict=True))
        if mode == "constant":
            every = [one for axis in reversed(range(x.ndim)) for one in chosen.get(axis, (0, 0))]
            return functional.pad(x, every, value=0.0 if value is None else value.item())
        for axis, (start, end) in chosen.items():
            if start or end:
                x = x.index_select(axis, _places(x.shape[axis], start, end, mode).to(x.device))
        return x

    return run


def _places(size: int, start: int, end: int, mode: str) -> Tensor:
    """Return which elements of an axis a padded one takes; pads below 0 take some away."""
    at = torch.arange(-start, size + end)
    if mode == "edge" or size == 1:
        return at.clamp(0, size - 1)
    at = at.abs() % (2 * (size - 1))
    return torch.where(at < size, at, 2 * (size - 1) - at)


def _constant_of_shape(node: Node) -> Run:
    import numpy as np

    held = node.attributes["value"].as_tensor().numpy() if node.has("value") else np.zeros(1, np.float32)
    value = torch.from_numpy(np.array(held))
    return lambda shape: value.reshape([1] * len(whole(shape))).expand(whole(shape)).clone()


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _depth_to_space(node: Node) -> Run:
    side, mode = node.integer("blocksize", 1), node.text("mode", "DCR")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if mode == "DCR":
            cut = x.reshape(n, side, side, c // side**2, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            cut = x.reshape(n, c // side**2, side, side, h, w).permute(0, 1, 4, 2, 5, 3)
        return cut.reshape(n, c // side**2, h * side, w * side)

    return run


def _space_to_depth(node: Node) -> Run:
    side = node.integer("blocksize", 1)

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        cut = x.reshape(n, c, h // side, side, w // side, side).permute(0, 3, 5, 1, 2, 4)
        return cut.reshape(n, c * side**2, h // side, w // side)

    return run


def _size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


def _plain(function: Callable[..., Tensor]) -> Callable[[Node], Run]:
    def bind(node: Node) -> Run:
        return function

    return bind


BINDERS: dict[str, Callable[[Node], Run]] = {
    "Concat": _concat, "Constant": _constant, "ConstantOfShape": _constant_of_shape, "DepthToSpace": _depth_to_space,
    "Expand": _plain(_expand), "Flatten": _flatten, "Gather": _gather, "GatherElements": _gather_elements,
    "Pad": _pad, "Range": _plain(_range), "Reshape": _reshape, "Shape": _shape, "Size": _plain(_size),
    "Slice": _plain(_slice), "SpaceToDepth": _space_to_depth, "Split": _split, "Squeeze": _squeeze,
    "Tile": _plain(_tile), "Transpose": _transpose, "Unsqueeze": _plain(_unsqueeze),
}  # fmt: skip
