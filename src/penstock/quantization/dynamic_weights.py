"""Weights of dynamically quantized layers: signed integers with a scale and a zero point for each column.

``real = (integer - zero) · scale``. Fused kernels take zero points of weights at no cost, and a column reaches further
to one side than to the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.quantization.grid import SMALLEST, Grid

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

LOW, HIGH = -128, 127
SHRINKS = np.linspace(1.0, 0.7, 13)  # parts of the range of a column that are tried


def of_columns(real: Array, *, per_column: bool = True) -> Grid:
    """Choose a grid for a matrix ``(terms, columns)``: of the ranges tried, the one of the smallest squared error."""
    flat = real.astype(np.float32) if per_column else real.astype(np.float32).reshape(-1, 1)
    low, high = np.minimum(flat.min(axis=0), 0), np.maximum(flat.max(axis=0), 0)
    best = np.full(flat.shape[1], np.inf)
    scale, zero = np.zeros(flat.shape[1], np.float32), np.zeros(flat.shape[1], np.int64)
    for part in SHRINKS:
        tried = np.maximum((high - low) * np.float32(part) / (HIGH - LOW), SMALLEST).astype(np.float32)
        point = np.clip(np.rint(LOW - low * np.float32(part) / tried), LOW, HIGH)
        whole = np.clip(np.rint(flat / tried) + point, LOW, HIGH)
        error = np.square((whole - point) * tried - flat).sum(axis=0)
        better = error < best * (1 - 1e-9)
        best[better], scale[better], zero[better] = error[better], tried[better], point[better]
    if per_column:
        return Grid("int8", scale, zero, 1, LOW, HIGH)
    return Grid("int8", scale.reshape(()), zero.reshape(()), None, LOW, HIGH)
