"""How outputs differ: figures worked by hand, and what must hold for any pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from penstock.metrics import Difference, compare

FLOATS = npst.arrays(
    np.float64,
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    elements=st.floats(allow_nan=True, allow_infinity=True),
)


def test_by_hand() -> None:
    want = np.array([[3.0, 4.0], [0.0, 1.0]], dtype=np.float32)
    got = np.array([[3.0, 3.5], [0.0, 2.0]], dtype=np.float32)
    found = compare(got, want, logits=False)
    assert found.reason == ""
    assert found.max_abs == 1.0
    assert found.mean_abs == 0.375
    assert found.relative == 0.25
    assert found.cosine == pytest.approx(25 / math.sqrt(26 * 25.25))
    assert found.sqnr_db == pytest.approx(10 * math.log10(26 / 1.25))
    assert found.mismatches == 0.5
    assert found.worst_sample == 1
    assert found.kl is None
    assert found.top1_agreement is None


def test_logits_by_hand() -> None:
    # softmax of (log 3, 0) is (3/4, 1/4), of (0, 0) is (1/2, 1/2)
    want = np.array([[math.log(3), 0.0], [0.0, 1.0]])
    got = np.array([[0.0, 0.0], [2.0, 1.0]])
    found = compare(got, want, logits=True)
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    p, q = 1 / (1 + math.e), math.e / (1 + math.e)
    second = p * math.log(p / q) + q * math.log(q / p)
    assert found.kl == pytest.approx((first + second) / 2)
    assert found.top1_agreement == 0.5  # the first of equals: the first sample agrees


def test_equal() -> None:
    value = np.arange(6.0).reshape(2, 3)
    found = compare(value, value.copy(), logits=True)
    assert found.equal
    assert found == Difference("", 0.0, 0, 0.0, 0.0, 0.0, 1.0, math.inf, 0.0, 1.0, None)


def test_zero_reference() -> None:
    zero, one = np.zeros(3), np.ones(3)
    assert compare(zero, zero, logits=False).relative == 0.0
    assert compare(zero, zero, logits=False).cosine == 1.0
    found = compare(one, zero, logits=False)
    assert (found.relative, found.cosine, found.sqnr_db) == (math.inf, 0.0, -math.inf)


def test_shapes_and_dtypes_are_reasons() -> None:
    found = compare(np.zeros((2, 3)), np.zeros((3, 2)), logits=True)
    assert "[2, 3]" in found.reason
    assert found.max_abs is None
    assert not found.equal
    half = compare(np.ones(2, dtype=np.float16), np.zeros(2, dtype=np.float32), logits=False)
    assert half.reason == "the dtype is float16, not float32"
    assert half.max_abs == 1.0
    mixed = compare(np.zeros(2, dtype=np.int64), np.zeros(2), logits=False)
    assert "int64" in mixed.reason
    assert (mixed.max_abs, mixed.mismatches) == (None, 0.0)
    text = compare(np.array(["1"], dtype=object), np.array([1]), logits=False)
    assert (text.reason, text.mismatches) == ("the dtype is string, not int64", None)


def test_exact_kinds() -> None:
    labels = compare(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4]), logits=False)
    assert (labels.mismatches, labels.worst_sample, labels.max_abs) == (0.25, 2, None)
    large = compare(np.array([2**53 + 1]), np.array([2**53]), logits=False)  # one and the same in float64
    assert large.mismatches == 1.0
    assert compare(np.array([True]), np.array([True]), logits=False).equal
    words = compare(np.array(["a", "b"], dtype=object), np.array(["a", "c"]), logits=False)
    assert (words.reason, words.mismatches, words.worst_sample) == ("", 0.5, 1)


def test_nonfinite_in_the_same_places_is_equal() -> None:
    want = np.array([[np.nan, 1.0], [np.inf, -np.inf]])
    found = compare(want.copy(), want, logits=True)
    assert found.equal
    assert (found.nonfinite, found.max_abs, found.kl) == (0, 0.0, 0.0)
    shifted = want + np.array([[0.0, 0.5], [0.0, 0.0]])
    found = compare(shifted, want, logits=False)
    assert (found.nonfinite, found.max_abs, found.relative) == (0, 0.5, 0.5)


@pytest.mark.parametrize(("a", "b"), [(np.nan, 1.0), (1.0, np.inf), (np.inf, -np.inf), (np.nan, np.inf)])
def test_nonfinite_elsewhere_fails_every_bound(a: float, b: float) -> None:
    found = compare(np.array([[1.0, 1.0], [1.0, a]]), np.array([[1.0, 1.0], [1.0, b]]), logits=True)
    assert (found.nonfinite, found.max_abs, found.relative, found.kl) == (1, math.inf, math.inf, math.inf)
    assert (found.cosine, found.sqnr_db, found.worst_sample) == (0.0, -math.inf, 1)


def test_masked_logits() -> None:
    want = np.array([[0.0, 1.0, -np.inf]])
    assert compare(want.copy(), want, logits=True).kl == 0.0


@pytest.mark.parametrize("shape", [(0,), (0, 10), (3, 0), ()])
def test_empty_and_scalar(shape: tuple[int, ...]) -> None:
    value = np.zeros(shape, dtype=np.float32)
    found = compare(value, value, logits=True)
    assert found.equal
    assert (found.max_abs, found.kl, found.top1_agreement, found.worst_sample) == (0.0, None, None, None)
    if shape == ():
        assert compare(value, value + 1, logits=True).worst_sample == 0


def test_complex_numbers_by_their_parts() -> None:
    found = compare(np.array([1 + 2j]), np.array([1 + 4j]), logits=True)
    assert (found.max_abs, found.kl) == (2.0, None)


def test_extremes_stay_in_range() -> None:
    found = compare(np.array([1e200, 0.0]), np.array([2e200, 0.0]), logits=False)
    assert found.sqnr_db == pytest.approx(20 * math.log10(2))
    assert found.cosine == 1.0
    tiny = compare(np.array([1e-200]), np.array([2e-200]), logits=False)
    assert tiny.sqnr_db == pytest.approx(20 * math.log10(2))


@given(FLOATS, st.booleans())
def test_any_array_equals_itself(value: np.ndarray[Any, Any], logits: bool) -> None:
    assert compare(value.copy(), value, logits=logits).equal


@given(st.data())
def test_any_pair_gives_figures_in_range(data: st.DataObject) -> None:
    want = data.draw(FLOATS)
    got = data.draw(npst.arrays(np.float64, want.shape, elements=st.floats(width=32)))
    found = compare(got, want, logits=True)
    assert found.max_abs is not None
    assert found.mean_abs is not None
    assert found.relative is not None
    assert found.cosine is not None
    assert found.mismatches is not None
    assert found.max_abs >= 0
    assert -1 <= found.cosine <= 1
    assert not math.isnan(found.mean_abs)
    assert not math.isnan(found.relative)
    assert found.kl is None or found.kl >= 0
    assert (found.worst_sample is None) == (found.max_abs == 0)
    assert (found.mismatches == 0) == (found.max_abs == 0)


@given(npst.arrays(np.float64, (4, 5), elements=st.floats(-50, 50)), st.floats(-5, 5))
def test_kl_ignores_a_shift_of_all_scores(value: np.ndarray[Any, Any], shift: float) -> None:
    kl = compare(value + shift, value, logits=True).kl
    assert kl == pytest.approx(0.0, abs=1e-9)
