"""GPTQ against its definition, worked out step by step with a fresh inverse, and against rounding to the nearest."""

import numpy as np
import pytest

from penstock.quantization import blocks
from penstock.quantization import gptq as module
from penstock.quantization.block_grids import least_squares
from penstock.quantization.blocks import Form
from penstock.quantization.gptq import DAMPING, Moments, gptq, output_sqnr_db


def correlated(rows: int, inputs: int) -> np.ndarray:
    """Inputs that a few causes make, as the layers of a network have them."""
    rng = np.random.default_rng(1)
    causes = rng.normal(size=(rows, max(2, inputs // 8)))
    mixed = causes @ rng.normal(size=(causes.shape[1], inputs)) + 0.3 * rng.normal(size=(rows, inputs))
    return mixed.astype(np.float32)


def by_definition(weights: np.ndarray, second: np.ndarray, form: Form, grid: tuple, order: np.ndarray) -> np.ndarray:
    """Optimal brain quantization in a given order: the inverse is taken anew for the inputs that are left."""
    scale, zero = (np.repeat(one.astype(float), form.size, axis=0)[: len(weights)] for one in grid)
    left, whole = weights.astype(float).copy(), np.zeros(weights.shape, int)
    damped = second + np.eye(len(second)) * DAMPING * second.diagonal().mean()
    for step, row in enumerate(order):
        ahead = order[step:]
        inverse = np.linalg.inv(damped[np.ix_(ahead, ahead)])
        whole[row] = np.clip(np.rint(left[row] / scale[row]) + zero[row], 0, form.top)
        miss = left[row] - (whole[row] - zero[row]) * scale[row]
        left[ahead] -= np.outer(inverse[:, 0] / inverse[0, 0], miss)
    return whole


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("form", [Form(4, 16), Form(4, 16, "integer"), Form(8, 32)], ids=str)
def test_it_is_what_the_paper_defines(form: Form, ordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are passed on in groups: with groups smaller than the layer, that is tested too."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(module, "TOGETHER", 10)
    samples, weights = correlated(400, 41), rng.normal(size=(41, 6)).astype(np.float32)
    second = samples.T.astype(float) @ samples
    grid = blocks.grids(weights, form, least_squares)
    order = np.argsort(-second.diagonal(), kind="stable") if ordered else np.arange(41)
    got = gptq(weights, second, form, *grid, order=ordered).whole
    want = by_definition(weights, second, form, grid, order)
    # a weight that lies half way between two integers may fall either way in float32, and changes those after it
    assert (got != want).mean() < (0.02 if form.bits == 4 else 0.1)


@pytest.mark.parametrize("bits", [4, 8])
def test_it_beats_rounding_to_the_nearest_on_samples_that_it_has_not_seen(bits: int) -> None:
    rng = np.random.default_rng(0)
    form, weights = Form(bits, 32), rng.normal(size=(128, 64)).astype(np.float32)
    samples = correlated(3000, 128)
    seen, unseen = samples[:2000], samples[2000:]
    moments = Moments(128)
    for start in range(0, 2000, 300):
        moments.add(seen[start : start + 300].reshape(-1, 4 if start < 1800 else 1, 128))
    np.testing.assert_allclose(moments.total, seen.T.astype(float) @ seen, rtol=1e-3, atol=1)
    grid = blocks.grids(weights, form, least_squares)
    ours, plain = gptq(weights, moments.total, form, *grid), blocks.nearest(weights, form, *grid)

    def sqnr(held: blocks.Blocked) -> float:
        want = unseen.astype(float) @ weights
        return float(10 * np.log10(np.square(want).sum() / np.square(unseen @ held.real() - want).sum()))

    assert sqnr(ours) > sqnr(plain) + 5
    told = output_sqnr_db(weights, plain, unseen.T.astype(float) @ unseen)
    assert told == pytest.approx(sqnr(plain), abs=0.05)


def test_the_order_of_the_inputs_helps() -> None:
    rng = np.random.default_rng(0)
    samples = correlated(2000, 96) * np.exp(rng.normal(size=96)).astype(np.float32)
    second, weights, form = samples.T.astype(float) @ samples, rng.normal(size=(96, 48)).astype(np.float32), Form(4, 32)
    grid = blocks.grids(weights, form, least_squares)
    found = [output_sqnr_db(weights, gptq(weights, second, form, *grid, order=o), second) or 0 for o in (True, False)]
    assert found[0] > found[1] + 0.5


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    rng = np.random.default_rng(0)
    form, weights = Form(4, 16), rng.normal(size=(32, 8)).astype(np.float32)
    grid = blocks.grids(weights, form, least_squares)
    assert np.array_equal(gptq(weights, np.eye(32) * 7, form, *grid).whole, blocks.nearest(weights, form, *grid).whole)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_few_samples_and_inputs_that_never_were_anything(rows: int) -> None:
    """The moments are singular; an input that was always 0 is rounded to the nearest, for it may be one day."""
    rng = np.random.default_rng(0)
    form, weights = Form(4, 32), rng.normal(size=(64, 8)).astype(np.float32)
    samples = correlated(rows, 64)
    samples[:, 10:20] = 0
    grid = blocks.grids(weights, form, least_squares)
    held, plain = gptq(weights, samples.T @ samples, form, *grid), blocks.nearest(weights, form, *grid)
    assert np.array_equal(held.whole[10:20], plain.whole[10:20])
    assert np.isfinite(held.real()).all()
    if rows == 0:
        assert np.array_equal(held.whole, plain.whole)


def test_no_error_has_no_ratio() -> None:
    weights = np.array([[1.0], [2.0]], np.float32)
    form = Form(8, 2)
    held = blocks.Blocked(form, np.array([[129], [130]], np.uint8), np.ones((1, 1), np.float32), np.full((1, 1), 128))
    assert output_sqnr_db(weights, held, np.eye(2)) is None
    assert output_sqnr_db(weights * 1.5, held, np.zeros((2, 2))) is None
