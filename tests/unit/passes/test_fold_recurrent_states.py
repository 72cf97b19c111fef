"""Initial states of zeros, however they are made."""

import numpy as np
import pytest
from fusion_trial import hold, model, rewritten, some

WEIGHTS = {
    "w": some(1, 20, 3, seed=1), "r": some(1, 20, 5, seed=2), "b": some(1, 40, seed=3),
    "none": np.zeros((1, 40), np.float32), "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]),
    "five": np.array([5]),
    "second": np.array(1), "halves": np.array([1, 1]), "peep": np.zeros((1, 15), np.float32),
}  # fmt: skip
TEXT = """(float[T,B,3] x) => (float[T,1,B,5] y) {{
    s = Shape(x)
    n = Gather<axis=0>(s, second)
    m = Unsqueeze(n, zero)
    {}
    y = LSTM<hidden_size=5>(x, w, r, b, , h, c)
}}"""
FILLED = "l = Concat<axis=0>({}, m, five)\n"
ZEROS = {
    "ConstantOfShape": FILLED.format("one") + "h = ConstantOfShape(l)\nc = Identity(h)",
    "Slices of one for two layers": FILLED.format("two") + "z = ConstantOfShape(l)\nh = Slice(z, zero, one, zero)\n"
    "c = Slice(z, one, two, zero)",
    "Split": FILLED.format("two") + "z = ConstantOfShape(l)\nh, c = Split<axis=0>(z, halves)",
    "Expand, Unsqueeze, Gather": FILLED.format("two") + "z = Expand({0}, l)\nq = Gather<axis=0>(z, second)\n"
    "h = Unsqueeze(q, zero)\nc = Unsqueeze(q, zero)",
    "Concat, Transpose, Cast": "l = Concat<axis=0>(m, one, five)\nz = ConstantOfShape(l)\nt = Cast<to=11>(z)\n"
    "u = Cast<to=1>(t)\nh = Transpose<perm=[1, 0, 2]>(u)\nc = Transpose<perm=[1, 0, 2]>(u)",
}


@pytest.mark.parametrize("form", ZEROS)
def test_zeros_are_left_out(form: str) -> None:
    found = rewritten(model(TEXT.format(ZEROS[form]), 13, WEIGHTS))
    assert found.operators == {"LSTM": 1}
    assert len(found.node("LSTM").input) == 4
    hold(found, {"x": some(4, 2, 3)}, {"x": some(1, 1, 3, seed=4)})


def test_a_bias_and_peepholes_of_zeros_are_left_out() -> None:
    text = "(float[T,B,3] x) => (float[T,1,B,5] y) {\ny = LSTM<hidden_size=5>(x, w, r, none, , , , peep)\n}"
    found = rewritten(model(text, 13, WEIGHTS))
    assert list(found.node("LSTM").input) == ["x", "w", "r"]
    hold(found, {"x": some(4, 2, 3)})


@pytest.mark.parametrize("body", ["h = Expand({1}, l)\nc = Expand({0.5}, l)"])
def test_other_numbers_stay(body: str) -> None:
    found = rewritten(model(TEXT.format(FILLED.format("one") + body), 13, WEIGHTS))
    assert len(found.node("LSTM").input) == 7
    hold(found, {"x": some(4, 2, 3)})
