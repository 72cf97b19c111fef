"""Weights in blocks: what is rounded how, against arithmetic by hand, exhaustive search and ONNX's own packing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock.quantization import blocks
from penstock.quantization.block_grids import half_quadratic, least_squares
from penstock.quantization.blocks import Blocked, Form

FORMS = [Form(bits, size, zero) for bits in (4, 8) for size in (16, 32) for zero in ("none", "integer", "float")]


def rounded(weights: np.ndarray, form: Form, fit: blocks.Fit = least_squares) -> Blocked:
    return blocks.nearest(weights, form, *blocks.grids(weights, form, fit))


def error(weights: np.ndarray, held: Blocked) -> float:
    return float(np.square(weights - held.real()).sum())


def by_hand(held: Blocked) -> np.ndarray:
    """Dequantize one weight at a time."""
    out = np.zeros(held.whole.shape)
    for row in range(len(out)):
        for column in range(out.shape[1]):
            block = row // held.form.size
            zero = float(held.zero[block, column])
            out[row, column] = (int(held.whole[row, column]) - zero) * float(held.scale[block, column])
    return out


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("rows", [5, 32, 50])
def test_each_weight_gets_the_nearest_that_its_block_holds(form: Form, rows: int) -> None:
    """Fewer inputs than a block, whole blocks, and a last one that is not full."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(rows, 7)).astype(np.float32)
    held = rounded(weights, form)
    assert held.scale.shape == held.zero.shape == (-(-rows // form.size), 7)
    assert held.whole.min() >= 0 and held.whole.max() <= form.top
    np.testing.assert_allclose(held.real(), by_hand(held), rtol=1e-5, atol=1e-6)
    for row, column in [(0, 0), (rows - 1, 6), (rows // 2, 3)]:
        block = row // form.size
        real = (np.arange(form.top + 1) - float(held.zero[block, column])) * float(held.scale[block, column])
        nearest = np.abs(real - weights[row, column]).min()
        assert abs(held.real()[row, column] - weights[row, column]) <= nearest + 2e-6


@pytest.mark.parametrize("zero", ["none", "integer"])
def test_a_grid_is_near_the_best_of_all(zero: blocks.Zero) -> None:
    """Against all zero points and four hundred scales of either sign, tried one by one; minmax is far off."""
    rng = np.random.default_rng(0)
    weights = rng.laplace(size=(32, 24)).astype(np.float32)
    form = Form(4, 32, zero)
    ours = np.square(weights - rounded(weights, form).real()).sum(axis=0)
    best = np.full(24, np.inf)
    plain = np.full(24, np.inf)
    for column in range(24):
        values = weights[:, column].astype(float)
        for z in range(16) if zero == "integer" else (8,):
            for scale in np.linspace(0.3, 1.2, 200) * np.abs(values).max() / 7:
                for signed in (scale, -scale):
                    whole = np.clip(np.rint(values / signed) + z, 0, 15)
                    best[column] = min(best[column], np.square((whole - z) * signed - values).sum())
        if zero == "none":
            scale = np.abs(values).max() / 7
            plain[column] = np.square(np.clip(np.rint(values / scale), -7, 7) * scale - values).sum()
    assert (ours >= best * 0.98).all(), "the search by hand is no less fine"
    assert ours.sum() <= best.sum() * 1.15
    if zero == "none":
        assert ours.sum() <= plain.sum() * 0.8


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_half_quadratic_grids_are_no_worse(form: Form) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_t(4, size=(64, 40)).astype(np.float32)
    assert error(weights, rounded(weights, form, half_quadratic)) <= error(weights, rounded(weights, form)) * 1.0001


def test_real_zero_points_are_worth_their_bytes() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(1.0, 0.5, size=(64, 40)).astype(np.float32)
    whole, real = (rounded(weights, Form(4, 32, zero), half_quadratic) for zero in ("integer", "float"))
    assert error(weights, real) < error(weights, whole) * 0.98
    assert real.nbytes > whole.nbytes


@pytest.mark.parametrize("fit", [least_squares, half_quadratic])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_zeros_stay_zeros_and_no_magnitude_breaks_it(form: Form, fit: blocks.Fit) -> None:
    rng = np.random.default_rng(0)
    weights = np.zeros((40, 6), np.float32)
    weights[:, 1] = rng.uniform(-1, 1, size=40) * 3e38
    weights[:, 2] = rng.normal(size=40) * 1e-37
    weights[:, 3] = 1e-42
    weights[3, 4] = 5.0
    weights[:, 5] = np.float32(3.4e38) * np.sign(rng.normal(size=40))
    held = rounded(weights, form, fit)
    got = held.real()
    assert np.isfinite(got).all() and np.isfinite(held.scale).all() and (np.abs(held.scale) > 0).all()
    assert (got[:, 0] == 0).all() and (got[weights[:, 4] == 0, 4] == 0).all()
    assert abs(got[3, 4] - 5) < 0.05
    assert np.abs(got[:, 1] / 3e38 - weights[:, 1] / 3e38).max() < 0.15


def test_equal_weights_are_exact() -> None:
    for form in FORMS:
        weights = np.full((32, 3), -0.37, np.float32)
        np.testing.assert_allclose(rounded(weights, form).real(), weights, rtol=1e-6)


def test_slabs_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(70, 50)).astype(np.float32)
    for form in (Form(4, 32), Form(4, 70), Form(8, 16, "integer")):
        whole = rounded(weights, form)
        with monkeypatch.context() as patch:
            patch.setattr(blocks, "SLAB", 100)
            cut = rounded(weights, form)
        # sums are in another order, so that of two grids that are equally good either may be taken
        assert np.isclose(cut.scale, whole.scale, rtol=1e-5).mean() > 0.97
        assert (whole.whole != cut.whole).mean() < 0.03
        assert error(weights, cut) == pytest.approx(error(weights, whole), rel=1e-3)


@pytest.mark.parametrize("shape", [(4, 6), (3, 5), (1, 1)])
@pytest.mark.parametrize(("kind", "low"), [("INT4", -8), ("UINT4", 0)])
def test_packing_is_that_of_onnx(kind: str, low: int, shape: tuple[int, int]) -> None:
    """Both ways: what onnx packs we pack alike, and onnx reads ours."""
    rng = np.random.default_rng(0)
    whole = rng.integers(low, low + 16, shape)
    number = getattr(TensorProto, kind)
    theirs = helper.make_tensor("t", number, shape, whole.reshape(-1).tolist())
    packed = blocks.packed(whole.astype(np.int8).reshape(-1))
    assert packed.tobytes() == np.array(theirs.int32_data, np.uint8).tobytes()
    made = onnx.TensorProto(data_type=number, dims=shape, raw_data=packed.tobytes(), name="t")
    assert np.array_equal(numpy_helper.to_array(made).astype(int), whole)


def test_bytes_are_counted_with_scales_and_zero_points() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(64, 10)).astype(np.float32)
    assert rounded(weights, Form(4, 32)).nbytes == 320 + 2 * 10 * 4
    assert rounded(weights, Form(4, 32, "integer")).nbytes == 320 + 2 * 10 * 4 + 10
    assert rounded(weights, Form(4, 32, "float")).nbytes == 320 + 2 * 10 * 8
    assert rounded(weights, Form(8, 64)).nbytes == 640 + 10 * 4
