"""Concats join, and what is cut from them is taken from their inputs."""

import numpy as np
import onnx
import pytest

from rewriting_cases import assert_becomes, assert_stays, floats, model, node

PASS = "merge-concats"
XYZ = {"p": ("batch", 2, 4), "q": ("batch", 3, 4), "r": ("batch", 5, 4)}


def test_a_concat_of_a_concat_is_one() -> None:
    """Case 1, whichever way the axis is counted."""
    nodes = [
        node("Concat", ["p", "q"], ["a"], axis=1),
        node("Concat", ["r", "a", "p"], ["b"], axis=-2),
        node("Neg", ["b"], ["y"]),
    ]
    found = assert_becomes(model(nodes, XYZ, ["y"]), PASS, ["Concat", "Neg"])
    assert list(found.proto.graph.node[0].input) == ["r", "p", "q", "p"]


def test_along_another_axis_it_stays() -> None:
    nodes = [node("Concat", ["p", "p"], ["a"], axis=2), node("Concat", ["b", "a"], ["y"], axis=1)]
    assert_stays(model(nodes, {**XYZ, "b": ("batch", 1, 8)}, ["y"]), PASS)


def test_one_that_others_read_stays() -> None:
    nodes = [
        node("Concat", ["p", "q"], ["a"], axis=1),
        node("Concat", ["r", "a"], ["y"], axis=1),
        node("Neg", ["a"], ["z"]),
    ]
    assert_stays(model(nodes, XYZ, ["y", "z"]), PASS)


def test_neighbouring_constants_become_one() -> None:
    """Case 2."""
    weights = {"k": floats(0, 1, 2, 4), "l": floats(1, 1, 1, 4), "m": floats(2, 1, 3, 4)}
    nodes = [node("Concat", ["k", "l", "p", "m"], ["a"], axis=1), node("Neg", ["a"], ["y"])]
    found = assert_becomes(model(nodes, {"p": (1, 2, 4)}, ["y"], weights), PASS, ["Concat", "Neg"])
    assert len(found.proto.graph.node[0].input) == 3
    apart = [node("Concat", ["k", "p", "l"], ["y"], axis=1)]
    assert_stays(model(apart, {"p": (1, 2, 4)}, ["y"], weights), PASS)


def test_constants_that_a_caller_may_override_are_none() -> None:
    weights = {"k": floats(0, 1, 2, 4), "l": floats(1, 1, 1, 4)}
    proto = model([node("Concat", ["k", "l", "p"], ["y"], axis=1)], {"p": (1, 2, 4), "k": (1, 2, 4)}, ["y"], weights)
    assert_stays(proto, PASS)


def cut(*nodes: onnx.NodeProto, weights: dict | None = None, outputs: tuple[str, ...] = ("y",), inputs: dict = XYZ,
        opset: int = 21) -> onnx.ModelProto:  # fmt: skip
    held = [
        *(node("Relu", [name], [f"{name}1"]) for name in "pqr"),
        node("Concat", ["p1", "q1", "r1"], ["a"], axis=1),
        *nodes,
    ]
    return model(held, inputs, outputs, weights, opset=opset)


@pytest.mark.parametrize(("start", "end", "wanted"), [(0, 2, "p1"), (2, 5, "q1"), (5, 2**62, "r1"), (-8, -5, "q1")])
def test_a_slice_of_one_input_reads_it(start: int, end: int, wanted: str) -> None:
    """Case 3."""
    nodes = [node("Slice", ["a", "s", "e", "x"], ["b"]), node("Neg", ["b"], ["y"])]
    proto = cut(*nodes, weights={"s": [start], "e": [end], "x": [1]})
    found = assert_becomes(proto, [PASS, "remove-unused"], ["Relu", "Neg"])
    assert found.proto.graph.node[0].output == [wanted]


