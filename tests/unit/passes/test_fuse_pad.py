"""Pads that a Conv or a pool can do by itself."""

import numpy as np
import pytest
from fusion_trial import hold, model, rewritten, some

TEXT = "(float[B,3,9,8] x) => (float[B,M,H,W] y) {{\n{}\n}}"
WEIGHTS = {
    "pads": np.array([0, 0, 1, 2, 0, 0, 0, 3]), "w": some(4, 3, 3, 3, seed=1), "some": np.array([1, 2, 0, 3]),
    "axes": np.array([2, -1]), "channels": np.array([0, 1, 0, 0, 0, 0, 0, 0]),
    "cut": np.array([0, 0, -1, 0, 0, 0, 0, 0]), "all": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "wider": some(4, 4, 3, 3, seed=1), "low": np.array(-np.inf, np.float32), "zero": np.array(0.0, np.float32),
}  # fmt: skip
FEEDS = [{"x": some(2, 3, 9, 8)}, {"x": some(1, 3, 9, 8, seed=1)}]


@pytest.mark.parametrize(
    ("pad", "conv", "pads"),
    [
        ("Pad(x, pads)", "Conv(p, w)", [1, 2, 0, 3]),
        ("Pad(x, pads, zero)", "Conv<pads=[1, 0, 0, 1]>(p, w)", [2, 2, 0, 4]),
        ("Pad(x, some, zero, axes)", 'Conv<auto_pad="VALID", strides=[2, 2]>(p, w)', [1, 2, 0, 3]),
        ("Pad(x, pads)", 'Conv<auto_pad="NOTSET", dilations=[2, 1]>(p, w)', [1, 2, 0, 3]),
    ],
)
def test_conv_takes_zeros_in(pad: str, conv: str, pads: list[int]) -> None:
    found = rewritten(model(TEXT.format(f"p = {pad}\ny = {conv}"), 18, WEIGHTS))
    assert found.operators == {"Conv": 1}
    assert found.attributes("Conv")["pads"] == pads
    hold(found, *FEEDS)


def test_opset_7_has_pads_as_an_attribute() -> None:
    text = TEXT.format("p = Pad<pads=[0, 0, 1, 2, 0, 0, 0, 3], value=0.0>(x)\ny = Conv(p, w)")
    found = rewritten(model(text, 7, WEIGHTS))
    assert found.operators == {"Conv": 1}
    hold(found, *FEEDS)


@pytest.mark.parametrize(
    "pool",
    [
        "p = Pad(x, all, low)\ny = MaxPool<kernel_shape=[3, 3], strides=[2, 2]>(p)",
        "r = Relu(x)\np = Pad(r, all, zero)\ny = MaxPool<kernel_shape=[2, 2]>(p)",
        "p = Pad(x, all)\ny = AveragePool<kernel_shape=[3, 2], count_include_pad=1>(p)",
    ],
)
def test_pools_take_what_they_would_pad_with(pool: str) -> None:
    found = rewritten(model(TEXT.format(pool), 18, WEIGHTS))
    assert "Pad" not in found.operators
    hold(found, *FEEDS)


def test_a_reshape_of_axes_of_size_1_in_between_stays_without_the_pad() -> None:
    text = "(float[B,3,8] x) => (float[B,M,H,W] y) {\np = Pad(x, pads)\nr = Reshape(p, flat)\ny = Conv(r, w)\n}"
    weights = {"pads": np.array([0, 0, 1, 0, 0, 3]), "flat": np.array([0, 3, 1, 12]), "w": some(4, 3, 1, 3)}
    found = rewritten(model(text, 13, weights))
    assert found.operators == {"Reshape": 1, "Conv": 1}
    assert found.attributes("Conv")["pads"] == [0, 1, 0, 3]
    hold(found, {"x": some(2, 3, 8)}, {"x": some(1, 3, 8)})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("p = Pad(x, channels)\ny = Conv(p, wider)", "it pads the batch or the channels"),
        ("p = Pad(x, cut)\ny = Conv(p, w)", "it cuts something off"),
        ('p = Pad<mode="reflect">(x, pads)\ny = Conv(p, w)', "the Pad before it is of the mode reflect"),
        ("p = Pad(x, pads, {1})\ny = Conv(p, w)", "the Pad before it adds 1, not 0"),
        ('p = Pad(x, pads)\ny = Conv<auto_pad="SAME_UPPER">(p, w)', "the Conv finds its pads by itself"),
        ("p = Pad(x, all)\ny = AveragePool<kernel_shape=[3, 3]>(p)", "the pool doesn't count what it pads"),
        ("p = Pad(x, all)\ny = MaxPool<kernel_shape=[3, 3]>(p)", "the Pad before it adds 0, not -inf"),
        ("p = Pad(x, pads, low)\ny = MaxPool<kernel_shape=[3, 3]>(p)", "the pads would be as large as the window"),
        (
            "p = Pad(x, all, low)\ny = MaxPool<kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1>(p)",
            "the pool's size is rounded up",
        ),
    ],
)
def test_a_near_miss_says_why(body: str, reason: str) -> None:
    found = rewritten(model(TEXT.format(body), 18, WEIGHTS))
    assert found.operators["Pad"] == 1
    assert found.reasons["fuse-pad"] == [reason]


def test_the_indices_of_a_maxpool_count_what_is_padded() -> None:
    text = "(float[B,3,9,8] x) => (float[B,M,H,W] y, int64[B,M,H,W] i) {\np = Pad(x, all, low)\n"
    found = rewritten(model(text + "y, i = MaxPool<kernel_shape=[3, 3]>(p)\n}", 18, WEIGHTS))
    assert found.operators == {"Pad": 1, "MaxPool": 1}


def test_a_padded_image_that_others_read_stays() -> None:
    text = (
        "(float[B,3,9,8] x) => (float[B,M,H,W] y, float[B,3,I,J] z) {\np = Pad(x, pads)\ny = Conv(p, w)\nz = Relu(p)\n}"
    )
    found = rewritten(model(text, 18, WEIGHTS))
    assert found.operators["Pad"] == 1
    assert found.reasons["fuse-pad"] == ["the padded image has 2 consumers"]
