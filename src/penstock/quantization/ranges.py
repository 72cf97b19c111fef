"""Ranges: from what was seen of a tensor to the interval that its grid holds.

``minmax``: all that was seen. ``moving-average``: batches' extremes, averaged with a weight of 1/10 for the newest.
``percentile``: what lies between two quantiles, which leave out as much at either end. ``entropy``: the interval that
loses least information, by the divergence of Kullback and Leibler between the values clipped to it and the values on
the grid (Migacz, 8-bit inference with TensorRT, 2017). ``mse``: the interval of least squared error, that of clipping
counted ten times; how far a sample that stands out does so doesn't count. A grid of 16 bits has steps to spare:
``entropy`` and ``mse`` keep all that was seen on it.

An interval is never wider than what was seen, and holds 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from penstock.quantization.statistics import Statistics

    Array = np.ndarray[Any, np.dtype[Any]]
    Method = Callable[["Statistics", "Wanted"], tuple[float, float]]

METHODS = ("minmax", "moving-average", "percentile", "entropy", "mse")
# of what isn't 0, that ``entropy`` may clip: it compares with the clipped values, and the divergence is 0 at the last
# where everything is clipped to one value
MOST_CLIPPED = 0.01
# by how much more the error of clipping counts than that of rounding: what is clipped errs to one side, so that sums
# and averages behind it keep all of it, where errors of rounding cancel (1 costs up to 8 dB at the output, 3 to 100
# agree)
CLIPPING = 10.0
FINE = 255  # steps of a grid, above which clipping gains nothing
WITH_HISTOGRAM = ("percentile", "entropy", "mse", "moving-average")  # those that clip: the last is told by how much


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a range is for: a grid of so many steps, with its zero point in the middle or not; the percentile."""

    steps: int = 255
    symmetric: bool = False
    percentile: float = 99.99


def of(method: str, seen: Statistics, wanted: Wanted) -> tuple[float, float]:
    """Return the interval ``(low, high)``, with ``low`` ≤ 0 ≤ ``high``."""
    all_of_it = wanted.steps > FINE and method in ("entropy", "mse")
    low, high = (seen.low, seen.high) if all_of_it else _METHODS[method](seen, wanted)
    low, high = max(low, seen.low), min(high, seen.high)
    return min(low, 0.0), max(high, 0.0)


def _minmax(seen: Statistics, wanted: Wanted) -> tuple[float, float]:
    return seen.low, seen.high


def _moving_average(seen: Statistics, wanted: Wanted) -> tuple[float, float]:
    return seen.average_low, seen.average_high


def _percentile(seen: Statistics, wanted: Wanted) -> tuple[float, float]:
    values, counts = seen.histogram.bins()
    share = (np.cumsum(counts) - counts / 2) / counts.sum()
    tail = (1 - wanted.percentile / 100) / max((seen.low < 0) + (seen.high > 0), 1)
    low = float(values[np.searchsorted(share, tail, "left").clip(0, len(values) - 1)])
    high = float(values[(np.searchsorted(share, 1 - tail, "right") - 1).clip(0, len(values) - 1)])
    return min(low, 0.0), max(high, 0.0)


def _candidates(largest: float) -> Array:
    """Return magnitudes at which to clip: from the largest down to 2⁻¹⁶ of it, 32 in every octave."""
    found: Array = largest * np.exp2(-np.arange(16 * 32 + 1) / 32)
    return found


def _mse(seen: Statistics, wanted: Wanted) -> tuple[float, float]:
    values, counts = seen.histogram.bins()
    if not len(values):
        return 0.0, 0.0
    least, most = seen.usual()
    values = np.clip(values, least, most)
    above, below = values > 0, values < 0
    up = _Side(values[above], counts[above])
    down = _Side(-values[below][::-1], counts[below][::-1])
    tops = _candidates(most) if up.count else np.zeros(1)
    bottoms = _candidates(-least) if down.count else np.zeros(1)

    def error(high: Array, low: Array) -> Array:
        span = 2 * np.maximum(high, low) if wanted.symmetric else high + low
        step = span / (wanted.steps - 1 if wanted.symmetric else wanted.steps)
        found: Array = up.error(high, step) + down.error(low, step)
        return found

    if wanted.symmetric:
        ends = np.maximum(tops, bottoms) if len(tops) == len(bottoms) else tops if up.count else bottoms
        best = float(ends[np.argmin(error(ends, ends))])
        return -best, best
    high, low = tops[0], bottoms[0]
    for _ in range(4):
        before = high, low
        high = tops[np.argmin(error(tops, low))]
        low = bottoms[np.argmin(error(high, bottoms))]
        if (high, low) == before:
            break
    return -float(low), float(high)


