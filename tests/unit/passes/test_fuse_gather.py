"""One place of an axis, picked out by a Gather alone."""

import numpy as np
import pytest
from fusion_trial import Outcome, hold, model, rewritten, some

WEIGHTS = {
    "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "last": np.array([-1]), "far": np.array([2**62]),
    "i": np.array(1), "end": np.array(-1), "thirds": np.array([1, 1, 1]), "list": np.array([0, 2]),
}  # fmt: skip


def trial(head: str, body: str, opset: int = 13) -> Outcome:
    return rewritten(model(f"{head} {{\n{body}\n}}", opset, WEIGHTS))


@pytest.mark.parametrize("bounds", ["one, two", "last, far", "two, far"])
def test_slice_and_squeeze(bounds: str) -> None:
    found = trial("(float[B,3,4] x) => (float[B,4] y)", f"s = Slice(x, {bounds}, one)\ny = Squeeze(s, one)")
    assert found.operators == {"Gather": 1}
    hold(found, {"x": some(2, 3, 4)})


def test_a_split_whose_parts_are_all_squeezed() -> None:
    body = "a, b, c = Split<axis=1>(x, thirds)\np = Squeeze(a, one)\nq = Squeeze(b, one)\nr = Squeeze(c, one)\n"
    found = trial("(float[B,3,4] x) => (float[B,4] y)", body + "s = Mul(p, q)\ny = Sub(s, r)")
    assert found.operators == {"Gather": 3, "Mul": 1, "Sub": 1}
    hold(found, {"x": some(2, 3, 4)})


@pytest.mark.parametrize("index", ["i", "end"])
def test_a_gather_that_is_unsqueezed_where_it_was(index: str) -> None:
    found = trial("(float[B,3,4] x) => (float[B,1,4] y)", f"g = Gather<axis=1>(x, {index})\ny = Unsqueeze(g, one)")
    assert found.operators == {"Gather": 1}
    hold(found, {"x": some(2, 3, 4)})


def test_unsqueezed_elsewhere_it_stays() -> None:
    found = trial("(float[2,3,4] x) => (float[1,2,4] y)", "g = Gather<axis=1>(x, i)\ny = Unsqueeze(g, zero)")
    assert found.operators == {"Gather": 1, "Unsqueeze": 1}
    hold(found, {"x": some(2, 3, 4)})


def test_a_gather_of_a_transpose_reads_the_other_axis() -> None:
    body = "t = Transpose<perm=[1, 0, 2]>(x)\ny = Gather<axis=1>(t, end)"
    found = trial("(float[T,B,4] x) => (float[B,4] y)", body)
    assert found.operators == {"Gather": 1}
    assert found.attributes("Gather")["axis"] == 0
    hold(found, {"x": some(5, 2, 4)})


def test_a_gather_that_leaves_axes_out_of_order_stays() -> None:
    body = "t = Transpose<perm=[2, 1, 0]>(x)\ny = Gather<axis=1>(t, end)"
    found = trial("(float[T,B,4] x) => (float[4,T] y)", body)
    assert found.operators == {"Transpose": 1, "Gather": 1}
    hold(found, {"x": some(5, 2, 4)})


def test_a_gather_with_a_list_stays_behind_its_transpose() -> None:
    body = "t = Transpose<perm=[1, 0, 2]>(x)\ny = Gather<axis=1>(t, list)"
    found = trial("(float[T,B,4] x) => (float[B,2,4] y)", body)
    assert found.operators == {"Transpose": 1, "Gather": 1}
    hold(found, {"x": some(5, 2, 4)})
