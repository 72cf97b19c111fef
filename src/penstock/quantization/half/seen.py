"""What is seen of a float tensor while samples pass by, as far as 16 bits are concerned: in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.calibration import Batches
from penstock.quantization import probe
from penstock.quantization.half.binding import is_float32
from penstock.quantization.half.types import Half
from penstock.quantization.statistics import Statistics

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = np.ndarray[Any, np.dtype[Any]]

GLANCE = 64  # values that are looked at before all are


class Seen:
    """The extremes of the finite values, the shape of the last batch, and whether all values were whole numbers."""

    __slots__ = ("high", "inexact", "infinite", "low", "shape", "small", "tensor", "watched", "whole")

    def __init__(self, tensor: str, *, watched: bool = False) -> None:
        self.tensor, self.watched = tensor, watched
        self.small = False  # of a watched tensor: some values lie so near to 0 that 16 bits have few bits for them
        self.low, self.high = np.inf, -np.inf
        self.shape: tuple[int, ...] = ()
        self.infinite = False  # infinite values passed by, which a 16-bit float has too
        self.whole = True
        self.inexact = False  # one of the values was whole, and isn't the same number in 16 bits

    @property
    def reach(self) -> float:
        """The largest magnitude; 0 where nothing was seen."""
        return max(self.high, -self.low, 0.0)

    @property
    def size(self) -> int:
        """Elements in a batch."""
        return int(np.prod(self.shape, dtype=np.int64))

    def add(self, array: Array, first: int, count: int, half: Half, numbers: Array | None = None) -> None:
        """Take in a batch whose first sample has the number ``first``. Raises ``InputError`` for NaN."""
        self.shape = array.shape
        if not array.size:
            return
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            if np.isnan(low) or np.isnan(high):
                Statistics(self.tensor, histogram=False, numbers=numbers).add(
                    array, first, count
                )  # which tells the sample
            self.infinite = True
            array = array[np.isfinite(array)]
            if not array.size:
                return
            low, high = float(array.min()), float(array.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.whole:
            self._look_for_fractions(array, half)
        if self.watched and not self.small:
            near = np.abs(array)
            self.small = bool(((near < half.normal) & (near > 0)).any())

    def _look_for_fractions(self, array: Array, half: Half) -> None:
        flat = array.reshape(-1)
        self.whole = all(bool((part == np.rint(part)).all()) for part in (flat[:GLANCE], flat))
        if self.whole and self.reach > half.exact and not self.inexact:
            self.inexact = bool((half.rounded(flat) != flat).any())

    def counts(self) -> bool:
        """Whether it holds whole numbers alone, some of which 16 bits don't hold: positions, counts, indices."""
        return self.whole and self.inexact


def look(
    model: ir.Model, batches: Batches, half: Half, watched: Collection[str] = (),
    done: Callable[[int, int], None] | None = None,
) -> dict[str, Seen]:  # fmt: skip
    """Look at all float tensors of the main graph, by name; at those that are ``watched`` for very small values too.

    Raises ``InputError`` for NaN, or without samples.
    """
    floats = [name for name, value in probe.values(model).items() if is_float32(value)]
    seen = {name: Seen(name, watched=name in watched) for name in floats}

    def visit(name: str, array: Array, first: int, count: int) -> None:
        if array.dtype == np.float32:
            seen[name].add(array, first, count, half, batches.numbers)

    probe.observe(model, floats, batches, visit, done=done)
    return seen


def copied(model: ir.Model) -> ir.Model:
    """Copy a model to look into it. What it declares of its outputs may be untrue, and misleads when they are inner."""
    copy = model.clone()
    for value in copy.graph.outputs:
        if value.producer() is not None:
            value.shape = None
    return copy


def decibels(signal: float, noise: float) -> float:
    """Return 10 log₁₀ of a ratio of energies; infinite without noise, minus infinity where it is beyond measure."""
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 and np.isfinite(noise) else -float("inf")


class Constant:
    """What a constant would lose in 16 bits."""

    __slots__ = ("counts", "flushed", "reach", "size", "smallest", "sqnr_db")

    def __init__(self, array: Array, half: Half) -> None:
        array = np.asarray(array, np.float32)
        finite = array[np.isfinite(array)]
        rounded = half.rounded(finite)
        self.size = int(array.size)
        self.reach = float(np.abs(finite).max(initial=0.0))
        gone = (finite != 0) & (rounded == 0)
        self.flushed = int(np.count_nonzero(gone))  # values that become 0
        self.smallest = float(np.abs(finite[gone]).max(initial=0.0))  # the largest of these
        different = bool((rounded != finite).any())
        self.counts = different and self.reach > half.exact and bool((finite == np.rint(finite)).all())
        with np.errstate(over="ignore", invalid="ignore"):
            noise = np.sum((rounded.astype(np.float64) - finite) ** 2)
            signal = np.sum(finite.astype(np.float64) ** 2)
        self.sqnr_db = decibels(float(signal), float(noise))
