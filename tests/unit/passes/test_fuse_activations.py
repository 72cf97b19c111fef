"""Gelu, HardSigmoid, HardSwish, Sigmoid, Softplus, Mish, Swish and Softmax from their decomposed forms."""

import numpy as np
import pytest
from fusion_trial import Outcome, hold, model, rewritten, some, wide

FEEDS = [{"x": some(2, 7) * 4}, {"x": some(1, 7, seed=1) * 0.1}]


def trial(body: str, opset: int) -> Outcome:
    return rewritten(model(f"(float[B,7] x) => (float[B,7] y) {{\n{body}\n}}", opset))


ERF = "a = Div(x, {1.4142135623730951})\nb = Erf(a)\nc = Add(b, {1})\n"
GELUS = [
    ERF + "d = Mul(x, c)\ny = Mul(d, {0.5})",
    ERF + "d = Mul(x, {0.5})\ny = Mul(d, c)",
    ERF + "d = Mul({0.5}, c)\ny = Mul(x, d)",
    ERF + "d = Mul(c, x)\ny = Div(d, {2})",
    "a = Mul({0.7071067811865475}, x)\nb = Erf(a)\nc = Add({1}, b)\nd = Mul(x, c)\ny = Mul(d, {0.5})",
    "a = Mul({0.7071067811865475}, x)\nb = Erf(a)\ne = Mul(b, {0.5})\nc = Add({0.5}, e)\ny = Mul(x, c)",
    "a = Mul({0.7071067811865475}, x)\nb = Erf(a)\ne = Div(b, {4})\nc = Add(e, {0.25})\nd = Mul(x, {2})\ny = Mul(d, c)",
]
TANH = "t = Tanh(i)\nc = Add(t, {1})\nd = Mul(x, {0.5})\ny = Mul(d, c)"
TANH_GELUS = [
    "q = Pow(x, {3})\nr = Mul(q, {0.044715})\ns = Add(x, r)\ni = Mul(s, {0.7978845608028654})\n" + TANH,
    "q = Mul(x, x)\np = Mul(q, x)\nr = Mul({0.044715}, p)\ns = Add(r, x)\ni = Mul({0.7978845608028654}, s)\n" + TANH,
    "q = Mul(x, {0.044715})\np = Mul(x, q)\nr = Mul(x, p)\ns = Add(x, r)\ni = Mul(s, {0.7978845608028654})\n" + TANH,
    "q = Mul(x, x)\nr = Mul(q, {0.044715})\ns = Add(r, {1})\nu = Mul(x, {0.7978845608028654})\ni = Mul(u, s)\n" + TANH,
]


@pytest.mark.parametrize("body", GELUS)
def test_gelu(body: str) -> None:
    found = trial(body, 20)
    assert found.operators == {"Gelu": 1}
    hold(found, *FEEDS)
    assert trial(body, 19).reasons["fuse-gelu"] == ["Gelu needs opset 20, the model has 19"]


@pytest.mark.parametrize("body", TANH_GELUS)
def test_gelu_with_tanh(body: str) -> None:
    found = trial(body, 20)
    assert found.operators == {"Gelu": 1}
    assert found.attributes("Gelu")["approximate"] == b"tanh"
    hold(found, *FEEDS)


@pytest.mark.parametrize("body", TANH_GELUS)
def test_without_gelu_the_tanh_is_a_sigmoid(body: str) -> None:
    found = trial(body, 13)
    assert "Tanh" not in found.operators
    assert found.operators["Sigmoid"] == 1
    hold(found, *FEEDS)


def test_the_middle_of_a_gelu_that_is_read_elsewhere_stays() -> None:
    text = "(float[B,7] x) => (float[B,7] y, float[B,7] z) {\n" + GELUS[0] + "\nz = Relu(b)\n}"
    found = rewritten(model(text, 20))
    assert "Gelu" not in found.operators
    assert found.reasons["fuse-gelu"] == ["the result of Erf, a part of it, is read elsewhere too"]


