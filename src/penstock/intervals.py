"""Confidence intervals for what Penstock compares: a proportion, two accuracies on the same images, two latencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Z95 = 1.959964  # the 97.5 % point of the normal distribution
FEWEST_ROUNDS = 5  # below it no interval is honest, and none is claimed


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion: ``successes`` out of ``n``.

    Nothing tried means nothing known: ``n`` 0 gives (0, 1). Raises ``ValueError`` on counts that can't be.
    Source: E. B. Wilson, JASA 22 (1927) 209-212.

    >>> [round(bound, 4) for bound in wilson(81, 263)]
    [0.2553, 0.3662]
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n}")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # the bounds are exactly 0 and 1 at the ends, where rounding would leave 1e-17
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def paired_difference(right_a: np.ndarray, right_b: np.ndarray, z: float = Z95) -> tuple[float, float, float]:
    """Return (difference, low, high) of accuracy a minus accuracy b, both taken on the same samples.

    ``right_a`` and ``right_b`` are boolean, of one shape: was this sample classified rightly? Only the samples on
    which they disagree carry information about the difference; the interval is Tango's score interval, which stays
    sound when they hardly ever disagree, where Wald's collapses to nothing.
    Raises ``ValueError`` when the shapes differ. No samples give (0, -1, 1).
    Source: T. Tango, Statistics in Medicine 17 (1998) 891-908.
    """
    import numpy as np

    a, b = np.asarray(right_a, dtype=bool), np.asarray(right_b, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"paired samples want one shape, got {a.shape} and {b.shape}")
    return tango(int(np.count_nonzero(a & ~b)), int(np.count_nonzero(~a & b)), a.size, z)


def tango(only_a: int, only_b: int, n: int, z: float = Z95) -> tuple[float, float, float]:
    """Return (difference, low, high) from counts: right in a alone, right in b alone, all pairs.

    The bounds solve |(b - c - n d) / sqrt(n (2 q + d (1 - d)))| = z for the difference d, where q is the constrained
    maximum-likelihood estimate of the share that is right in b alone: the larger root of
    2n q² + (-b - c + (2n - b + c) d) q - c d (1 - d) = 0.
    """
    if n == 0:
        return 0.0, -1.0, 1.0

    def score(d: float) -> float:
        middle = -only_a - only_b + (2 * n - only_a + only_b) * d
        root = math.sqrt(max(middle * middle + 8 * n * only_b * d * (1 - d), 0.0))
        q = (root - middle) / (4 * n)
        variance = n * (2 * q + d * (1 - d))
        gap = only_a - only_b - n * d
        if variance <= 0:
            return 0.0 if gap == 0 else math.copysign(math.inf, gap)
        return gap / math.sqrt(variance)

    def crossing(low: float, high: float, at: float) -> float:
        # the score falls as the difference grows, so halving finds the one place where it passes ``at``
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > at else (low, middle)
        return (low + high) / 2

    difference = (only_a - only_b) / n
    return difference, crossing(-1.0, difference, z), crossing(difference, 1.0, -z)


def bootstrap_ratio(
    a_rounds: Sequence[float] | np.ndarray, b_rounds: Sequence[float] | np.ndarray, *, seed: int, resamples: int = 2000
) -> tuple[float, float, float]:
    """Return (ratio, low, high): how many times b's latency a's is, with a 95 % interval.

    Each argument holds one median latency per interleaved round, round i of a beside round i of b, in any one unit.
    The ratio is exp(mean(log a - log b)), the ratio of geometric means: it is the inverse of b's to a's, and the
    factors of a chain of deployments multiply to the factor of the whole. Rounds are resampled as pairs, so that what
    slowed a whole round cancels. The interval is the expanded percentile interval (T. Hesterberg, The American
    Statistician 69 (2015) 371-386), which doesn't claim too much from few rounds; fewer than 5 rounds give (0, inf).
    The same rounds and seed give the same interval.
    Raises ``ValueError`` when the rounds aren't paired or a latency isn't positive.
    """
    import numpy as np

    a, b = np.asarray(a_rounds, dtype=np.float64), np.asarray(b_rounds, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(f"rounds come in pairs: {a.shape} and {b.shape}")
    if not (np.all(np.isfinite(a) & (a > 0)) and np.all(np.isfinite(b) & (b > 0))):
        raise ValueError("a latency is a positive number")
    logs = np.log(a) - np.log(b)
    ratio = float(np.exp(logs.mean()))
    if a.size < FEWEST_ROUNDS:
        return ratio, 0.0, math.inf
    generator = np.random.Generator(np.random.PCG64(seed))
    means = np.concatenate(
        [
            logs[generator.integers(0, a.size, (min(100, resamples - start), a.size))].mean(axis=1)
            for start in range(0, resamples, 100)  # in parts: thousands of rounds would take gigabytes at once
        ]
    )
    tail = _expanded_tail(a.size)
    low, high = (float(bound) for bound in np.exp(np.quantile(means, [tail, 1 - tail])))
    # rounding in the mean can leave the estimate a hair outside when all rounds agree
    return ratio, min(low, ratio), max(high, ratio)


def _expanded_tail(n: int) -> float:
    """Return the quantile to cut at so that ``n`` rounds give 95 %: Phi(-sqrt(n / (n - 1)) t) instead of 2.5 %."""
    z, v = Z95, n - 1
    # Student's t for v degrees of freedom from the normal point, Abramowitz and Stegun 26.7.5
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return NormalDist().cdf(-math.sqrt(n / v) * t)


def covers_one(low: float, high: float) -> bool:
    """Tell whether an interval of a ratio covers 1: no difference was shown."""
    return low <= 1.0 <= high


def bootstrap_median(values: Sequence[float], *, seed: int, resamples: int = 2000) -> tuple[float, float, float]:
    """Return (median, low, high) of independent values, with the expanded percentile interval of 95 %.

    Fewer than 5 values give (-inf, inf) as the interval. The same values and seed give the same interval.
    Raises ``ValueError`` where there are none.

    >>> bootstrap_median([3.0, 1.0, 2.0], seed=0)
    (2.0, -inf, inf)
    """
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError("a median wants one row of values")
    middle = float(np.median(array))
    if array.size < FEWEST_ROUNDS:
        return middle, -math.inf, math.inf
    generator = np.random.Generator(np.random.PCG64(seed))
    medians = np.median(array[generator.integers(0, array.size, (resamples, array.size))], axis=1)
    tail = _expanded_tail(array.size)
    low, high = (float(bound) for bound in np.quantile(medians, [tail, 1 - tail]))
    return middle, min(low, middle), max(high, middle)