class _Side:
    """Sums over the magnitudes of one sign, so that the error of a candidate costs two look-ups."""

    def __init__(self, values: Array, counts: Array) -> None:
        self.values = values
        self.count = int(counts.sum())
        weights = counts.astype(np.float64)
        self._sums = [np.concatenate([[0.0], np.cumsum(weights * values**power)]) for power in range(3)]

    def error(self, end: Array, step: Array) -> Array:
        """Return the squared error of clipping at ``end`` and rounding to ``step``, each of the candidates' shape.

        What lies below half a step becomes 0; above, the error of rounding is spread evenly: step²/12.
        """
        clipped = np.searchsorted(self.values, end, "right")
        small = np.minimum(np.searchsorted(self.values, step / 2, "right"), clipped)
        n, s, q = self._sums
        out = (q[-1] - q[clipped]) - 2 * end * (s[-1] - s[clipped]) + end**2 * (n[-1] - n[clipped])
        found: Array = CLIPPING * np.maximum(out, 0) + q[small] + (n[clipped] - n[small]) * step**2 / 12
        return found


def _entropy(seen: Statistics, wanted: Wanted) -> tuple[float, float]:
    """Compare on one partition for all candidates, the histogram's own bins; zeros lie on every grid and don't count.

    With p the shares of bins, w their widths, P and W the sums of both over a step of the grid, the values on the grid
    have the density P/W in a step, so that the divergence is Σ p·log(p/w) − Σ P·log(P/W): differences of running sums.
    """
    values, counts = seen.histogram.bins()
    weights = counts.astype(np.float64)
    if len(values):
        weights[np.argmin(np.abs(values))] -= seen.histogram.zeros
    kept = weights > 0
    values, weights = values[kept], weights[kept]
    if not len(values):
        return seen.low, seen.high
    density = _Density(values, weights / weights.sum())
    best, chosen = np.inf, (seen.low, seen.high)
    for end in _candidates(max(seen.high, -seen.low))[::2]:
        low, high = (-end, end) if wanted.symmetric else (max(min(seen.low, 0.0), -end), min(max(seen.high, 0.0), end))
        found = density.divergence(low, high, wanted.steps)
        if found < best:
            best, chosen = found, (low, high)
    return chosen


class _Density:
    """Running sums over the bins of a histogram, in ascending order."""

    def __init__(self, values: Array, shares: Array) -> None:
        width = np.exp2(np.floor(np.log2(np.maximum(np.abs(values), np.abs(values).max() * 2.0**-24))) - 10)
        self.values, self.shares, self.width = values, shares, width
        self._mass = np.concatenate([[0.0], np.cumsum(shares)])
        self._space = np.concatenate([[0.0], np.cumsum(width)])
        self._information = np.concatenate([[0.0], np.cumsum(shares * np.log(shares / width))])

    def divergence(self, low: float, high: float, steps: int) -> float:
        """Return the divergence in nats of values on a grid of ``[low, high]`` from values clipped to it."""
        if high <= low:
            return float("inf")
        step = (high - low) / steps
        edges = np.searchsorted(self.values, low + step * (np.arange(1, steps + 1) - 0.5))
        first, last = np.searchsorted(self.values, low, "left"), np.searchsorted(self.values, high, "right")
        if last <= first or self._mass[last] - self._mass[first] < 1 - MOST_CLIPPED:
            return float("inf")
        edges = np.concatenate([[first], np.clip(edges, first, last), [last]])
        mass, space = np.diff(self._mass[edges]), np.diff(self._space[edges])
        found = self._information[last] - self._information[first]
        clipped = mass.copy()
        for place, out in ((first, self._mass[first]), (last - 1, 1 - self._mass[last])):
            if out > 0:  # what is clipped lies in the outermost bin
                share, width = self.shares[place], self.width[place]
                found += (share + out) * np.log((share + out) / width) - share * np.log(share / width)
                clipped[int(np.searchsorted(edges, place, "right")) - 1] += out
        used = mass > 0
        found -= float(np.sum(clipped[used] * np.log(mass[used] / mass.sum() / space[used])))
        return float(found)


_METHODS: dict[str, Method] = {
    "minmax": _minmax, "moving-average": _moving_average, "percentile": _percentile, "entropy": _entropy, "mse": _mse,
}  # fmt: skip
