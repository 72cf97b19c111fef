"""Grids for blocks of weights: of the least squared error, and by half-quadratic splitting (HQQ).

Both are data-free and see the weights of a block alone, brought to at most 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.quantization.blocks import Form, integers

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

SHRUNK = (1.0, 0.95, 0.9)  # of the range of a block: a little is clipped where that makes the other errors smaller
NORM, BETA, KAPPA, ROUNDS = 0.7, 10.0, 1.01, 20  # of HQQ, as its authors have them


class _Best:
    """The grid of the least squared error so far, for each block."""

    def __init__(self, blocks: Array, form: Form) -> None:
        self.blocks, self.form = blocks, form
        shape = (blocks.shape[0], blocks.shape[2])
        self.error = np.full(shape, np.inf, np.float32)
        self.scale, self.zero = np.ones(shape, np.float32), np.full(shape, form.middle, np.float32)

    def tried(self, scale: Array, zero: Array) -> Array:
        """Keep a grid where it is better; return the integers less their zero points, (S, B, n) float32."""
        whole = integers(self.blocks / scale[:, None], zero[:, None], self.form)
        whole -= zero[:, None]
        error = np.square(whole * scale[:, None] - self.blocks).sum(axis=1)
        better = error < self.error
        self.error = np.where(better, error, self.error)
        self.scale, self.zero = np.where(better, scale, self.scale), np.where(better, zero, self.zero)
        return whole


def least_squares(blocks: Array, form: Form) -> tuple[Array, Array]:
    """Return the scales and zero points (S, n) of blocks (S, B, n) that give the least squared error of those tried.

    Tried are ranges that clip a little, with the zero points about the one that the extremes give (or, without zero
    points, scales of both signs), and for each the scale that fits its integers best: w·q / q·q.
    """
    best = _Best(blocks, form)
    for full, zero in _starts(blocks, form):
        for part in SHRUNK:
            scale = full * np.float32(part)
            best.tried(_fit(best.tried(scale, zero), blocks, scale), zero)
    return best.scale, best.zero


def _starts(blocks: Array, form: Form) -> list[tuple[Array, Array]]:
    """Return scales that hold the whole block, each with its zero points."""
    low, high = blocks.min(axis=1, initial=0), blocks.max(axis=1, initial=0)
    tiny = np.float32(np.finfo(np.float32).tiny)
    if form.zero == "none":
        middle = np.full(low.shape, form.middle, np.float32)
        even = np.maximum(np.maximum(-low, high) / (form.middle - 1), tiny)
        # the side of the larger extreme gets the number more that there is below zero
        uneven = np.where(-low > high, -low, -high) / form.middle
        return [(even, middle), (np.where(np.abs(uneven) < tiny, tiny, uneven), middle)]
    first = np.clip(np.rint(-low / np.maximum((high - low) / form.top, tiny)), 0, form.top)
    found = []
    for away in (-1, 0, 1):
        zero = np.clip(first + away, 0, form.top).astype(np.float32)
        above, below = form.top - zero, zero
        reach = np.maximum(
            np.where(above > 0, high / np.maximum(above, 1), 0), np.where(below > 0, -low / np.maximum(below, 1), 0)
        )
        found.append((np.maximum(reach, tiny), zero))
    return found


def _fit(whole: Array, aim: Array, scale: Array) -> Array:
    """Return the scales that bring integers (S, B, n) nearest to ``aim``; ``scale`` where all of them are 0."""
    length = np.square(whole).sum(axis=1)
    fitted = (whole * aim).sum(axis=1) / np.maximum(length, 1)
    tiny = np.finfo(np.float32).tiny
    found: Array = np.where((length > 0) & (np.abs(fitted) >= tiny), fitted, scale)
    return found


def half_quadratic(blocks: Array, form: Form) -> tuple[Array, Array]:
    """Return scales and zero points (S, n) of blocks (S, B, n) by half-quadratic splitting.

    The error W - W_r is split into a sparse part, its shrinkage of the norm p = 0.7, and a rest whose square the grid
    minimises; the two are alternated with a growing weight (Badri and Shaji, Half-Quadratic Quantization, 2023). Here
    errors are counted in steps, so that the shrinkage means the same for every block; the scale is fitted along with
    the zero point; it begins with the grid of least squares, and keeps the best of those that it passes.
    """
    scale, zero = least_squares(blocks, form)
    best, beta = _Best(blocks, form), BETA
    for _ in range(ROUNDS):
        whole = best.tried(scale, zero)
        step = np.abs(scale)[:, None]
        error = (blocks - whole * scale[:, None]) / step
        size = np.abs(error)
        sparse = np.sign(error) * np.maximum(size - (size + 1e-8) ** (NORM - 1) / beta, 0) * step
        aim = blocks - sparse
        if form.zero != "none":
            moved = (whole + zero[:, None] - aim / scale[:, None]).mean(axis=1)
            whole += zero[:, None]
            zero = np.clip(moved if form.zero == "float" else np.rint(moved), 0, form.top)
            whole -= zero[:, None]
        scale = _fit(whole, aim, scale)
        beta *= KAPPA
    return best.scale, best.zero
