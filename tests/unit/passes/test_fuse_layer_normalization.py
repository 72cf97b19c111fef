"""LayerNormalization from what exporters write for it."""

import numpy as np
import pytest
from fusion_trial import hold, model, rewritten, some, wide

CENTRED = "m = ReduceMean<axes=[-1]>(x)\nd = Sub(x, m)\n"
TEXT = "(float[B,5,8] x) => (float[B,5,8] y) {{\n{}\n}}"
DECOMPOSED = {
    "torch": "p = Pow(d, {2})\nv = ReduceMean<axes=[-1]>(p)\ne = Add(v, {1e-5})\ns = Sqrt(e)\nn = Div(d, s)\n"
    "g = Mul(n, gamma)\ny = Add(g, beta)",
    "square by Mul, Reciprocal": "p = Mul(d, d)\nv = ReduceMean<axes=[2]>(p)\ne = Add({1e-5}, v)\ns = Sqrt(e)\n"
    "r = Reciprocal(s)\nn = Mul(r, d)\ng = Mul(gamma, n)\ny = Add(beta, g)",
    "scale at the root": "p = Mul(d, d)\nv = ReduceMean<axes=[2]>(p)\ne = Add(v, {1e-5})\ns = Sqrt(e)\n"
    "r = Reciprocal(s)\nw = Mul(r, gamma)\nn = Mul(d, w)\ny = Add(n, beta)",
    "powers": "p = Pow(d, {2})\nv = ReduceMean<axes=[2]>(p)\ne = Add(v, {1e-5})\ns = Pow(e, {-0.5})\n"
    "n = Mul(d, s)\ng = Mul(n, gamma)\ny = Add(g, beta)",
    "tensorflow": "p = Mul(d, d)\nv = ReduceMean<axes=[2]>(p)\ne = Add(v, {1e-5})\ns = Sqrt(e)\nr = Reciprocal(s)\n"
    "w = Mul(r, gamma)\nxw = Mul(x, w)\nmw = Mul(m, w)\nrest = Sub(beta, mw)\ny = Add(xw, rest)",
}
WEIGHTS = {"gamma": some(8, seed=1), "beta": some(8, seed=2)}
FEEDS = [{"x": some(2, 5, 8, seed=3) * 3 + 5}, {"x": some(1, 5, 8, seed=4) * 0.01}]


@pytest.mark.parametrize("form", DECOMPOSED)
def test_every_form_is_one_node(form: str) -> None:
    found = rewritten(model(TEXT.format(CENTRED + DECOMPOSED[form]), 17, WEIGHTS))
    assert found.operators == {"LayerNormalization": 1}
    assert len(found.node("LayerNormalization").input) == 3
    assert found.attributes("LayerNormalization")["epsilon"] == pytest.approx(1e-5)
    hold(found, *FEEDS, bound=1e-4)  # the smaller numbers are close to the epsilon


def test_in_opset_18_axes_are_an_input() -> None:
    text = (CENTRED + DECOMPOSED["torch"]).replace("ReduceMean<axes=[-1]>(x)", "ReduceMean(x, last)")
    text = text.replace("ReduceMean<axes=[-1]>(p)", "ReduceMean(p, last)")
    found = rewritten(model(TEXT.format(text), 18, {**WEIGHTS, "last": np.array([-1])}))
    assert found.operators == {"LayerNormalization": 1}
    hold(found, *FEEDS, bound=1e-4)


def test_the_last_two_axes_with_weights_of_both() -> None:
    text = (CENTRED + DECOMPOSED["torch"]).replace("axes=[-1]", "axes=[-2, -1]")
    weights = {"gamma": some(5, 8, seed=1), "beta": some(1, 5, 8, seed=2)}
    found = rewritten(model(TEXT.format(text), 17, weights))
    assert found.operators == {"LayerNormalization": 1}
    assert found.attributes("LayerNormalization")["axis"] == -2
    hold(found, *FEEDS, bound=1e-4)


