"""Intervals against published figures, and what must hold for any data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import intervals


# R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_published(successes: int, n: int, low: float, high: float) -> None:
    assert intervals.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_ends() -> None:
    assert intervals.wilson(0, 0) == (0.0, 1.0)
    assert intervals.wilson(10, 10)[1] == 1.0
    assert intervals.wilson(0, 10)[0] == 0.0
    with pytest.raises(ValueError, match="11 successes"):
        intervals.wilson(11, 10)


# Bentur et al. (2009) and Cavo et al. (2012), as worked in Fagerland, Lydersen and Laake,
# Statistical Analysis of Contingency Tables (2017), chapter 8, Tango's score interval
@pytest.mark.parametrize(
    ("both", "only_a", "only_b", "neither", "expected"),
    [(1, 1, 7, 12, (-0.286, -0.517, -0.026)), (59, 6, 16, 80, (-0.0621, -0.1240, -0.0054))],
)
def test_paired_difference_published(
    both: int, only_a: int, only_b: int, neither: int, expected: tuple[float, float, float]
) -> None:
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    assert intervals.paired_difference(a, b) == pytest.approx(expected, abs=6e-4 if both == 1 else 6e-5)


def test_paired_difference_ends() -> None:
    none = np.zeros(0, dtype=bool)
    assert intervals.paired_difference(none, none) == (0.0, -1.0, 1.0)
    # no disagreement among 100: z² / (n + z²) either way, solved by hand
    limit = intervals.Z95**2 / (100 + intervals.Z95**2)
    same = np.ones(100, dtype=bool)
    assert intervals.paired_difference(same, same) == pytest.approx((0.0, -limit, limit), abs=1e-9)
    # b = n, c = 0: the score is sqrt(n (1 - d) / (1 + d)), which is z at d = (n - z²) / (n + z²)
    difference, low, high = intervals.tango(10, 0, 10)
    assert (difference, high) == (1.0, 1.0)
    assert low == pytest.approx((10 - intervals.Z95**2) / (10 + intervals.Z95**2), abs=1e-9)
    with pytest.raises(ValueError, match="one shape"):
        intervals.paired_difference(same, same[:-1])


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 10_000))
def test_paired_difference_mirrors(only_a: int, only_b: int, rest: int) -> None:
    n = only_a + only_b + rest
    difference, low, high = intervals.tango(only_a, only_b, n)
    mirrored = intervals.tango(only_b, only_a, n)
    assert -1 <= low <= difference <= high <= 1
    assert mirrored == pytest.approx((-difference, -high, -low), abs=1e-9)


def test_bootstrap_ratio_is_of_geometric_means_and_repeats() -> None:
    rounds = np.random.default_rng(1)
    a, b = rounds.uniform(0.9, 1.1, 40), rounds.uniform(1.9, 2.1, 40)
    ratio, low, high = intervals.bootstrap_ratio(a, b, seed=7)
    assert ratio == pytest.approx(np.exp(np.log(a).mean()) / np.exp(np.log(b).mean()))
    assert low < ratio < high < 0.6
    assert (ratio, low, high) == intervals.bootstrap_ratio(list(a), list(b), seed=7)
    inverse = intervals.bootstrap_ratio(b, a, seed=7)
    assert inverse == pytest.approx((1 / ratio, 1 / high, 1 / low))


def test_bootstrap_ratio_pairs_the_rounds() -> None:
    """What slows a whole round, however much, leaves the ratio and its interval alone."""
    slow = np.linspace(1, 50, 30)
    assert intervals.bootstrap_ratio(3 * slow, 2 * slow, seed=0) == pytest.approx((1.5, 1.5, 1.5))


def test_bootstrap_ratio_covers_what_is_true() -> None:
    """Of 400 comparisons of a thing with itself, about 5 % may show a difference: 8 % is 2.8 deviations off."""
    source = np.random.default_rng(3)
    wrong = 0
    for seed in range(400):
        a, b = np.exp(source.normal(0, 0.05, (2, 30)))
        wrong += not intervals.covers_one(*intervals.bootstrap_ratio(a, b, seed=seed, resamples=500)[1:])
    assert 0.02 * 400 <= wrong <= 0.08 * 400


def test_bootstrap_ratio_claims_nothing_from_few_rounds() -> None:
    ratio, low, high = intervals.bootstrap_ratio([1.0] * 4, [2.0] * 4, seed=0)
    assert ratio == pytest.approx(0.5)
    assert (low, high) == (0.0, math.inf)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([], []), ([0.0] * 5, [1.0] * 5), ([math.nan], [1.0])])
def test_bootstrap_ratio_refuses(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match=r"pairs|positive"):
        intervals.bootstrap_ratio(a, b, seed=0)


# Student's t at 97.5 %, from tables: 2.776 (4), 2.262 (9), 2.045 (29)
@pytest.mark.parametrize(("n", "t"), [(5, 2.776), (10, 2.262), (30, 2.045)])
def test_expanded_tail(n: int, t: float) -> None:
    normal = 0.5 * math.erfc(math.sqrt(n / (n - 1)) * t / math.sqrt(2))
    assert intervals._expanded_tail(n) == pytest.approx(normal, rel=0.06)


def test_covers_one() -> None:
    assert intervals.covers_one(0.9, 1.1)
    assert intervals.covers_one(1.0, 1.1)
    assert not intervals.covers_one(1.01, 1.1)


def test_bootstrap_median_covers_what_is_true() -> None:
    """Of 400 samples of 30 from a normal distribution, about 5 % may miss its median."""
    source = np.random.default_rng(5)
    missed = 0
    for seed in range(400):
        middle, low, high = intervals.bootstrap_median(source.normal(2.0, 1.0, 30), seed=seed, resamples=500)
        assert low <= middle <= high
        missed += not low <= 2.0 <= high
    assert 0.01 * 400 <= missed <= 0.08 * 400


def test_bootstrap_median_claims_nothing_from_few_values() -> None:
    assert intervals.bootstrap_median([4.0, 2.0, 3.0], seed=0) == (3.0, -math.inf, math.inf)
    with pytest.raises(ValueError, match="one row"):
        intervals.bootstrap_median([], seed=0)
