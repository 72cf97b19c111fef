"""Ranges: histograms without limits, the ways to choose, and what an outlier does to each."""

from collections.abc import Iterator

import numpy as np
import pytest

from penstock.calibration import of_list
from penstock.errors import InputError
from penstock.quantization import outliers, ranges
from penstock.quantization.grid import of_range, of_weights
from penstock.quantization.histogram import Histogram
from penstock.quantization.shelf import packed, unpacked
from penstock.quantization.statistics import Statistics

RNG = np.random.default_rng(1)


def seen(parts: Iterator[np.ndarray] | list[np.ndarray]) -> Statistics:
    one, start = Statistics("t", histogram=True), 0
    for part in parts:
        one.add(part, start, len(part))
        start += len(part)
    return one


def test_a_histogram_counts_every_value_within_a_thousandth() -> None:
    values = np.concatenate([RNG.normal(0, 3, 40_000), RNG.lognormal(0, 4, 40_000), np.zeros(7)]).astype(np.float32)
    one = Histogram()
    for part in np.array_split(values, 13):
        one.add(part, float(part.min()), float(part.max()))
    met, counts = one.bins()
    assert counts.sum() == len(values) == one.count and one.zeros == 7
    kept, told = np.sort(np.abs(values)), np.sort(np.abs(np.repeat(met, counts)))
    fine = kept > kept[-1] * 2**-22  # what is smaller than 2⁻²⁴ of the largest is 0
    assert fine.sum() > 15_000 and np.allclose(told[fine], kept[fine], rtol=1e-3)
    assert ((values < 0) & (np.abs(values) > kept[-1] * 2**-22)).sum() == pytest.approx(
        counts[met < -float(kept[-1]) * 2**-22].sum(), abs=20
    )


def test_a_late_outlier_costs_no_resolution() -> None:
    values = RNG.normal(size=20_000).astype(np.float32)
    one, two = Histogram(), Histogram()
    one.add(values, -5.0, 5.0)
    two.add(values, -5.0, 5.0)
    two.add(np.array([5000.0], np.float32), 0.0, 5000.0)
    met, counts = one.bins()
    met_too, counts_too = two.bins()
    large = np.abs(met) > 1e-3
    same = (np.abs(met_too) > 1e-3) & (met_too < 4000)
    np.testing.assert_array_equal(met[large], met_too[same])
    np.testing.assert_array_equal(counts[large], counts_too[same])


@pytest.mark.parametrize("method", ranges.METHODS)
def test_zeros_that_come_first_do_not_hide_what_follows(method: str) -> None:
    parts = [np.zeros((1, 500), np.float32), *RNG.random((31, 1, 500)).astype(np.float32)]
    low, high = ranges.of(method, seen(parts), ranges.Wanted())
    late = ranges.of(method, seen(parts[::-1]), ranges.Wanted())
    assert low == 0 and high > 0.9
    if method != "moving-average":  # the only one that goes by the order
        assert (low, high) == pytest.approx(late)


@pytest.mark.parametrize("method", ranges.METHODS)
def test_nothing_but_zeros_has_the_range_of_nothing(method: str) -> None:
    assert ranges.of(method, seen([np.zeros((4, 9), np.float32)] * 3), ranges.Wanted()) == (0.0, 0.0)


@pytest.mark.parametrize("method", ["entropy", "mse"])
def test_a_grid_of_16_bits_holds_all_that_was_seen(method: str) -> None:
    values = RNG.laplace(size=(60, 1000)).astype(np.float32)
    values[7, 7] = 90.0
    one = seen([values])
    assert ranges.of(method, one, ranges.Wanted(65535)) == (values.min(), values.max())
    assert ranges.of(method, one, ranges.Wanted(255))[1] < values.max()


