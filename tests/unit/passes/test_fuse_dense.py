"""Matrix products between Reshapes."""

import numpy as np
import pytest
from fusion_trial import hold, model, rewritten, some

WEIGHTS = {
    "flat": np.array([-1, 8]), "back": np.array([-1, 5, 6]), "w": some(8, 6, seed=1), "b": some(6, seed=2),
    "heads": np.array([-1, 5, 2, 3]),
    "b5": some(5, 1, seed=4),
}  # fmt: skip
FEEDS = [{"x": some(2, 5, 8)}, {"x": some(1, 5, 8, seed=5)}]


def test_no_reshapes_around_a_product_that_takes_all_axes() -> None:
    text = "(float[B,5,8] x) => (float[B,5,6] y) {\na = Reshape(x, flat)\np = MatMul(a, w)\nr = Reshape(p, back)\n"
    found = rewritten(model(text + "y = Add(r, b)\n}", 13, WEIGHTS))
    assert found.operators == {"MatMul": 1, "Add": 1}
    hold(found, *FEEDS)


def test_one_reshape_instead_of_two_where_axes_are_joined() -> None:
    text = "(float[B,5,2,4] x) => (float[B,5,6] y) {\na = Reshape(x, flat)\np = MatMul(a, w)\ny = Reshape(p, back)\n}"
    found = rewritten(model(text, 13, WEIGHTS))
    assert found.operators == {"Reshape": 1, "MatMul": 1}
    hold(found, {"x": some(2, 5, 2, 4)}, {"x": some(1, 5, 2, 4)})


def test_a_bias_between_reshapes_comes_before_them_into_a_gemm() -> None:
    text = "(float[B,5,8] x) => (float[B,5,2,3] y) {\na = Reshape(x, flat)\np = MatMul(a, w)\nr = Reshape(p, back)\n"
    found = rewritten(model(text + "c = Add(r, b)\ny = Reshape(c, heads)\n}", 13, WEIGHTS))
    assert found.operators == {"Reshape": 2, "Gemm": 1}
    hold(found, *FEEDS)


def test_one_reshape_before_three_products_stays_until_none_needs_it() -> None:
    text = "(float[B,5,8] x) => (float[B,5,6] y) {\na = Reshape(x, flat)\np = MatMul(a, w)\nr = Reshape(p, back)\n"
    text += "q = MatMul(a, v)\ns = Reshape(q, back)\ny = Mul(r, s)\n}"
    found = rewritten(model(text, 13, {**WEIGHTS, "v": some(8, 6, seed=7)}))
    assert found.operators == {"MatMul": 2, "Mul": 1}
    hold(found, *FEEDS)


@pytest.mark.parametrize("second", ["b5", "b"])
def test_what_lies_along_another_axis_keeps_its_reshape(second: str) -> None:
    text = "(float[B,5,8] x) => (float[B,5,2,3] y) {\na = Reshape(x, flat)\np = MatMul(a, w)\ns = Sigmoid(p)\n"
    text += f"r = Reshape(s, back)\nc = Add(r, {second})\ny = Reshape(c, heads)\n}}"
    found = rewritten(model(text, 13, WEIGHTS))
    assert found.operators["Reshape"] == (3 if second == "b5" else 2)
    hold(found, *FEEDS)
