"""Rounding in torch is rounding by the static quantizer's grid, to the bit; its gradients are published formulas."""

import numpy as np
import pytest
import torch

from penstock.qat.fake import rounded, rounded_by_channel
from penstock.qat.grids import INT32_ROOM, Activations, Weights
from penstock.quantization.emit import product_grid
from penstock.quantization.grid import SMALLEST, Grid, of_range, of_weights

pytestmark = pytest.mark.torch
RNG = np.random.default_rng(0)
RANGES = [(-1.3, 2.7), (0.0, 6.0), (-3.0, 0.0), (0.0, 0.0), (-1e-3, 1e3), (-5.5, 5.4)]


def awkward(grid: Grid) -> np.ndarray:
    """Return random values, the ties between steps, the ends, and what lies far beyond."""
    steps = np.arange(grid.low - 3, grid.high + 3, max((grid.high - grid.low) // 500, 1))
    ties = (steps + np.float32(0.5) - int(grid.zero)).astype(np.float32) * grid.scale
    many = RNG.normal(0, max(abs(grid.bottom), grid.top, 1e-30), 2000)
    found = np.concatenate([ties, np.nextafter(ties, np.float32(9e9)), many, [0.0, -0.0, 1e30, -1e30]])
    return found.astype(np.float32)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "int4"])
@pytest.mark.parametrize("ends", RANGES)
def test_activations_lie_on_the_grid_to_the_bit(ends: tuple[float, float], kind: str, symmetric: bool) -> None:
    grid = of_range(*ends, kind, symmetric=symmetric)
    values = awkward(grid)
    got = Activations(grid, learned=True)(torch.from_numpy(values)).detach().numpy()
    with np.errstate(over="ignore"):  # of a range of nothing but 0
        np.testing.assert_array_equal(got, grid.fake(values))
    back = Activations(grid, learned=True).grid()
    assert (back.scale, back.zero, back.dtype) == (grid.scale, grid.zero, kind)
    assert (back.low, back.high) == (grid.low, grid.high)


@pytest.mark.parametrize("axis", [None, 0, 1, 3])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_weights_lie_on_the_grid_to_the_bit(axis: int | None, order: torch.memory_format) -> None:
    weights = (RNG.normal(size=(6, 4, 3, 3)) * np.exp(RNG.normal(size=(6, 1, 1, 1)))).astype(np.float32)
    grid = of_weights(weights, axis)
    module = Weights(grid, learned=True, whole_bias=True)
    made, bias = module(torch.from_numpy(weights).contiguous(memory_format=order), None, torch.tensor(0.1))
    np.testing.assert_array_equal(made.detach().numpy(), grid.fake(weights))
    assert bias is None


@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 0), ((6, 4), None), ((4, 2), 1)])
def test_a_bias_lies_on_the_grid_of_products(shape: tuple[int, int], axis: int | None) -> None:
    weights, bias = RNG.normal(size=shape).astype(np.float32), RNG.normal(size=6).astype(np.float32)
    data, grid = of_range(0, 4.2, "uint8"), of_weights(weights, axis)
    _, made = Weights(grid, learned=True, whole_bias=True)(
        torch.from_numpy(weights), torch.from_numpy(bias), torch.from_numpy(data.scale)
    )
    np.testing.assert_array_equal(made.detach().numpy(), product_grid(data, grid, 6).fake(bias))
    assert not np.array_equal(made.detach().numpy(), bias)
    _, same = Weights(grid, learned=True, whole_bias=False)(
        torch.from_numpy(weights), torch.from_numpy(bias), torch.from_numpy(data.scale)
    )
    np.testing.assert_array_equal(same.detach().numpy(), bias)


def test_a_scale_grows_with_a_bias_that_int32_could_not_hold() -> None:
    weights, bias = np.full((2, 3), 1e-4, np.float32), np.array([0.1, 5e6], np.float32)
    module = Weights(of_weights(weights, 0), learned=True, whole_bias=True)
    grid = module.grid(torch.from_numpy(bias), torch.tensor(0.01))
    assert grid.scale[1] == pytest.approx(5e6 / (0.01 * INT32_ROOM)) and grid.scale[1] > 10 * grid.scale[0]