@pytest.mark.parametrize("shift", [0.0, 6.0])
def test_a_percentile_is_the_share_that_is_kept(shift: float) -> None:
    values = (RNG.normal(size=(100, 2000)) + shift).astype(np.float32)
    low, high = ranges.of("percentile", seen([values]), ranges.Wanted(percentile=99.0))
    assert ((values >= low) & (values <= high)).mean() == pytest.approx(0.99, abs=5e-4)


def test_memory_is_independent_of_the_samples() -> None:
    few, many = seen([RNG.normal(size=(32, 64)).astype(np.float32)] * 2), Statistics("t", histogram=True)
    for start in range(400):
        many.add(RNG.normal(size=(32, 64)).astype(np.float32), 32 * start, 32)
    sizes = [one.histogram.state()[2].nbytes for one in (few, many)]
    assert max(sizes) <= 2 * 25 * 1024 * 8 and len(many.samples) <= 4096


@pytest.mark.parametrize("method", ranges.METHODS)
def test_a_range_lies_within_what_was_seen_and_holds_zero(method: str) -> None:
    for values in (RNG.normal(3, 1, (64, 50)), RNG.normal(-3, 1, (64, 50)), np.abs(RNG.normal(size=(64, 50)))):
        one = seen([values.astype(np.float32)])
        low, high = ranges.of(method, one, ranges.Wanted())
        assert min(one.low, 0) <= low <= 0 <= high <= max(one.high, 0)


def test_the_squared_error_is_the_least_there_is() -> None:
    values = RNG.laplace(size=(100, 300)).astype(np.float32)
    one = seen([values])
    low, high = ranges.of("mse", one, ranges.Wanted(15))

    def error(a: float, b: float) -> float:
        step = (b - a) / 15
        inside = np.clip(values, a, b)
        fake = np.rint((inside - a) / step) * step + a
        out = (values < a) | (values > b)
        return float(np.square(fake - inside).sum() + ranges.CLIPPING * np.square(values - inside)[out].sum())

    best = min(error(low * f, high * f) for f in np.linspace(0.5, 1.6, 45) if -low * f < 12 and high * f < 12)
    assert error(low, high) <= best * 1.05


def test_entropy_differs_from_minmax_and_survives_an_outlier() -> None:
    values = np.abs(RNG.laplace(size=(128, 200))).astype(np.float32)
    clean = ranges.of("entropy", seen([values]), ranges.Wanted())
    assert clean[1] < ranges.of("minmax", seen([values]), ranges.Wanted())[1]
    spoilt = values.copy()
    spoilt[5, 5] = 1000.0
    assert ranges.of("minmax", seen([spoilt]), ranges.Wanted())[1] == 1000
    assert ranges.of("entropy", seen([spoilt]), ranges.Wanted())[1] == pytest.approx(clean[1], rel=0.2)
    assert ranges.of("mse", seen([spoilt]), ranges.Wanted())[1] < 20


def test_a_moving_average_follows_the_batches() -> None:
    one = seen([np.full((4, 2), 1.0, np.float32), np.full((4, 2), 3.0, np.float32)])
    assert ranges.of("moving-average", one, ranges.Wanted())[1] == pytest.approx(1.2)


def test_what_was_seen_comes_back_as_it_was() -> None:
    one = seen([RNG.normal(size=(8, 30)).astype(np.float32), np.zeros((3, 30), np.float32)])
    back = unpacked(packed({"t": one}))["t"]
    for method in ranges.METHODS:
        assert ranges.of(method, back, ranges.Wanted()) == ranges.of(method, one, ranges.Wanted())
    assert back.samples == one.samples and back.instability() == one.instability()


