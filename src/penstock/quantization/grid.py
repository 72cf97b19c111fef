"""Grids of integers: ``real = (integer - zero) · scale``, by one scale, or by one for each index of an axis.

Quantizing is ``saturate(round(real / scale) + zero)`` with halves to even, as ONNX's QuantizeLinear defines it. Every
grid holds 0 exactly: padding and Relu give it, and an error there would be a constant one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

SPANS: dict[str, tuple[int, int]] = {
    "int4": (-8, 7), "uint4": (0, 15), "int8": (-128, 127), "uint8": (0, 255),
    "int16": (-32768, 32767), "uint16": (0, 65535), "int32": (-(1 << 31), (1 << 31) - 1),
}  # fmt: skip
_BLOCK = 1 << 16  # weights at a time
SMALLEST = float(np.finfo(np.float32).tiny)  # a smaller scale would be subnormal, which runtimes may flush to zero


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Scale and zero point, of shape ``()``, or ``(n,)`` along ``axis``; ``low`` and ``high`` bound the integers."""

    dtype: str
    scale: Array  # float32
    zero: Array  # integers
    axis: int | None = None
    low: int = 0
    high: int = 0

    @property
    def bottom(self) -> float:
        """The smallest real number that it holds (of its first channel)."""
        return float((self.low - int(self.zero.flat[0])) * float(self.scale.flat[0]))

    @property
    def top(self) -> float:
        """The largest real number that it holds (of its first channel)."""
        return float((self.high - int(self.zero.flat[0])) * float(self.scale.flat[0]))

    def spread(self, rank: int) -> tuple[Array, Array]:
        """Return scale and zero point in a shape that broadcasts with a tensor of ``rank``."""
        if self.axis is None:
            return self.scale, self.zero
        shape = [1] * rank
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero.reshape(shape)

    def quantize(self, real: Array) -> Array:
        """Return the integers in the grid's type, those of 4 bits in int8."""
        scale, zero = self.spread(real.ndim)
        whole = np.clip(np.rint(real / scale) + zero, self.low, self.high)
        found: Array = whole.astype(np.int8 if self.dtype in ("int4", "uint4") else self.dtype)
        return found

    def dequantize(self, whole: Array) -> Array:
        """Return the real numbers, float32."""
        scale, zero = self.spread(whole.ndim)
        found: Array = (whole.astype(np.float32) - zero.astype(np.float32)) * scale
        return found

    def fake(self, real: Array) -> Array:
        """Quantize and dequantize."""
        return self.dequantize(self.quantize(real))


def of_range(low: float, high: float, dtype: str, *, symmetric: bool = False) -> Grid:
    """Make the grid of one scale that holds ``[low, high]``, widened to hold 0."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    bottom, top = SPANS[dtype]
    if symmetric:
        middle = 0 if bottom < 0 else (top + 1) // 2
        scale = max(max(-low, high) / (top - middle), SMALLEST)
        lowest = middle - (top - middle)
        return Grid(dtype, np.array(scale, np.float32), np.array(middle), None, lowest, top)
    scale = max((high - low) / (top - bottom), SMALLEST)
    zero = int(np.clip(np.rint(bottom - low / scale), bottom, top))
    return Grid(dtype, np.array(scale, np.float32), np.array(zero), None, bottom, top)


def of_weights(
    weights: Array, axis: int | None, *, bits: int = 8, least: Array | None = None, shrink: bool = True
) -> Grid:
    """Make a symmetric signed grid for weights, with a scale for each index of ``axis`` (``None``: one for all).

    With ``shrink`` each scale is the one of 24 between 0.7 and 1 times the largest weight's that gives the smallest
    squared error. ``least`` are scales that must not be fallen below, of the shape of the scales.
    """
    top = (1 << (bits - 1)) - 1
    flat = weights.reshape(1, -1) if axis is None else np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    flat = flat.astype(np.float32)
    full = np.maximum(np.abs(flat).max(axis=1, initial=0.0) / top, SMALLEST).astype(np.float32)
    scale = _shrunk(flat, full, top) if shrink and flat.size else full
    if least is not None:
        scale = np.maximum(scale, least.astype(np.float32))
    shaped = scale.reshape(()) if axis is None else scale
    return Grid("int4" if bits <= 4 else "int8", shaped, np.zeros(shaped.shape, np.int64), axis, -top, top)


def _shrunk(rows: Array, full: Array, top: int) -> Array:
    """Return of 24 scales between 0.7 and 1 times ``full``, (n,), those that round ``rows`` with the least error.

    Rows are gone through a few at a time, so that what is computed of them stays in the processor's cache.
    """
    factors = np.linspace(0.7, 1.0, 25)[1:][::-1].astype(np.float32)
    scale = full.copy()
    some = max(1, _BLOCK // rows.shape[1])
    for start in range(0, len(rows), some):
        part, ends = rows[start : start + some], full[start : start + some]
        steps, near = np.empty_like(part), np.empty_like(part)
        best = np.full(len(part), np.inf)
        for factor in factors:
            tried = np.maximum(ends * factor, SMALLEST).astype(np.float32)
            np.divide(part, tried[:, None], out=steps)
            np.rint(steps, out=near)
            np.clip(near, -top, top, out=near)
            near -= steps
            error = np.einsum("ij,ij->i", near, near) * np.square(tried, dtype=np.float64)
            better = error < best * (1 - 1e-9)
            best[better], scale[start : start + some][better] = error[better], tried[better]
    return scale
