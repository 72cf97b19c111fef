"""The number after the scores goes into the weights before them."""

import numpy as np
import pytest
from fusion_trial import hold, model, rewritten, some

WEIGHTS = {
    "w": some(8, 8, seed=1), "v": some(8, 8, seed=2), "b": some(8, seed=3), "heads": np.array([0, 5, 2, 4]),
    "flat": np.array([-1, 8]), "apart": np.array([-1, 5, 2, 4]),
}  # fmt: skip
HEAD = "(float[B,5,8] x) => (float[B,2,5,5] y) {\n"
KEYS = "k0 = MatMul(x, v)\nk1 = Reshape(k0, heads)\nk = Transpose<perm=[0, 2, 3, 1]>(k1)\n"
TURN = "q = Transpose<perm=[0, 2, 1, 3]>(q1)\n"
END = "p = MatMul(q, k)\ny = Div(p, {2.5})\n}"
FEEDS = [{"x": some(2, 5, 8)}, {"x": some(1, 5, 8, seed=5)}]


@pytest.mark.parametrize(
    "queries",
    [
        "q0 = MatMul(x, w)\nqb = Add(b, q0)\nq1 = Reshape(qb, heads)\n",
        "f = Reshape(x, flat)\nq0 = Gemm(f, w, b)\nq1 = Reshape(q0, apart)\n",
        "q0 = Sigmoid(x)\nq1 = Reshape(q0, heads)\n",  # then the keys take it
    ],
)
def test_it_goes_through_what_moves_elements(queries: str) -> None:
    found = rewritten(model(HEAD + queries + TURN + KEYS + END, 13, WEIGHTS))
    assert not {"Div", "Mul"} & {*found.operators}
    hold(found, *FEEDS)


def test_projections_that_others_read_stay() -> None:
    text = (HEAD + "q0 = MatMul(x, w)\nq1 = Reshape(q0, heads)\n" + TURN + KEYS + END).replace(
        "y) {", "y, float[B,5,8] z, float[B,5,8] u) {"
    )
    found = rewritten(model(text.replace("\n}", "\nz = Relu(q0)\nu = Relu(k0)\n}"), 13, WEIGHTS))
    assert found.operators["Div"] == 1
    assert found.reasons["fold-scale"] == ["neither factor of the product comes from weights that nothing else uses"]
    hold(found, *FEEDS)
