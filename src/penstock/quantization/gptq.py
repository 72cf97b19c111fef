"""GPTQ: round the weights of a layer one input after the other, and let those to come make up for each one's error.

What is made small is the error of the layer's output, ||X(W - W_q)||², which the second moments H = XᵀX of its inputs
give. Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ", arXiv 2210.17323.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.quantization.blocks import Blocked, Form, integers

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

DAMPING = 0.01  # of the mean square of an input, added to each: inputs that were not seen alone can't be told apart
TOGETHER = 128  # inputs whose errors are passed on to the later ones at once


class Moments:
    """The second moments (K, K) of a layer's inputs, added up while samples pass by."""

    __slots__ = ("rows", "total")

    def __init__(self, inputs: int) -> None:
        self.total = np.zeros((inputs, inputs))
        self.rows = 0

    def add(self, array: Array) -> None:
        """Take in inputs (..., K)."""
        rows = np.ascontiguousarray(array.reshape(-1, array.shape[-1]), np.float32)
        self.total += rows.T @ rows
        self.rows += len(rows)


def gptq(weights: Array, moments: Array, form: Form, scale: Array, zero: Array, *, order: bool = True) -> Blocked:
    """Round a matrix (K, N) on given grids, with the second moments (K, K) of its inputs.

    ``order``: the inputs of the largest squares come first, as those to come can't make up for the last ones' errors.
    An input that was always 0 is rounded to the nearest. Raises ``numpy.linalg.LinAlgError`` where the moments can't
    be inverted.
    """
    inputs = len(weights)
    damped = moments.astype(np.float64)
    squares = damped.diagonal().copy()
    mean = float(squares[squares > 0].mean()) if (squares > 0).any() else 1.0
    damped[np.diag_indices(inputs)] = np.where(squares > 0, squares, mean) + DAMPING * mean
    place = np.argsort(-damped.diagonal(), kind="stable") if order else np.arange(inputs)
    damped = damped[np.ix_(place, place)]
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    left = weights[place].astype(np.float32)
    block = place // form.size
    whole = np.empty(left.shape, np.uint8)
    for start in range(0, inputs, TOGETHER):
        end = min(start + TOGETHER, inputs)
        errors = np.empty((end - start, left.shape[1]), np.float32)
        for row in range(start, end):
            steps, none = scale[block[row]], zero[block[row]].astype(np.float32)
            found = integers(left[row] / steps, none, form)
            whole[row] = found
            errors[row - start] = (left[row] - (found - none) * steps) / upper[row, row]
            left[row + 1 : end] -= upper[row, row + 1 : end, None] * errors[row - start]
        left[end:] -= upper[start:end, end:].T @ errors
    back = np.empty_like(whole)
    back[place] = whole
    return Blocked(form, back, scale, zero)


def output_sqnr_db(weights: Array, rounded: Blocked, moments: Array) -> float | None:
    """Return signal over error of a layer's output in dB on the inputs that gave the moments; ``None`` for no error."""
    signal = _energy(weights, moments)
    error = _energy(weights - rounded.real(), moments)
    return None if error <= 0 or signal <= 0 else float(10 * np.log10(signal / error))


def _energy(weights: Array, moments: Array) -> float:
    return float(np.einsum("kn,kn->", weights, moments @ weights.astype(np.float64)))
