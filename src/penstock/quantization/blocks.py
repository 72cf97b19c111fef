"""Weights in blocks: integers of 4 or 8 bits with a scale, and perhaps a zero point, for each block of a column.

A column holds the weights of one output; a block is a run of its inputs. Here integers are unsigned, 0 to 2^bits - 1,
and ``real = (integer - zero) · scale``. Without zero points zero is the middle, 2^(bits - 1), and a scale may be
negative: that puts the one number more that a side has on the side where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from penstock.quantization.grid import SMALLEST

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]
    # from blocks (S, B, n) float32, none above 1, to their scales and zero points, (S, n) each
    Fit = Callable[[Array, "Form"], tuple[Array, Array]]

Zero = Literal["none", "integer", "float"]
SLAB = 1 << 20  # weights that are worked on at once, which bounds the memory for intermediate results


@dataclass(frozen=True, slots=True)
class Form:
    """How weights are stored: bits of each, how many of a column share a scale, and what stands for zero."""

    bits: int
    size: int
    zero: Zero = "none"

    @property
    def top(self) -> int:
        """The largest integer."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """What stands for zero without zero points."""
        return 1 << (self.bits - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Blocked:
    """A matrix (K, N) of weights in blocks: integers (K, N) uint8, scales and zero points (ceil(K / size), N)."""

    form: Form
    whole: Array
    scale: Array  # float32
    zero: Array  # uint8, or float32

    def real(self) -> Array:
        """Return the weights that these stand for, (K, N) float32."""
        found = self.whole.astype(np.float32)
        found -= spread(self.zero.astype(np.float32), self.form.size, len(found))
        found *= spread(self.scale, self.form.size, len(found))
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of the integers, the scales and the zero points."""
        inner = {"none": 0, "integer": self.form.bits, "float": 32}[self.form.zero]
        return (self.whole.size * self.form.bits + self.scale.size * (32 + inner) + 7) // 8


def split(weights: Array, size: int) -> Array:
    """Cut columns (K, N) into blocks (S, size, N), the last one filled up with zeros."""
    rows, columns = weights.shape
    count = -(-rows // size)
    if count * size == rows:
        return weights.reshape(count, size, columns)
    filled = np.zeros((count * size, columns), weights.dtype)
    filled[:rows] = weights
    return filled.reshape(count, size, columns)


def spread(values: Array, size: int, rows: int) -> Array:
    """Give each of ``rows`` its block's value: (S, N) to (rows, N)."""
    return np.repeat(values, size, axis=0)[:rows]


def grids(weights: Array, form: Form, fit: Fit) -> tuple[Array, Array]:
    """Choose scales (float32) and zero points (uint8, or float32) for the blocks of a matrix (K, N): (S, N) each."""
    columns = weights.shape[1]
    step = max(1, SLAB // max(1, len(weights)))
    parts = [_fitted(weights[:, start : start + step], form, fit) for start in range(0, columns, step)]
    return np.concatenate([part[0] for part in parts], axis=1), np.concatenate([part[1] for part in parts], axis=1)


def _fitted(weights: Array, form: Form, fit: Fit) -> tuple[Array, Array]:
    blocks = split(weights.astype(np.float32), form.size)
    most = np.abs(blocks).max(axis=1)
    unit = np.where(most > 0, most, 1)
    scale, zero = fit(blocks / unit[:, None], form)
    scale = (scale * unit).astype(np.float32)
    scale = np.where(np.abs(scale) < SMALLEST, np.copysign(np.float32(SMALLEST), scale), scale)
    return scale, zero.astype(np.float32 if form.zero == "float" else np.uint8)


def nearest(weights: Array, form: Form, scale: Array, zero: Array) -> Blocked:
    """Round each weight of a matrix (K, N) to the nearest that its block's grid holds, halves to even."""
    whole = np.empty(weights.shape, np.uint8)
    step = max(1, SLAB // max(1, weights.shape[1])) // form.size * form.size or form.size
    for start in range(0, len(weights), step):
        part, first = weights[start : start + step], start // form.size
        rows = slice(first, first + -(-len(part) // form.size))
        scales = spread(scale[rows], form.size, len(part))
        zeros = spread(zero[rows].astype(np.float32), form.size, len(part))
        whole[start : start + step] = integers(part / scales, zeros, form)
    return Blocked(form, whole, scale, zero)


def integers(steps: Array, zero: Array, form: Form) -> Array:
    """Return the nearest integers of real numbers that are given in steps of the scale, as floats."""
    # an integer zero point is added after rounding, as QuantizeLinear does it; for a real one the sum is rounded
    moved = np.rint(steps + zero) if form.zero == "float" else np.rint(steps) + zero
    found: Array = np.clip(moved, 0, form.top)
    return found


def packed(whole: Array) -> Array:
    """Pack integers of 4 bits, two in a byte, the first in the lower half; an odd last axis is filled up with 0.

    (..., n) to (..., ceil(n / 2)) uint8. This is the layout of ONNX's INT4 and UINT4 and of MatMulNBits alike.
    """
    low = whole.astype(np.uint8) & 0xF
    if low.shape[-1] % 2:
        low = np.concatenate([low, np.zeros_like(low[..., :1])], axis=-1)
    found: Array = low[..., 0::2] | (low[..., 1::2] << 4)
    return found
