"""What is seen of a tensor while samples pass by: enough for every way to choose a range, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.calibration import called
from penstock.errors import InputError
from penstock.quantization.histogram import Histogram

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

NEWEST = 0.1  # weight of the newest batch in the moving average
MOST_SAMPLES = 4096  # whose own extremes are kept, to tell how stable a range is and which samples stand out
USUAL = 98.0  # per cent of the samples whose extremes are usual
BEYOND = 1.25  # times the usual extremes: what lies further is an outlier


class Statistics:
    """Extremes, their moving average, those of the first samples each, and a histogram where one is wanted."""

    __slots__ = (
        "average_high",
        "average_low",
        "count",
        "floor",
        "high",
        "histogram",
        "low",
        "numbers",
        "samples",
        "tensor",
        "wants_histogram",
    )

    def __init__(
        self, tensor: str, *, histogram: bool, numbers: Array | None = None, count: int | None = None,
        floor: float | None = None,
    ) -> None:  # fmt: skip
        self.tensor = tensor
        self.floor = floor  # below which nothing can lie: the least values aren't looked for
        self.count = count  # samples in all: what a batch holds beyond them repeats others, to fill it up
        self.numbers = numbers  # of the samples in the user's data
        self.low, self.high = np.inf, -np.inf
        self.average_low, self.average_high = 0.0, 0.0
        self.samples: list[tuple[float, float]] = []
        self.histogram = Histogram()
        self.wants_histogram = histogram

    def add(self, array: Array, first: int, count: int) -> None:
        """Take in a batch. ``first`` is the number of its first sample, ``count`` how many it has.

        Raises ``InputError`` with the sample that makes the tensor infinite or not a number.
        """
        if self.count is not None and array.ndim and len(array) == count:
            array = array[: max(self.count - first, 0)]
            count = len(array)
        if not array.size:
            return
        lows, highs = _extremes(array, count, self.floor)
        low, high = float(lows.min()), float(highs.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise _not_finite(self.tensor, array, first, count, self.numbers)
        fresh = not np.isfinite(self.low)
        self.average_low += (low - self.average_low) * (1.0 if fresh else NEWEST)
        self.average_high += (high - self.average_high) * (1.0 if fresh else NEWEST)
        self.low, self.high = min(self.low, low), max(self.high, high)
        if len(self.samples) < MOST_SAMPLES:
            self.samples += zip(lows.tolist(), highs.tolist(), strict=True)
        if self.wants_histogram:
            self.histogram.add(array, low, high)

    def usual(self) -> tuple[float, float]:
        """Return the interval that nearly all samples stay in: one outlier among them doesn't widen it."""
        lows, highs = (np.array(ends) for ends in zip(*self.samples, strict=True))
        low = BEYOND * float(np.percentile(lows, 100 - USUAL, method="lower"))
        high = BEYOND * float(np.percentile(highs, USUAL, method="higher"))
        return max(self.low, min(low, 0.0)), min(self.high, max(high, 0.0))

    def instability(self) -> float:
        """Return how much of the range the one sample adds that adds most: 0 where another reaches as far."""
        if len(self.samples) < 2:
            return 1.0
        lows, highs = (
            np.array([min(low, 0.0) for low, _ in self.samples]),
            np.array([max(h, 0.0) for _, h in self.samples]),
        )
        span = highs.max() - lows.min()
        if span <= 0:
            return 0.0
        without_top = np.partition(highs, -2)[-2] - lows.min()
        without_bottom = highs.max() - np.partition(lows, 1)[1]
        return float(1 - min(without_top, without_bottom) / span)


def _extremes(array: Array, count: int, floor: float | None) -> tuple[Array, Array]:
    """Return the extremes of each sample, (n,) each; of the whole batch where its first axis isn't that of samples."""
    rows = array.reshape(count if array.ndim and len(array) == count else 1, -1)
    highs: Array = rows.max(axis=1)  # NaN is the greatest of what it is among
    return rows.min(axis=1) if floor is None else np.full(len(rows), floor, rows.dtype), highs


def _not_finite(tensor: str, array: Array, first: int, count: int, numbers: Array | None) -> InputError:
    bad = ~np.isfinite(array)
    who = "a calibration sample"
    if array.ndim and len(array) == count:
        number = int(np.argmax(bad.reshape(len(array), -1).any(axis=1)))
        who, bad = called(first + number, numbers), bad[number]
        kind = "NaN" if np.isnan(array[number]).any() else "infinity"
    else:
        kind = "NaN" if np.isnan(array).any() else "infinity"
    what = f"{who} makes the tensor {tensor!r} {kind} in {int(bad.sum())} places"
    return InputError("not-finite", what, do="take the sample out, or find what makes the model overflow on it")
