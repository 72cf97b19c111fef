"""Grids: held against onnx's own QuantizeLinear and DequantizeLinear, and against what a grid has to hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from penstock.quantization.grid import SPANS, Grid, of_range, of_weights

RNG = np.random.default_rng(0)


def by_onnx(values: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the integers and the reals that onnx's reference makes."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(grid.dtype))
    axis = {} if grid.axis is None else {"axis": grid.axis}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **axis),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **axis),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)],
        [
            helper.make_tensor_value_info("q", kind, values.shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, values.shape),
        ],
        [
            helper.make_tensor("s", TensorProto.FLOAT, grid.scale.shape, grid.scale.reshape(-1)),
            helper.make_tensor("z", kind, grid.zero.shape, grid.zero.reshape(-1)),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    whole, real = ReferenceEvaluator(model).run(None, {"x": values})
    return whole, real


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_it_quantizes_as_onnx_does(dtype: str, symmetric: bool) -> None:
    grid = of_range(-1.7, 2.9, dtype, symmetric=symmetric)
    values = np.concatenate([RNG.normal(0, 2, 500), (np.arange(-40, 40) + 0.5) * grid.scale]).astype(np.float32)
    whole, real = by_onnx(values, grid)
    inside = (grid.dequantize(grid.quantize(values)), grid.quantize(values))
    if not symmetric:  # a symmetric grid leaves the lowest integer out, which onnx doesn't know of
        np.testing.assert_array_equal(inside[1], whole)
    np.testing.assert_array_equal(grid.dequantize(whole), real)


def test_a_scale_for_each_channel_goes_along_its_axis() -> None:
    weights = RNG.normal(size=(4, 3, 2)).astype(np.float32) * np.array([1, 10, 100, 0.1]).reshape(4, 1, 1)
    grid = of_weights(weights.astype(np.float32), 0, shrink=False)
    whole, real = by_onnx(weights.astype(np.float32), grid)
    np.testing.assert_array_equal(grid.quantize(weights.astype(np.float32)), whole)
    np.testing.assert_allclose(grid.fake(weights.astype(np.float32)), real, rtol=1e-6)
    assert np.abs(grid.quantize(weights)).max(axis=(1, 2)).tolist() == [127] * 4, "each channel uses the whole grid"


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.sampled_from(["uint8", "int8", "int16"]), st.booleans())
def test_zero_lies_on_every_grid(low: float, high: float, dtype: str, symmetric: bool) -> None:
    grid = of_range(min(low, high), max(low, high), dtype, symmetric=symmetric)
    assert grid.fake(np.zeros(1, np.float32))[0] == 0
    assert grid.low >= SPANS[dtype][0] and grid.high <= SPANS[dtype][1]
    step = float(grid.scale)
    assert grid.bottom <= min(low, high, 0) + step and grid.top >= max(low, high, 0) - step, "it holds the range"


def test_the_scale_of_weights_is_the_one_of_least_error() -> None:
    weights = np.concatenate([RNG.normal(0, 0.1, 200), [1.0]]).astype(np.float32).reshape(1, -1)
    full, best = of_weights(weights, 0, bits=4, shrink=False), of_weights(weights, 0, bits=4)

    def error(grid: Grid) -> float:
        return float(np.square(grid.fake(weights) - weights).sum())

    assert error(best) <= error(full) and best.scale[0] <= full.scale[0]
    tried = [
        Grid(full.dtype, full.scale * np.float32(f), full.zero, 0, full.low, full.high) for f in (0.75, 0.85, 0.95)
    ]
    assert error(best) <= min(map(error, tried)) * 1.001


def test_weights_of_nothing_but_zeros() -> None:
    grid = of_weights(np.zeros((2, 3), np.float32), 0)
    assert (grid.quantize(np.zeros((2, 3), np.float32)) == 0).all() and (grid.scale > 0).all()
