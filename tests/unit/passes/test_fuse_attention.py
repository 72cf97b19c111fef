"""Attention from two products with a Softmax in between."""

import numpy as np
import pytest
from fusion_trial import hold, model, rewritten, some

HEAD = "(float[B,4,5,8] q, float[B,4,6,8] k, float[B,4,6,3] v{}) => (float[B,4,5,3] y) {{\n"
FEEDS = {"q": some(2, 4, 5, 8), "k": some(2, 4, 6, 8, seed=1), "v": some(2, 4, 6, 3, seed=2)}
ROWS = "the mask hasn't a row for each query and a column for each key, which ONNX Runtime asks for"
CLOSED = "a row of the mask may close every key: Softmax spreads over them, Attention gives zeros"
END = "s = Softmax<axis=-1>(c)\ny = MatMul(s, v)\n}"
KEYS = "t = Transpose<perm=[0, 1, 3, 2]>(k)\n"


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize(
    "scores",
    [
        "p = MatMul(q, t)\nc = Div(p, {2.5})\n",
        "p = MatMul(q, t)\nc = Mul({0.4}, p)\n",
        "u = Mul(q, {0.6324555})\nw = Mul(t, {0.6324555})\nc = MatMul(u, w)\n",
        "c = MatMul(q, t)\n",
    ],
)
def test_the_scale_may_stand_anywhere(scores: str, opset: int) -> None:
    found = rewritten(model(HEAD.format("") + KEYS + scores + END, opset))
    assert found.operators == {"Attention": 1}
    assert found.attributes("Attention")["scale"] == pytest.approx(1.0 if scores.startswith("c") else 0.4)
    hold(found, FEEDS)


MASKED = KEYS + "p = MatMul(q, t)\nd = Mul(p, {0.4})\nc = Add(m, d)\n" + END
CAUSAL = np.triu(np.full((5, 6), -np.inf, np.float32), 1)


@pytest.mark.parametrize("shape", [(5, 6), (1, 1, 5, 6), (1, 4, 5, 6), (4, 5, 6)])
def test_a_mask_is_taken_in(shape: tuple[int, ...]) -> None:
    found = rewritten(model(HEAD.format("") + MASKED, 23, {"m": some(*shape, seed=3) * 2}))
    assert found.operators == {"Attention": 1}
    hold(found, FEEDS)


@pytest.mark.parametrize("mask", [CAUSAL, np.where(CAUSAL < 0, np.finfo(np.float32).min, 0).astype(np.float32)])
def test_a_causal_mask_is_taken_in(mask: np.ndarray) -> None:
    found = rewritten(model(HEAD.format("") + MASKED, 23, {"m": mask}))
    assert found.operators == {"Attention": 1}
    hold(found, FEEDS)


@pytest.mark.parametrize("number", [-np.inf, np.finfo(np.float32).min, np.nan])
def test_a_row_that_closes_every_key_is_not(number: float) -> None:
    mask = np.zeros((5, 6), np.float32)
    mask[2] = number
    found = rewritten(model(HEAD.format("") + MASKED, 23, {"m": mask}))
    assert "Attention" not in found.operators
    assert found.reasons["fuse-attention"] == [CLOSED]


@pytest.mark.parametrize("shape", ["5,6", "B,1,5,6"])
def test_a_mask_that_comes_in_a_run_may_close_a_row(shape: str) -> None:
    """As padding on the left does; the numbers that users write for it are the lowest that there are."""
    found = rewritten(model(HEAD.format(f", float[{shape}] m") + MASKED, 23))
    assert "Attention" not in found.operators and found.reasons["fuse-attention"] == [CLOSED]
    mask = np.zeros([2 if size == "B" else int(size) for size in shape.split(",")], np.float32)
    mask[..., 0, :] = np.finfo(np.float32).min
    hold(found, {**FEEDS, "m": mask})


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ("float[B,1,1,6] m", ROWS),
        ("float[5,1] m", ROWS),
        ("float[3,1,5,6] m", "the mask isn't known to fit the batch and the heads"),
        ("float[6] m", "the shape or the type of the mask isn't known to fit"),
    ],
)
def test_a_mask_that_runtimes_don_t_take_is_refused(mask: str, reason: str) -> None:
    text = HEAD.format(f", {mask}") + KEYS + "p = MatMul(q, t)\nc = Add(m, p)\n" + END
    found = rewritten(model(text.replace("float[B,4,5,3] y", "float[C,4,5,3] y"), 23))
    assert "Attention" not in found.operators
    assert found.reasons["fuse-attention"] == [reason]


