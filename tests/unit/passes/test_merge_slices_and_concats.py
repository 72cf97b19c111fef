"""Slices of Slices, and Concats of all that was split; Neg after a Conv."""

import numpy as np
import pytest
from fusion_trial import hold, model, rewritten, some

WEIGHTS = {f"c{number}": np.array([number]) for number in range(12)}
WEIGHTS |= {"m1": np.array([-1]), "m2": np.array([-2]), "far": np.array([2**62]), "low": np.array([-(2**62) - 9])}
X = some(3, 10, 4)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("c1, c8, c1", "c2, c3, c2"),  # other axes
        ("c1, c8, c1", "c2, c5, c1"),  # the same one
        ("c1, m1, c1, c2", "c1, far, c1, c2"),  # steps
        ("m1, low, c1, m1", "c2, c9, c1, c3"),  # backwards
        ("c1, c8, c1", "m2, low, c1, m1"),
        ("m2, far, c1", "m1, far, c1"),
    ],
)
def test_two_slices_are_one(first: str, second: str) -> None:
    text = f"(float[3,10,4] x) => (float[A,B,C] y) {{\ns = Slice(x, {first})\ny = Slice(s, {second})\n}}"
    found = rewritten(model(text, 13, WEIGHTS))
    assert found.operators == {"Slice": 1}
    hold(found, {"x": X})


@pytest.mark.parametrize(("second", "count"), [("c2, c5, c1", 1), ("m2, far, c1", 2)])
def test_of_an_axis_of_unknown_size_both_have_to_count_from_the_beginning(second: str, count: int) -> None:
    text = f"(float[3,N,4] x) => (float[A,B,C] y) {{\ns = Slice(x, c1, c8, c1)\ny = Slice(s, {second})\n}}"
    found = rewritten(model(text, 13, WEIGHTS))
    assert found.operators == {"Slice": count}
    hold(found, {"x": X}, {"x": X[:, :4]})


def test_a_slice_that_others_read_stays() -> None:
    text = (
        "(float[3,10,4] x) => (float[A,B,C] y, float[A,D,C] z) {\ns = Slice(x, c1, c8, c1)\ny = Slice(s, c2, c5, c1)\n"
    )
    found = rewritten(model(text + "z = Relu(s)\n}", 13, WEIGHTS))
    assert found.operators == {"Slice": 2, "Relu": 1}


@pytest.mark.parametrize(
    ("concat", "operators"),
    [
        ("a, b", {"Relu": 1}),
        ("b, a", {"Relu": 1, "Split": 1, "Concat": 1}),
        ("x, a, b", {"Relu": 1, "Concat": 1}),
        ("a, a, b", {"Relu": 1, "Split": 1, "Concat": 1}),
    ],
)
def test_what_is_split_and_put_together_again(concat: str, operators: dict[str, int]) -> None:
    text = "(float[3,N,4] x) => (float[3,N,L] y) {\nr = Relu(x)\n"
    text += f"a, b = Split<axis=-1>(r, sizes)\ny = Concat<axis=2>({concat})\n}}"
    found = rewritten(model(text, 13, {"sizes": np.array([1, 3])}))
    assert found.operators == operators
    hold(found, {"x": X})


def test_another_axis_is_no_way_back() -> None:
    text = "(float[3,10,4] x) => (float[3,20,2] y) {\na, b = Split<axis=2>(x, sizes)\ny = Concat<axis=1>(a, b)\n}"
    found = rewritten(model(text, 13, {"sizes": np.array([2, 2])}))
    assert found.operators == {"Split": 1, "Concat": 1}
    hold(found, {"x": X})


def test_neg_goes_into_the_convolution() -> None:
    text = "(float[B,3,5,5] x) => (float[B,2,3,3] y) {\nc = Conv(x, w, b)\ny = Neg(c)\n}"
    found = rewritten(model(text, 13, {"w": some(2, 3, 3, 3, seed=1), "b": some(2, seed=2)}))
    assert found.operators == {"Conv": 1}
    hold(found, {"x": some(2, 3, 5, 5)})
