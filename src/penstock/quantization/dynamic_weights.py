"""Weights of dynamically quantized layers: integers with a scale and a zero point for each column of the result.

``real = (integer - zero) · scale``. Fused kernels take zero points of weights at no cost, and a column reaches further
to one side than to the other; the kernel of LSTMs wants them to be 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.quantization.grid import SMALLEST, Grid, of_weights

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

SHRINKS = np.linspace(1.0, 0.7, 13)  # parts of the range of a column that are tried


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """Weights as a layer holds them. ``sqnr_db`` is what rounding left, ``None`` where it changed nothing."""

    whole: Array
    scale: Array
    zero: Array
    sqnr_db: float | None


def matrix(real: Array, *, per_column: bool = True, bits: int = 8, even: bool = False) -> Rounded:
    """Round a matrix ``(terms, columns)``. ``even``: let the errors in a column add up to nothing."""
    grid = of_columns(real, per_column=per_column, bits=bits)
    whole = balanced(real, grid) if even else grid.quantize(real)
    return Rounded(whole, grid.scale, grid.zero.astype(np.int8), _sqnr(grid.dequantize(whole), real))


def recurrent(real: Array, *, per_column: bool = True, bits: int = 8) -> Rounded:
    """Round an LSTM's weights ``(directions, 4·hidden, inputs)``; the integers have the last two axes swapped."""
    grids = [of_weights(one, 0 if per_column else None, bits=bits) for one in real]
    whole = np.stack([grid.quantize(one) for grid, one in zip(grids, real, strict=True)])
    back = np.stack([grid.dequantize(one) for grid, one in zip(grids, whole, strict=True)])
    scale = np.stack([grid.scale for grid in grids])
    turned = np.ascontiguousarray(whole.transpose(0, 2, 1))
    return Rounded(turned, scale, np.zeros(scale.shape, np.int8), _sqnr(back, real))


def kernel(real: Array, *, per_column: bool = True, bits: int = 8) -> Rounded:
    """Round a convolution's weights ``(channels, ...)`` to uint8; the scales stand beside a result of that rank.

    ConvInteger of ONNX Runtime has a slow loop alone for signed weights. Two of uint8 are multiplied in 16 bits and
    added in 32, on every CPU: ``bits`` makes no difference here.
    """
    grid = of_weights(real, 0 if per_column else None)
    whole = grid.quantize(real)
    scale = grid.scale.reshape((1, -1, *[1] * (real.ndim - 2)))
    unsigned = (whole.astype(np.int16) + 128).astype(np.uint8)
    return Rounded(unsigned, scale, np.array(128, np.uint8), _sqnr(grid.dequantize(whole), real))


def _sqnr(got: Array, want: Array) -> float | None:
    noise = float(np.square(got.astype(np.float64) - want).sum())
    signal = float(np.square(want, dtype=np.float64).sum())
    return 10 * float(np.log10(signal / noise)) if noise and signal else None


def of_columns(real: Array, *, per_column: bool = True, bits: int = 8) -> Grid:
    """Choose a grid for a matrix ``(terms, columns)``: of the ranges tried, the one of the smallest squared error.

    The integers are of so many ``bits``, signed: a zero point moves them within these.
    """
    bottom, top = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    flat = real.astype(np.float32) if per_column else real.astype(np.float32).reshape(-1, 1)
    low, high = np.minimum(flat.min(axis=0), 0), np.maximum(flat.max(axis=0), 0)
    best = np.full(flat.shape[1], np.inf)
    scale, zero = np.zeros(flat.shape[1], np.float32), np.zeros(flat.shape[1], np.int64)
    for part in SHRINKS:
        tried = np.maximum((high - low) * np.float32(part) / (top - bottom), SMALLEST).astype(np.float32)
        point = np.clip(np.rint(bottom - low * np.float32(part) / tried), bottom, top)
        whole = np.clip(np.rint(flat / tried) + point, bottom, top)
        error = np.square((whole - point) * tried - flat).sum(axis=0)
        better = error < best * (1 - 1e-9)
        best[better], scale[better], zero[better] = error[better], tried[better], point[better]
    if per_column:
        return Grid("int8", scale, zero, 1, bottom, top)
    return Grid("int8", scale.reshape(()), zero.reshape(()), None, bottom, top)


def balanced(real: Array, grid: Grid) -> Array:
    """Round a matrix ``(terms, columns)`` so that the errors in each column add up to nearly nothing.

    A result is off by Σ x·e with e the errors of a column. Where all x are positive, as behind a Relu, the mean of x
    times Σ e is most of that. So of the weights that were rounded the way of the sum, those are rounded the other way
    that were nearest to a half: as many as the sum has steps (SQuant, arXiv 2202.07471, its step for channels).
    """
    scale, zero = grid.spread(2)
    exact = real / scale + zero
    whole = grid.quantize(real).astype(np.int64)
    error = whole - exact
    surplus = np.rint(error.sum(axis=0)).astype(np.int64)
    step = -np.sign(surplus)
    moved = whole + step
    able = (moved >= grid.low) & (moved <= grid.high) & (np.abs(moved - exact) < 1)
    order = np.argsort(np.where(able, error * step, np.inf), axis=0, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(len(order))[:, None], axis=0)
    most = np.minimum(np.abs(surplus), able.sum(axis=0))
    found: Array = np.where(rank < most, moved, whole).astype(np.int8)
    return found