def test_an_older_opset_is_refused_with_the_reason() -> None:
    found = rewritten(model(HEAD.format("") + KEYS + "c = MatMul(q, t)\n" + END, 22))
    assert found.reasons["fuse-attention"] == ["Attention needs opset 23, the model has 22"]


def test_a_softmax_over_another_axis_stays() -> None:
    text = HEAD.format("") + KEYS + "c = MatMul(q, t)\n" + END.replace("axis=-1", "axis=2")
    assert "Attention" not in rewritten(model(text, 23)).operators


def test_scores_that_others_read_stay() -> None:
    text = (HEAD.format("") + KEYS + "c = MatMul(q, t)\n" + END).replace("y) {", "y, float[B,4,5,6] s) {")
    found = rewritten(model(text, 23))
    assert found.reasons["fuse-attention"] == ["the result of Softmax, a part of it, is an output of its graph"]


SPLIT = "{0}4 = Reshape({0}, apart)\n{0}t = Transpose<perm=[0, 2, {1}]>({0}4)\n"


def test_heads_are_taken_apart_by_the_operator() -> None:
    text = "(float[B,5,32] q, float[B,5,32] k, float[B,5,32] v) => (float[B,5,32] y) {\n"
    text += SPLIT.format("q", "1, 3") + SPLIT.format("k", "3, 1") + SPLIT.format("v", "1, 3")
    text += "p = MatMul(qt, kt)\nc = Div(p, {2.828427})\ns = Softmax<axis=-1>(c)\no = MatMul(s, vt)\n"
    text += "u = Transpose<perm=[0, 2, 1, 3]>(o)\ny = Reshape(u, whole)\n}"
    found = rewritten(model(text, 23, {"apart": np.array([0, 5, 4, 8]), "whole": np.array([0, 5, 32])}))
    assert found.operators == {"Attention": 1}
    assert found.attributes("Attention")["q_num_heads"] == found.attributes("Attention")["kv_num_heads"] == 4
    hold(found, {name: some(2, 5, 32, seed=place) for place, name in enumerate("qkv")})


@pytest.mark.parametrize("order", ["q, k, v", "k, q, v"])
def test_a_packed_projection_is_split(order: str) -> None:
    text = "(float[B,5,96] x) => (float[B,5,32] y) {\na = Reshape(x, apart)\nt = Transpose<perm=[2, 0, 3, 1, 4]>(a)\n"
    text += f"{order} = Split<axis=0>(t, thirds)\nq0 = Squeeze(q, zero)\nk0 = Squeeze(k, zero)\nv0 = Squeeze(v, zero)\n"
    text += "kt = Transpose<perm=[0, 1, 3, 2]>(k0)\np = MatMul(q0, kt)\nc = Div(p, {2.828427})\n"
    text += "s = Softmax<axis=-1>(c)\no = MatMul(s, v0)\nu = Transpose<perm=[0, 2, 1, 3]>(o)\ny = Reshape(u, whole)\n}"
    weights = {"apart": np.array([0, 5, 3, 4, 8]), "whole": np.array([0, 5, 32])}
    weights |= {"thirds": np.array([1, 1, 1]), "zero": np.array([0])}
    found = rewritten(model(text, 23, weights))
    assert found.operators == {"Split": 1, "Attention": 1}
    hold(found, {"x": some(2, 5, 96)}, {"x": some(1, 5, 96, seed=1)})