@pytest.mark.parametrize(("low", "high", "zero"), [(0, 255, 77.0), (0, 255, 0.0), (-128, 127, -3.0), (-127, 127, 0.0)])
def test_the_gradients_are_those_of_the_papers(low: int, high: int, zero: float) -> None:
    x = torch.from_numpy(RNG.normal(0, 0.05 * high, 400).astype(np.float32)).requires_grad_()
    scale, middle = torch.tensor(0.11, requires_grad=True), torch.tensor(zero, requires_grad=True)
    given = torch.from_numpy(RNG.normal(size=400).astype(np.float32))
    rounded(x, scale, middle, low, high, samples=4).backward(given)
    t = x.detach().double().numpy() / np.float32(0.11)
    q = np.clip(np.rint(t), low - zero, high - zero)
    inside = (np.rint(t) >= low - zero) & (np.rint(t) <= high - zero)
    if low == zero:
        inside &= t > 0  # as the gradient of a Relu, which may have been left out before
    assert 0.1 < inside.mean() < 1 and x.grad is not None and scale.grad is not None and middle.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), given.numpy() * inside)
    ease = 1 / np.sqrt(100 * high)
    want = np.sum(given.numpy() * (q - np.where(inside, t, 0))) * ease
    assert scale.grad.item() == pytest.approx(want, rel=1e-3, abs=1e-4)
    assert middle.grad.item() == pytest.approx(-0.11 * np.sum(given.numpy() * ~inside) * ease, rel=1e-3, abs=1e-6)


def test_the_gradients_by_channel_are_those_of_the_paper() -> None:
    x = torch.from_numpy(RNG.normal(0, 8, (5, 7, 2)).astype(np.float32)).requires_grad_()
    scale = torch.linspace(0.02, 0.11, 5).reshape(5, 1, 1).requires_grad_()
    given = torch.from_numpy(RNG.normal(size=(5, 7, 2)).astype(np.float32))
    rounded_by_channel(x, scale, -127, 127).backward(given)
    t = x.detach().numpy() / scale.detach().numpy()
    inside = np.abs(np.rint(t)) <= 127
    assert 0 < inside.mean() < 1 and x.grad is not None and scale.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), given.numpy() * inside)
    want = (given.numpy() * (np.clip(np.rint(t), -127, 127) - t * inside)).sum((1, 2), keepdims=True)
    np.testing.assert_allclose(scale.grad.numpy(), want / np.sqrt(14 * 127), rtol=1e-3, atol=1e-4)


def test_a_zero_point_moves_but_where_it_must_not() -> None:
    """It stays at 0 behind a Relu and on symmetric grids; elsewhere it moves in whole steps and stays on the grid."""
    assert not Activations(of_range(0, 6, "uint8"), learned=True).shift.requires_grad
    assert not Activations(of_range(-1, 6, "int8", symmetric=True), learned=True).shift.requires_grad
    assert not Activations(of_range(-1, 6, "uint8"), learned=False).shift.requires_grad
    moving = Activations(of_range(-1, 6, "uint8"), learned=True)
    assert moving.shift.requires_grad and int(moving.grid().zero) == 36
    with torch.no_grad():
        moving.shift += 7 / 255 / 255 * 10  # ten steps of the grid
    assert int(moving.grid().zero) == 46
    values = awkward(moving.grid())
    np.testing.assert_array_equal(moving(torch.from_numpy(values)).detach().numpy(), moving.grid().fake(values))
    with torch.no_grad():
        moving.shift += 1000
        moving.scale.fill_(-0.5)
    grid = moving.grid()
    assert int(grid.zero) == 255 and grid.scale == 0.5, "a scale that went below 0 counts by its size"
    with torch.no_grad():
        moving.scale.zero_()
    assert moving.grid().scale == np.float32(SMALLEST)