@pytest.mark.parametrize(
    "body",
    [
        ERF.replace("1.4142135623730951", "1.5") + "d = Mul(x, c)\ny = Mul(d, {0.5})",
        ERF + "d = Mul(x, c)\ny = Mul(d, {0.25})",
        ERF + "r = Relu(x)\nd = Mul(r, c)\ny = Mul(d, {0.5})",
        ERF.replace("{1}", "{2}") + "d = Mul(x, c)\ny = Mul(d, {0.5})",
        ERF.replace("Add(b, {1})", "Sub(b, {1})") + "d = Mul(x, c)\ny = Mul(d, {0.5})",
        ERF.replace("c = Add(b, {1})", "e = Mul(b, {0.5})\nc = Add(e, {0.25})") + "y = Mul(x, c)",
    ],
)
def test_what_only_looks_like_a_gelu_stays(body: str) -> None:
    found = trial(body, 20)
    assert "Gelu" not in found.operators
    hold(found, *FEEDS)


HARD = "a = Add(x, {3})\nb = Clip(a, {0}, {6})\n"
HARD_SWISHES = [
    HARD + "c = Div(b, {6})\ny = Mul(x, c)",
    HARD + "c = Mul(x, b)\ny = Div(c, {6})",
    HARD + "c = Mul(b, {0.16666666666666666})\ny = Mul(c, x)",
    "c = HardSigmoid<alpha=0.1666667, beta=0.5>(x)\ny = Mul(x, c)",
    "a = Sub(x, {-3})\nb = Clip(a, {0}, {6})\nc = Mul(x, b)\ny = Div(c, {6})",
    "a = Add({3}, x)\nr = Relu(a)\nb = Min(r, {6})\nc = Mul(x, b)\ny = Div(c, {6})",
]


@pytest.mark.parametrize("body", HARD_SWISHES)
def test_hard_swish(body: str) -> None:
    found = trial(body, 14)
    assert found.operators == {"HardSwish": 1}
    hold(found, *FEEDS)
    older = trial(body, 13)
    assert older.operators == {"HardSigmoid": 1, "Mul": 1}
    assert older.reasons["fuse-hard-swish"] == ["HardSwish needs opset 14, the model has 13"]
    hold(older, *FEEDS)


@pytest.mark.parametrize("opset", [7, 12, 22])
def test_hard_sigmoid(opset: int) -> None:
    clip = "y = Clip<min=0.0, max=1.0>(b)" if opset < 11 else "y = Clip(b, {0}, {1})"
    for added in ("Add(a, {0.5})", "Sub(a, {-0.5})"):
        found = trial(f"a = Mul(x, {{0.2}})\nb = {added}\n" + clip, opset)
        assert found.operators == {"HardSigmoid": 1}
        assert found.attributes("HardSigmoid") == {"alpha": pytest.approx(0.2), "beta": pytest.approx(0.5)}
        hold(found, *FEEDS)
    other = trial("a = Mul(x, {0.2})\nb = Sub({0.5}, a)\n" + clip, opset)
    assert "HardSigmoid" not in other.operators


@pytest.mark.parametrize(
    "body",
    [
        HARD + "c = Div(b, {5})\ny = Mul(x, c)",
        "a = Add(x, {3})\nb = Clip(a, {-1}, {6})\nc = Div(b, {6})\ny = Mul(x, c)",
        "a = Mul(x, {0.2})\nb = Add(a, {0.5})\ny = Clip(b, {0}, {2})",
    ],
)
def test_what_only_looks_like_a_hard_sigmoid_stays(body: str) -> None:
    found = trial(body, 14)
    assert not {"HardSigmoid", "HardSwish"} & {*found.operators}
    hold(found, *FEEDS)


