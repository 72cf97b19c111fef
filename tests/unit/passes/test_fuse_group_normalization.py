"""GroupNormalization from Reshape, InstanceNormalization, Reshape and what follows."""

import numpy as np
import pytest
from fusion_trial import hold, model, rewritten, some

PASS = "fuse-group-normalization"
TEXT = """(float[B,6,4,5] x) => (float[B,6,4,5] y) {
    a = Reshape(x, grouped)
    n = InstanceNormalization<epsilon=1e-4>(a, scale, bias)
    sh = Shape(x)
    b = Reshape(n, sh)
    g = Mul(b, gamma)
    y = Add(g, beta)
}"""
WEIGHTS = {
    "grouped": np.array([0, 3, -1]), "scale": np.ones(3, np.float32), "bias": np.zeros(3, np.float32),
    "gamma": some(6, 1, 1, seed=1), "beta": some(1, 6, 1, 1, seed=2),
}  # fmt: skip


@pytest.mark.parametrize("opset", [21, 23])
def test_it_is_one_node(opset: int) -> None:
    found = rewritten(model(TEXT, opset, WEIGHTS), PASS)
    assert found.operators == {"GroupNormalization": 1}
    assert found.attributes("GroupNormalization")["num_groups"] == 3
    hold(found, {"x": some(2, 6, 4, 5) * 2 + 1}, {"x": some(1, 6, 4, 5, seed=5)})


def test_a_scale_for_each_group_is_that_of_its_channels() -> None:
    weights = {**WEIGHTS, "scale": some(3, seed=6), "bias": some(3, seed=7)}
    found = rewritten(model(TEXT, 21, weights), PASS)
    assert found.operators == {"GroupNormalization": 1}
    hold(found, {"x": some(2, 6, 4, 5) * 2 + 1})


@pytest.mark.parametrize(
    ("opset", "weights", "reason"),
    [
        (20, {}, "GroupNormalization with a scale for each channel needs opset 21, the model has 20"),
        (21, {"grouped": np.array([1, 3, -1])}, "the first Reshape isn't known to keep the batch"),
    ],
)
def test_a_near_miss_says_why(opset: int, weights: dict[str, np.ndarray], reason: str) -> None:
    found = rewritten(model(TEXT, opset, {**WEIGHTS, **weights}), PASS)
    assert "GroupNormalization" not in found.operators
    assert reason in found.reasons[PASS]


def test_a_factor_for_each_place_stays_outside() -> None:
    found = rewritten(model(TEXT, 21, {**WEIGHTS, "gamma": some(4, 5, seed=1)}), PASS)
    assert found.operators == {"GroupNormalization": 1, "Mul": 1, "Add": 1}
    hold(found, {"x": some(2, 6, 4, 5)})


def test_it_is_left_alone_unasked() -> None:
    """ONNX Runtime's GroupNormalization loses the small beside the large: at a mean of 5000 there is nothing left."""
    found = rewritten(model(TEXT, 21, WEIGHTS))
    assert "GroupNormalization" not in found.operators
    hold(found, {"x": some(2, 6, 4, 5) + 5000}, bound=1e-3)