@pytest.mark.parametrize(("end", "inputs"), [("y = Div(d, s)", 2), ("n = Div(d, s)\ny = Add(n, beta)", 3)])
def test_without_a_scale_it_is_one_of_ones(end: str, inputs: int) -> None:
    text = CENTRED + DECOMPOSED["torch"].split("n = Div")[0] + end
    found = rewritten(model(TEXT.format(text), 17, {"beta": WEIGHTS["beta"]}))
    assert found.operators == {"LayerNormalization": 1}
    assert len(found.node("LayerNormalization").input) == inputs
    hold(found, *FEEDS, bound=1e-4)


def test_a_factor_for_each_token_stays_outside() -> None:
    text = CENTRED + DECOMPOSED["torch"]
    found = rewritten(model(TEXT.format(text), 17, {**WEIGHTS, "gamma": some(5, 1, seed=1)}))
    assert found.operators == {"LayerNormalization": 1, "Mul": 1, "Add": 1}
    hold(found, *FEEDS, bound=1e-4)


def test_the_casts_around_it_go() -> None:
    text = "(float16[B,5,8] x) => (float16[B,5,8] y) {\nw = Cast<to=1>(x)\n" + "m = ReduceMean<axes=[-1]>(w)\n"
    text += "d = Sub(w, m)\n" + DECOMPOSED["torch"].split("n = Div")[0] + "n = Div(d, s)\nh = Cast<to=10>(n)\n"
    text += "g = Mul(h, gamma)\ny = Add(g, beta)\n}"
    weights = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
    found = rewritten(model(text, 17, weights))
    assert found.operators == {"LayerNormalization": 1}
    hold(found, {"x": some(2, 5, 8, seed=3, dtype=np.float16)}, reference=False)


def test_tensorflow_s_form_loses_nodes_at_any_opset() -> None:
    found = rewritten(model(TEXT.format(CENTRED + DECOMPOSED["tensorflow"]), 11, WEIGHTS))
    assert found.operators == {"ReduceMean": 2, "Sub": 1, "Mul": 2, "Add": 2, "Sqrt": 1, "Div": 1}  # of 12
    assert found.reasons["fuse-layer-normalization"] == ["LayerNormalization needs opset 17, the model has 11"]
    hold(found, *FEEDS, bound=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("float[", "double["), "LayerNormalization computes in float32, the model in float64"),
        (("[B,5,8] y)", "[B,5,8] y, float[B,5,1] s)"), "the result of Sqrt, a part of it, is an output of its graph"),
        (("5,8]", "5,N]"), "the size of the normalized axes isn't known"),
    ],
)
def test_a_near_miss_says_why(change: tuple[str, str], reason: str) -> None:
    text = TEXT.format(CENTRED + DECOMPOSED["torch"].split("n = Div")[0] + "y = Div(d, s)").replace(*change)
    proto = model(text, 17)
    if "double" in text:
        wide(proto)
    found = rewritten(proto)
    assert "LayerNormalization" not in found.operators
    assert reason in found.reasons["fuse-layer-normalization"]


@pytest.mark.parametrize(
    "change",
    [
        ("d = Sub(x, m)", "z = Relu(x)\nd = Sub(z, m)"),  # another tensor's mean
        ("v = ReduceMean<axes=[-1]>(p)", "v = ReduceMean<axes=[1]>(p)"),  # another axis
        ("p = Pow(d, {2})", "p = Pow(d, {3})"),
        ("p = Pow(d, {2})", "p = Mul(d, x)"),
        ("d = Sub(x, m)", "d = Sub(m, x)"),  # the other sign
    ],
)
def test_what_only_looks_like_it_stays(change: tuple[str, str]) -> None:
    text = CENTRED + DECOMPOSED["torch"]
    changed = text.replace(*change)
    assert changed != text
    found = rewritten(model(TEXT.format(changed), 17, WEIGHTS))
    assert "LayerNormalization" not in found.operators
