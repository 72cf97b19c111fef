"""RMSNormalization from what exporters write for it."""

import numpy as np
import pytest
from fusion_trial import hold, model, rewritten, some

TEXT = "(float[B,5,8] x) => (float[B,5,8] y) {{\n{}\n}}"
START = "p = Pow(x, {2})\nv = ReduceMean<keepdims=1>(p, last)\ne = Add(v, {1e-5})\ns = Sqrt(e)\n"
WEIGHTS = {"gamma": some(8, seed=1), "last": np.array([-1])}
ENDS = [
    "n = Div(x, s)\ny = Mul(n, gamma)",
    "r = Reciprocal(s)\nn = Mul(x, r)\ny = Mul(gamma, n)",
    "r = Div({1}, s)\nn = Mul(r, x)\ny = Mul(gamma, n)",
    "r = Reciprocal(s)\nw = Mul(r, gamma)\ny = Mul(x, w)",
]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("opset", [23, 24])
def test_every_form_is_one_node(end: str, opset: int) -> None:
    found = rewritten(model(TEXT.format(START + end), opset, WEIGHTS))
    assert found.operators == {"RMSNormalization": 1}
    assert found.attributes("RMSNormalization")["epsilon"] == pytest.approx(1e-5)
    hold(found, {"x": some(2, 5, 8, seed=3) * 4}, {"x": some(1, 5, 8, seed=4) + 2})


def test_llama_casts_around_it() -> None:
    text = "(float16[B,5,8] h) => (float16[B,5,8] y) {\nx = Cast<to=1>(h)\n" + START
    text += "r = Reciprocal(s)\nn = Mul(x, r)\nc = Cast<to=10>(n)\ny = Mul(gamma, c)\n}"
    weights = {**WEIGHTS, "gamma": WEIGHTS["gamma"].astype(np.float16)}
    found = rewritten(model(text, 23, weights))
    assert found.operators == {"RMSNormalization": 1}
    hold(found, {"h": some(2, 5, 8, seed=3, dtype=np.float16)})


def test_an_older_opset_is_refused_with_the_reason() -> None:
    found = rewritten(model(TEXT.format(START + ENDS[0]), 18, WEIGHTS))
    assert "RMSNormalization" not in found.operators
    assert "RMSNormalization needs opset 23, the model has 18" in found.reasons["fuse-rms-normalization"]


@pytest.mark.parametrize("end", ["n = Div(z, s)\ny = Mul(n, gamma)", "n = Mul(z, s)\ny = Mul(n, gamma)"])
def test_what_only_looks_like_it_stays(end: str) -> None:
    found = rewritten(model(TEXT.format("z = Relu(x)\n" + START + end), 23, WEIGHTS))
    assert "RMSNormalization" not in found.operators