def test_softplus_is_right_where_the_exponential_overflows() -> None:
    found = trial("e = Exp(x)\na = Add(e, {1})\ny = Log(a)", 11)
    assert found.operators == {"Softplus": 1}
    hold(found, *FEEDS)
    assert trial("e = Exp(x)\na = Add(e, {2})\ny = Log(a)", 11).operators == {"Exp": 1, "Add": 1, "Log": 1}


@pytest.mark.parametrize("softplus", ["s = Softplus(x)", "e = Exp(x)\na = Add({1}, e)\ns = Log(a)"])
def test_mish(softplus: str) -> None:
    body = softplus + "\nt = Tanh(s)\ny = Mul(x, t)"
    found = trial(body, 18)
    assert found.operators == {"Mish": 1}
    hold(found, *FEEDS)
    assert trial(body, 17).operators == {"Softplus": 1, "Tanh": 1, "Mul": 1}


@pytest.mark.parametrize("number", ["", "1.702"])
def test_swish(number: str) -> None:
    body = ("a = Mul(x, {1.702})\ns = Sigmoid(a)" if number else "s = Sigmoid(x)") + "\ny = Mul(s, x)"
    found = trial(body, 24)
    assert found.operators == {"Swish": 1}
    hold(found, *FEEDS)
    assert trial(body, 23).reasons["fuse-swish"] == ["Swish needs opset 24, the model has 23"]
    assert trial(body, 25).reasons["fuse-swish"] == ["ONNX Runtime runs no Swish in opset 25, only in 24"]


@pytest.mark.parametrize(
    "body",
    [
        "m = ReduceMax<axes=[1]>(x)\nd = Sub(x, m)\ne = Exp(d)\ns = ReduceSum(e, last)\ny = Div(e, s)",
        "m0 = ReduceMax<axes=[1], keepdims=0>(x)\nm1 = Max(m0, {-inf})\nm = Reshape(m1, column)\nd = Sub(x, m)\n"
        "e = Exp(d)\ns0 = ReduceSum<keepdims=0>(e, last)\ns = Reshape(s0, column)\ny = Div(e, s)",
        "e = Exp(x)\ns = ReduceSum(e, last)\ny = Div(e, s)",
    ],
)
def test_softmax(body: str) -> None:
    weights = {"last": np.array([1]), "column": np.array([-1, 1])}
    found = rewritten(model(f"(float[B,7] x) => (float[B,7] y) {{\n{body}\n}}", 13, weights))
    assert found.operators == {"Softmax": 1}
    hold(found, *FEEDS)


def test_softmax_over_the_axis_that_the_sum_is_over() -> None:
    body = "e = Exp(x)\ns = ReduceSum(e, first)\ny = Div(e, s)"
    found = rewritten(model(f"(float[B,7] x) => (float[B,7] y) {{\n{body}\n}}", 13, {"first": np.array([0])}))
    assert found.operators == {"Softmax": 1}
    assert found.attributes("Softmax")["axis"] == 0
    hold(found, *FEEDS)


def test_a_product_with_a_reciprocal_is_a_quotient() -> None:
    found = trial("r = Reciprocal(x)\ns = Sin(x)\ny = Mul(r, s)", 11)
    assert found.operators == {"Sin": 1, "Div": 1}
    hold(found, *FEEDS)


@pytest.mark.parametrize(
    ("body", "opset"),
    [(GELUS[0], 20), (TANH_GELUS[0], 20), (HARD_SWISHES[0], 14), ("e = Exp(x)\na = Add(e, {1})\ny = Log(a)", 11)],
)
def test_float64_stays_decomposed(body: str, opset: int) -> None:
    proto = model(f"(double[B,7] x) => (double[B,7] y) {{\n{body}\n}}", opset)
    wide(proto)
    found = rewritten(proto)
    assert not {"Gelu", "HardSigmoid", "HardSwish", "Softplus"} & {*found.operators}
    assert (
        "Erf" in body
        or "Tanh" in body
        or any("in float64" in reason for reasons in found.reasons.values() for reason in reasons)
    )
