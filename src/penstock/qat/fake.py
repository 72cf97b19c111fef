"""Rounding to a grid in the forward pass, and gradients as if there were none. Imports torch.

Forward it is :meth:`penstock.quantization.grid.Grid.fake` to the bit: a real division, halves to even. Backward:

- of what is rounded: 1 within the grid, 0 beyond its ends (the straight-through estimator, clipped);
- of the scale s: (q − x/s) within, q beyond, q being the integer without its zero point (Esser et al., Learned Step
  Size Quantization, arXiv 1902.08153, eq. 3);
- of the zero point z: 0 within, −s beyond (Bhalgat et al., LSQ+, arXiv 2004.09576).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class _Rounded(torch.autograd.Function):
    """A tensor on a grid of one scale. ``low`` and ``high`` bound the integers, ``ease`` scales the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int, ease: float) -> Tensor:
        middle = round(zero.item())
        made = torch.div(x, scale).round_().clamp_(low - middle, high - middle).mul_(scale)
        ctx.save_for_backward(x, scale, made)
        step = scale.item()
        # a grid that ends at 0 clips there as a Relu does, which may have been left out before it
        least = (low - middle - 0.5) * step if low < middle else 0.0
        ctx.bounds = least, (high - middle + 0.5) * step
        ctx.ease = ease
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,) = gradients
        x, scale, made = ctx.saved_tensors
        within = torch.ops.aten.hardtanh_backward(given, x, *ctx.bounds)
        for_scale = for_zero = None
        if ctx.needs_input_grad[1]:
            for_scale = (_dot(given, made) - _dot(within, x)) / scale * ctx.ease
        if ctx.needs_input_grad[2]:
            for_zero = (within.sum() - given.sum()) * scale * ctx.ease
        return within, for_scale, for_zero, None, None, None


class _RoundedByChannel(torch.autograd.Function):
    """A tensor on a symmetric grid with a scale for each index of ``axis``: ``scale`` is shaped to broadcast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int, ease: float) -> Tensor:
        made = torch.div(x, scale).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(x, scale, made)
        ctx.bounds, ctx.ease = (low - 0.5, high + 0.5), ease
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (given,) = gradients
        x, scale, made = ctx.saved_tensors
        low, high = ctx.bounds
        within = given * ((x >= low * scale) & (x <= high * scale))
        for_scale = None
        if ctx.needs_input_grad[1]:
            each = given * made - within * x
            others = [i for i in range(x.ndim) if scale.shape[i] == 1] if scale.ndim else list(range(x.ndim))
            for_scale = each.sum(dim=others, keepdim=bool(scale.ndim)) / scale * ctx.ease
        return within, for_scale, None, None, None


def rounded(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int, *, samples: int = 1) -> Tensor:
    """Round a tensor to a grid of one ``scale`` and one ``zero`` point, rounded itself; both of shape ``()``.

    ``samples`` is how many samples the tensor holds: the gradient of the scale is eased by 1/√(elements · steps), of
    one sample, so that scales and weights move alike (Esser et al., section 2.2).
    """
    found: Tensor = _Rounded.apply(x, scale, zero, low, high, _ease(x.numel() // max(samples, 1), high))  # type: ignore[no-untyped-call]  # untyped in torch
    return found


def rounded_by_channel(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Round weights to a symmetric grid. ``scale`` has the rank of ``x``, or none, and broadcasts with it."""
    ease = _ease(x.numel() // max(scale.numel(), 1), high)
    found: Tensor = _RoundedByChannel.apply(x, scale, low, high, ease)  # type: ignore[no-untyped-call]  # untyped in torch
    return found


def _ease(elements: int, high: int) -> float:
    return 1.0 / math.sqrt(max(elements, 1) * max(high, 1))


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the sum of products, without copies where both lie in memory in the same order."""
    if one.stride() == other.stride() and _dense(one) and one.device.type == "cpu":
        flat = (one.numel(),), (1,)
        return torch.dot(one.as_strided(*flat, one.storage_offset()), other.as_strided(*flat, other.storage_offset()))
    return (one * other).sum()


def _dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
