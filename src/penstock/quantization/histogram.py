"""Histograms of all values that pass by, in bounded memory, however many there are and whatever outlier comes last.

A bin is a sign and the first ten bits after the binary point of a float32, so bins are as fine as 1/1024 of a value at
any magnitude and are never cut anew: in a histogram of equal bins one outlier makes all of them coarse. Values below
2⁻²⁴ of the largest lie in one bin, the first: no grid of 16 bits or less can tell them from 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

_SHIFT = 13  # of the 23 bits behind the point these aren't looked at
_OCTAVE = 1 << (23 - _SHIFT)  # bins from a power of two to the next
_OCTAVES = 24
_MAGNITUDE = np.int32(0x7FFFFFFF)  # of a float32's bits
_SIGN = np.int32(31)  # shifted by so much, they are -1 below 0, and 0
_BLOCK = 1 << 16  # values at a time: what is computed of them stays in the processor's cache


class Histogram:
    """Counts by magnitude, of values at or above 0 and of those below."""

    __slots__ = ("_base", "_counts", "count", "zeros")

    def __init__(self) -> None:
        self._base = 0  # the key of the first bin
        self._counts = np.zeros((2, 0), np.int64)
        self.count = 0
        self.zeros = 0  # exactly 0: they lie on every grid

    def add(self, values: Array, low: float, high: float) -> None:
        """Count finite float32 values, of which none lies below ``low`` or above ``high``."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        self._reach(int(np.float32(max(abs(low), abs(high))).view(np.uint32)) >> _SHIFT)
        width, sides = self._counts.shape[1], 2 if low < 0 else 1
        block = min(flat.size, _BLOCK)
        # each step writes where the one before it did, in 32 bits: the loop is bound by what it moves
        keys, below = np.empty(block, np.int32), np.empty(block, np.int32)
        for start in range(0, flat.size, _BLOCK):
            part = flat[start : start + _BLOCK].view(np.int32)
            key, sign = keys[: part.size], below[: part.size]
            np.bitwise_and(part, _MAGNITUDE, out=key)
            self.zeros += part.size - int(np.count_nonzero(key))
            key >>= np.int32(_SHIFT)
            np.maximum(key, np.int32(self._base), out=key)
            key -= np.int32(self._base)
            if sides == 2:
                np.right_shift(part, _SIGN, out=sign)
                sign &= np.int32(width)
                key += sign
            self._counts[:sides] += np.bincount(key, minlength=sides * width).reshape(sides, width)
        self.count += flat.size

    def _reach(self, top: int) -> None:
        """Make bins up to the key ``top``; what becomes too small for a bin of its own goes into the first."""
        base = max(self._base, top + 1 - _OCTAVES * _OCTAVE, 0)
        width = max(top + 1, self._base + self._counts.shape[1]) - base
        if base == self._base and width == self._counts.shape[1]:
            return
        counts = np.zeros((2, width), np.int64)
        gone = min(base - self._base, self._counts.shape[1])
        kept = self._counts[:, gone:]
        counts[:, : kept.shape[1]] = kept
        counts[:, 0] += self._counts[:, :gone].sum(axis=1)
        self._base, self._counts = base, counts

    def bins(self) -> tuple[Array, Array]:
        """Return values, ascending, and how often each was met; a bin's value is its middle, that of the first 0."""
        width = self._counts.shape[1]
        keys = (np.arange(width, dtype=np.uint32) + np.uint32(self._base)) << np.uint32(_SHIFT)
        middle = (keys + np.uint32(1 << (_SHIFT - 1))).view(np.float32).astype(np.float64)
        if width:
            middle[0] = 0.0
        values = np.concatenate([-middle[::-1], middle])
        counts = np.concatenate([self._counts[1, ::-1], self._counts[0]])
        met = counts > 0
        return values[met], counts[met]

    def state(self) -> tuple[int, int, Array]:
        """Return all that it holds: the first key, the zeros, and the counts (2, n), int64."""
        return self._base, self.zeros, self._counts

    @classmethod
    def of_state(cls, base: int, zeros: int, counts: Array) -> Histogram:
        """Make one of what :meth:`state` gave."""
        made = cls()
        made._base, made.zeros, made._counts = base, zeros, counts
        made.count = int(counts.sum())
        return made

    def coarse(self, number: int = 256) -> tuple[list[float], list[int]]:
        """Return the edges and counts of ``number`` equal bins, for a record or a figure."""
        values, counts = self.bins()
        if not len(values):
            return [0.0], []
        found, edges = np.histogram(values, number, weights=counts)
        return [float(edge) for edge in edges], [round(float(one)) for one in found]