def test_copies_that_fill_up_a_batch_do_not_make_a_range_stable() -> None:
    one = Statistics("t", histogram=True, count=5)
    one.add(np.array([[1.0], [-1], [0.5], [0.2]], np.float32), 0, 4)
    one.add(np.full((4, 1), 4.0, np.float32), 4, 4)  # a sample and three copies
    assert one.instability() == pytest.approx(0.6) and len(one.samples) == one.histogram.count == 5


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_a_sample_that_makes_a_tensor_infinite_is_named(value: float, kind: str) -> None:
    array = np.ones((4, 3), np.float32)
    array[2, 1] = value
    one = Statistics("conv1", histogram=True)
    with pytest.raises(InputError, match=f"sample 34 makes the tensor 'conv1' {kind}"):
        one.add(array, 32, 4)


def test_a_sample_that_stands_out_is_replaced_by_its_neighbour() -> None:
    images = RNG.uniform(-1, 1, (70, 3, 4)).astype(np.float32)
    images[41, 0, 0] = 900
    batches = of_list([{"x": images[start : start + 16]} for start in range(0, 70, 16)])
    found = outliers.find(batches)
    assert [(one.sample, one.name) for one in found] == [(41, "x")] and "900" in found[0].text
    cleaned = np.concatenate([batch["x"] for batch in outliers.without(batches, found)])
    assert len(cleaned) == 70 and np.abs(cleaned).max() <= 1
    np.testing.assert_array_equal(np.delete(cleaned, 41, 0), np.delete(images, 41, 0))


def test_loud_and_quiet_samples_do_not_stand_out() -> None:
    sounds = RNG.normal(size=(64, 50)).astype(np.float32) * RNG.uniform(0.5, 1.5, (64, 1)).astype(np.float32)
    assert outliers.find(of_list([{"x": sounds}])) == []


def test_a_range_makes_the_grid_that_holds_it() -> None:
    one = seen([np.linspace(-0.4, 2.1, 640).reshape(64, 10).astype(np.float32)])
    grid = of_range(*ranges.of("minmax", one, ranges.Wanted()), "uint8")
    assert grid.bottom == pytest.approx(-0.4, abs=0.01) and grid.top == pytest.approx(2.1, abs=0.01)


@pytest.mark.parametrize("method", ranges.METHODS)
def test_of_what_can_not_be_negative_the_least_is_not_looked_for(method: str) -> None:
    """A tensor that never is 0 has another least value, and the same grid."""
    parts = [np.abs(RNG.normal(size=(9, 40))).astype(np.float32) + 0.1 for _ in range(3)]
    one, other = seen(parts), Statistics("t", histogram=True, floor=0.0)
    for number, part in enumerate(parts):
        other.add(part, 9 * number, 9)
    grids = [of_range(*ranges.of(method, known, ranges.Wanted()), "uint8") for known in (one, other)]
    assert grids[0].scale == grids[1].scale and grids[0].zero == grids[1].zero
    assert other.low == 0.0 and one.low >= 0.1 and other.instability() == one.instability()
    assert other.usual()[1] == one.usual()[1]
    with pytest.raises(InputError, match="NaN"):
        other.add(np.array([[1.0, np.nan]], np.float32), 27, 1)


@pytest.mark.parametrize("axis", [0, 1, None])
def test_weights_get_the_best_of_24_scales(axis: int | None) -> None:
    """Each is held against all, one row at a time in float64; rows longer than a block, and rows of zeros, too."""
    weights = (RNG.normal(size=(3, 30_000)) * np.array([[1], [50], [0]])).astype(np.float32)
    weights[0, 7] = 9.0
    rows = weights.reshape(1, -1) if axis is None else np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    scales = of_weights(weights, axis).scale.reshape(-1)
    for row, scale in list(zip(rows.astype(np.float64), scales.astype(np.float64), strict=True))[:40]:
        full = max(np.abs(row).max() / 127, np.finfo(np.float32).tiny)
        errors = [np.square(np.clip(np.rint(row / s), -127, 127) * s - row).sum()
                  for s in (*(full * np.linspace(0.7, 1, 25)[1:]), scale)]  # fmt: skip
        assert errors[-1] <= min(errors) * (1 + 1e-5) + 1e-30
