"""Rounding weights to the grid so that a layer's result stays, rather than each weight.

With W the weights and q what the layer reads in the quantized model, the error is E|W·q - Ŵ·q|², a quadratic form in
W - Ŵ with the matrix H = E[q·qᵀ] (about its mean: the mean of the error goes into the bias). Two steps, neither by
gradients:

1. W is rounded column by column, and what the rounding of the columns before did is made up for: with H = U·D·Uᵀ, U
   upper triangular with ones on its diagonal, column k is rounded after (W - Ŵ)·U has been added to it, summed over the
   columns before (Frantar et al., arXiv 2210.17323; in the form of Chee et al., arXiv 2307.13304).
2. Each column is rounded again where that lowers the error, a few times over: a descent by coordinates on the form
   whose minimum Nagel et al., arXiv 2004.10568, look for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

# of the mean of the diagonal: what is known of some samples isn't believed further (at 0.01 three models of ten lost up
# to 0.9 dB on other samples; from 0.1 to 0.5 hardly anything changes)
DAMPING = 0.1
BLOCK = 64  # columns that are worked on before what they do is carried over to all others
SWEEPS = 3


def damped(square: Array) -> Array:
    """Return a second moment with a little of the mean variance added to each."""
    diagonal = float(np.trace(square)) / max(len(square), 1)
    found: Array = square + np.eye(len(square)) * max(DAMPING * diagonal, 1e-12)
    return found


def rounded(real: Array, steps: Array, square: Array, top: int) -> Array:
    """Return integers in ``[-top, top]`` for weights (outputs, k) with a step for each output; ``square`` is (k, k)."""
    held = damped(square)
    scaled = real / steps[:, None]
    whole = _fed_back(scaled, held, top)
    return _descended(whole, scaled, held.astype(np.float32), top)


def _fed_back(real: Array, square: Array, top: int) -> Array:
    """Round column by column, those of most variance first, and let later ones make up for the error."""
    order = np.argsort(-np.diag(square), kind="stable")
    turned = order[::-1]
    lower = np.linalg.cholesky(square[np.ix_(turned, turned)])
    upper = np.ascontiguousarray(lower[::-1, ::-1])  # H = upper·upperᵀ in the order of the columns
    upper = (upper / np.diag(upper)).astype(np.float32)
    left = real[:, order].astype(np.float32)
    whole, error = np.zeros_like(left), np.zeros_like(left)
    for start in range(0, left.shape[1], BLOCK):
        stop = min(start + BLOCK, left.shape[1])
        fed = error[:, :start] @ upper[:start, start:stop]
        for j in range(start, stop):
            value = left[:, j] + fed[:, j - start] + error[:, start:j] @ upper[start:j, j]
            whole[:, j] = np.clip(np.rint(value), -top, top)
            error[:, j] = left[:, j] - whole[:, j]
    found = np.empty_like(whole)
    found[:, order] = whole
    return found


def _descended(whole: Array, real: Array, square: Array, top: int) -> Array:
    """Round each column to its best, given all others, in several sweeps; the error never grows."""
    whole = whole.copy()
    diagonal = np.diag(square)
    for _ in range(SWEEPS):
        moved = 0
        slope = (whole - real).astype(np.float32) @ square
        for start in range(0, whole.shape[1], BLOCK):
            stop = min(start + BLOCK, whole.shape[1])
            before = whole[:, start:stop].copy()
            inner, part = square[start:stop, start:stop], slope[:, start:stop]
            for j in range(stop - start):
                value = whole[:, start + j]
                better = np.clip(np.rint(value - part[:, j] / diagonal[start + j]), -top, top)
                change = better - value
                if change.any():
                    moved += int(np.count_nonzero(change))
                    part += np.outer(change, inner[j])
                    whole[:, start + j] = better
            change = whole[:, start:stop] - before
            if change.any():
                slope[:, stop:] += change @ square[start:stop, stop:]
                slope[:, :start] += change @ square[start:stop, :start]
        if not moved:
            break
    return whole