def test_a_slice_of_several_inputs_becomes_a_concat_of_these() -> None:
    nodes = [node("Slice", ["a", "s", "e", "x"], ["b"]), node("Neg", ["b"], ["y"])]
    proto = cut(*nodes, weights={"s": [2], "e": [10], "x": [1]})
    found = assert_becomes(proto, [PASS, "remove-unused"], ["Relu", "Relu", "Concat", "Neg"])
    assert list(found.proto.graph.node[2].input) == ["q1", "r1"]


def test_a_split_into_the_inputs_goes() -> None:
    nodes = [node("Split", ["a", "s"], ["b", "c", "d"], axis=1),
             *(node("Neg", [name], [f"y{name}"]) for name in "bcd")]  # fmt: skip
    proto = cut(*nodes, weights={"s": [2, 3, 5]}, outputs=("yb", "yc", "yd"))
    assert_becomes(proto, PASS, ["Relu", "Relu", "Relu", "Neg", "Neg", "Neg"])


def test_a_split_in_other_places_stays() -> None:
    nodes = [node("Split", ["a", "s"], ["b", "c"], axis=1), node("Neg", ["b"], ["y"]), node("Neg", ["c"], ["z"])]
    proto = cut(*nodes, weights={"s": [4, 6]}, outputs=("y", "z"))
    assert_stays(proto, PASS, "it doesn't cut between the Concat's inputs")


REFUSED = {
    "through an input": ({"s": [1], "e": [5], "x": [1]}, "it doesn't cut between the Concat's inputs"),
    "the whole of it": ({"s": [0], "e": [10], "x": [1]}, None),
    "along another axis": ({"s": [0], "e": [2], "x": [2]}, None),
    "with steps": ({"s": [0], "e": [10], "x": [1], "t": [2]}, None),
    "another axis as well": ({"s": [0, 1], "e": [2, 3], "x": [1, 2]}, None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_slices_stay(case: str) -> None:
    weights, reason = REFUSED[case]
    inputs = ["a", "s", "e", "x", *(["t"] if "t" in weights else [])]
    assert_stays(cut(node("Slice", inputs, ["b"]), node("Neg", ["b"], ["y"]), weights=weights), PASS, reason)


def test_sizes_that_are_not_known() -> None:
    nodes = [node("Slice", ["a", "s", "e", "x"], ["y"])]
    weights = {"s": [2], "e": [5], "x": [1]}
    proto = cut(*nodes, weights=weights, inputs={**XYZ, "p": ("batch", "n", 4)})
    assert_stays(proto, PASS, "the sizes of the Concat's inputs aren't known")


def test_several_inputs_of_a_concat_that_others_read_stay() -> None:
    nodes = [node("Slice", ["a", "s", "e", "x"], ["y"]), node("Neg", ["a"], ["z"])]
    proto = cut(*nodes, weights={"s": [2], "e": [10], "x": [1]}, outputs=("y", "z"))
    assert_stays(proto, PASS, "the Concat has 2 consumers")


@pytest.mark.parametrize("opset", [9, 12])
def test_old_forms(opset: int) -> None:
    slice_ = node("Slice", ["a"], ["b"], starts=[2], ends=[5], axes=[1])
    if opset < 10:
        proto = cut(slice_, node("Neg", ["b"], ["y"]), opset=opset)
        assert_becomes(proto, [PASS, "remove-unused"], ["Relu", "Neg"], branch=False)
    split = node("Split", ["a"], ["b", "c", "d"], axis=1, split=[2, 3, 5])
    proto = cut(split, node("Neg", ["d"], ["y"]), opset=opset)
    assert_becomes(proto, [PASS, "remove-unused"], ["Relu", "Neg"], branch=False)


def test_whole_numbers_are_joined_as_they_are() -> None:
    weights = {"k": np.array([1, 2]), "l": np.array([3])}
    proto = model([node("Concat", ["k", "l", "s"], ["y"], axis=0)], {"s": ("int64", ("n",))}, ["y"], weights)
    found = assert_becomes(proto, PASS, ["Concat"])
    assert found.weight(found.proto.graph.node[0].input[0]).tolist() == [1, 2, 3]
