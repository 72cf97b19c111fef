"""Convolutions and poolings, of one to three axes. Imports torch: load it inside functions only.

Pads are worked out as ONNX defines them and added before, where torch's own would be others: they may differ at the two
ends of an axis, and ``ceil_mode`` lets a window hang over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from penstock.qat.operators._node import Node, Run, Untrainable, pairs

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@dataclass(frozen=True, slots=True)
class Window:
    """How a window moves: strides, dilations and pads of its axes; ``auto`` names the rule that pads go by instead."""

    strides: list[int] | None
    dilations: list[int] | None
    pads: list[int] | None
    auto: str
    ceil: bool

    def of(self, rank: int) -> tuple[list[int], list[int]]:
        """Return strides and dilations of ``rank`` axes."""
        return self.strides or [1] * rank, self.dilations or [1] * rank

    def padded(self, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
        """Return what is added at both ends of each axis, without what a window hangs over by."""
        strides, dilations = self.of(len(kernel))
        if self.auto in ("", "NOTSET"):
            return pairs(self.pads or [0] * 2 * len(kernel))
        if self.auto == "VALID":
            return [(0, 0)] * len(kernel)
        found = []
        for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
            small, large = total // 2, total - total // 2
            found.append((small, large) if self.auto == "SAME_UPPER" else (large, small))
        return found

    def overhang(self, sizes: Sequence[int], kernel: Sequence[int], pads: Sequence[tuple[int, int]]) -> list[int]:
        """Return by how much the last window of each axis hangs over the pads, with ``ceil_mode``."""
        strides, dilations = self.of(len(kernel))
        found = []
        for size, width, stride, dilation, (start, end) in zip(sizes, kernel, strides, dilations, pads, strict=True):
            span = (width - 1) * dilation + 1
            room = size + start + end - span
            number = (math.ceil(room / stride) if self.ceil else room // stride) + 1
            if self.ceil and (number - 1) * stride >= size + start:
                number -= 1  # a window that begins in the pads at the end is left out
            found.append(max((number - 1) * stride + span - (size + start + end), 0))
        return found


def _window(node: Node) -> Window:
    return Window(
        node.ints("strides"), node.ints("dilations"), node.ints("pads"), node.text("auto_pad", "NOTSET"),
        bool(node.integer("ceil_mode", 0)),
    )  # fmt: skip


def _pad(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    if not any(start or end for start, end in pads):
        return x
    return functional.pad(x, [one for pair in reversed(pads) for one in pair], value=value)


def _conv(node: Node) -> Run:
    window, group = _window(node), node.integer("group", 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = x.ndim - 2
        strides, dilations = window.of(rank)
        pads = window.padded(x.shape[2:], weight.shape[2:])
        if all(start == end for start, end in pads):
            own = [start for start, _ in pads]
            return _CONV[rank](x, weight, bias, strides, own, dilations, group)
        return _CONV[rank](_pad(x, pads), weight, bias, strides, [0] * rank, dilations, group)

    return run


def _conv_transpose(node: Node) -> Run:
    window, group, more = _window(node), node.integer("group", 1), node.ints("output_padding")
    if node.has("output_shape") or window.auto not in ("NOTSET", "VALID"):
        raise Untrainable("a ConvTranspose with output_shape or auto_pad isn't among what it knows")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = x.ndim - 2
        strides, dilations = window.of(rank)
        pads = window.padded(x.shape[2:], weight.shape[2:])
        extra = more or [0] * rank
        own = [min(pair) for pair in pads]
        made = _CONV_TRANSPOSE[rank](x, weight, bias, strides, own, extra, group, dilations)
        for axis, ((start, end), least) in enumerate(zip(pads, own, strict=True), 2):
            if start != end:
                made = made.narrow(axis, start - least, made.shape[axis] - (start - least) - (end - least))
        return made

    return run


def _max_pool(node: Node) -> Run:
    window, kernel = _window(node), node.ints("kernel_shape") or []

    def run(x: Tensor) -> Tensor:
        strides, dilations = window.of(len(kernel))
        pads = window.padded(x.shape[2:], kernel)
        over = window.overhang(x.shape[2:], kernel, pads)
        if not any(over) and all(a == b and a <= k // 2 for (a, b), k in zip(pads, kernel, strict=True)):
            own = [start for start, _ in pads]
            return _MAX_POOL[len(kernel)](x, kernel, strides, own, dilations)
        filled = _pad(x, [(a, b + more) for (a, b), more in zip(pads, over, strict=True)], -math.inf)
        return _MAX_POOL[len(kernel)](filled, kernel, strides, [0] * len(kernel), dilations)

    return run


def _average_pool(node: Node) -> Run:
    window, kernel, inclusive = _window(node), node.ints("kernel_shape") or [], node.integer("count_include_pad", 0)
    if any(one != 1 for one in window.dilations or []):
        raise Untrainable("an AveragePool with dilations isn't among what it knows")
    pool = _AVERAGE_POOL[len(kernel)]

    def run(x: Tensor) -> Tensor:
        strides, _ = window.of(len(kernel))
        pads = window.padded(x.shape[2:], kernel)
        over = window.overhang(x.shape[2:], kernel, pads)
        filled = _pad(x, [(a, b + more) for (a, b), more in zip(pads, over, strict=True)])
        made = pool(filled, kernel, strides)
        if filled is x or (inclusive and not any(over)):
            return made
        # the mean is over what counts: the image, and its pads where they are included
        ones = torch.ones_like(x[:1, :1])
        counted = _pad(_pad(ones, pads, 1.0 if inclusive else 0.0), [(0, more) for more in over])
        found: Tensor = made / pool(counted, kernel, strides)
        return found

    return run


def _global(function: Callable[..., Tensor]) -> Callable[[Node], Run]:
    def bind(node: Node) -> Run:
        return lambda x: function(x, dim=list(range(2, x.ndim)), keepdim=True)

    return bind


BINDERS: dict[str, Callable[[Node], Run]] = {
    "AveragePool": _average_pool, "Conv": _conv, "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global(torch.mean), "GlobalMaxPool": _global(torch.amax), "MaxPool": _max_pool,
}  # fmt: skip
