"""Relu, Clip, Max and Min with constants join."""

import numpy as np
import onnx
import pytest

from rewriting_cases import Runtime, assert_becomes, assert_stays, model, node

PASS = "merge-clips"
X = {"x": ("batch", 40)}


def chain(
    *nodes: onnx.NodeProto, weights: dict | None = None, opset: int = 21, dtype: str = "float32"
) -> onnx.ModelProto:
    """x → the nodes, from a over b to c → y."""
    ends = [node("Identity", ["x"], ["a"]), *nodes, node("Identity", ["c"], ["y"])]
    return model(ends, {"x": (dtype, ("batch", 40))}, ["y"], weights, opset=opset)


def bounds(found: onnx.ModelProto) -> dict[str, float]:
    (clip,) = [one for one in found.graph.node if one.op_type == "Clip"]
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    return {name: float(held[key]) for name, key in zip(("min", "max"), clip.input[1:], strict=False) if key}


W = {"l": -1.0, "h": 1.5, "l2": -0.5, "h2": 3.0, "zero": 0.0, "six": 6.0}
CASES = {
    "1 two clips": (
        node("Clip", ["a", "l", "h"], ["b"]),
        node("Clip", ["b", "l2", "h2"], ["c"]),
        {"min": -0.5, "max": 1.5},
    ),
    "1 apart above": (
        node("Clip", ["a", "l", "l2"], ["b"]),
        node("Clip", ["b", "zero", "h"], ["c"]),
        {"min": 0, "max": 0},
    ),
    "1 apart below": (
        node("Clip", ["a", "h", "h2"], ["b"]),
        node("Clip", ["b", "l", "l2"], ["c"]),
        {"min": 1.5, "max": -0.5},
    ),
    "1 relu then clip": (node("Relu", ["a"], ["b"]), node("Clip", ["b", "", "six"], ["c"]), {"min": 0, "max": 6}),
    "1 clip then relu": (node("Clip", ["a", "l", "h"], ["b"]), node("Relu", ["b"], ["c"]), {"min": 0, "max": 1.5}),
    "1 upper alone": (node("Clip", ["a", "", "h2"], ["b"]), node("Clip", ["b", "", "h"], ["c"]), {"max": 1.5}),
    "3 max then min": (node("Max", ["a", "zero"], ["b"]), node("Min", ["b", "six"], ["c"]), {"min": 0, "max": 6}),
    "3 the constant first": (node("Max", ["l", "a"], ["b"]), node("Min", ["h", "b"], ["c"]), {"min": -1, "max": 1.5}),
    "3 with a clip": (node("Min", ["a", "h"], ["b"]), node("Clip", ["b", "l"], ["c"]), {"min": -1, "max": 1.5}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_become_a_clip(case: str) -> None:
    first, second, wanted = CASES[case]
    found = assert_becomes(chain(first, second, weights=W), PASS, ["Identity", "Clip", "Identity"], oracle=Runtime)
    assert bounds(found.proto) == wanted


@pytest.mark.parametrize("second", [node("Relu", ["b"], ["c"]), node("Max", ["b", "zero"], ["c"]),
                                    node("Clip", ["b", "l"], ["c"])])  # fmt: skip
def test_relu_absorbs_lower_bounds(second: onnx.NodeProto) -> None:
    """Case 2."""
    proto = chain(node("Relu", ["a"], ["b"]), second, weights=W)
    assert_becomes(proto, PASS, ["Identity", "Relu", "Identity"])


@pytest.mark.parametrize("opset", [6, 9, 10, 11, 12, 17])
def test_bounds_are_attributes_or_inputs_by_opset(opset: int) -> None:
    clip = node("Clip", ["b"], ["c"], max=6.0) if opset < 11 else node("Clip", ["b", "", "six"], ["c"])
    proto = chain(node("Relu", ["a"], ["b"]), clip, weights=W if opset >= 11 else {}, opset=opset)
    found = assert_becomes(proto, PASS, ["Identity", "Clip", "Identity"], branch=opset >= 11)
    if opset < 11:
        assert {item.name: item.f for item in found.proto.graph.node[1].attribute} == {"min": 0.0, "max": 6.0}


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats(dtype: str) -> None:
    weights = {"l": np.array(-1, dtype), "h": np.array(1.5, dtype)}
    proto = chain(node("Relu", ["a"], ["b"]), node("Clip", ["b", "l", "h"], ["c"]), weights=weights, dtype=dtype)
    assert_becomes(proto, PASS, ["Identity", "Clip", "Identity"])


def test_not_a_numbers_pass_as_they_did() -> None:
    x = np.full((1, 40), np.nan, np.float32)
    proto = chain(node("Relu", ["a"], ["b"]), node("Clip", ["b", "", "six"], ["c"]), weights=W)
    assert_becomes(proto, PASS, ["Identity", "Clip", "Identity"], feeds={"x": x}, oracle=Runtime)


def test_what_is_no_constant_stays() -> None:
    nodes = [node("Relu", ["x"], ["b"]), node("Clip", ["b", "low"], ["y"])]
    assert_stays(model(nodes, {**X, "low": ()}, ["y"]), PASS)
    two = [node("Relu", ["x"], ["b"]), node("Max", ["b", "z"], ["y"])]
    assert_stays(model(two, {**X, "z": ("batch", 40)}, ["y"]), PASS)


def test_whole_numbers_stay() -> None:
    weights = {"l": np.array(-1), "h": np.array(5)}
    proto = chain(node("Clip", ["a", "l"], ["b"]), node("Clip", ["b", "", "h"], ["c"]), weights=weights, dtype="int64")
    assert_stays(proto, PASS)


def test_a_constant_that_enlarges_stays() -> None:
    proto = model([node("Relu", ["x"], ["b"]), node("Max", ["b", "k"], ["y"])], {"x": (4,)}, ["y"], {"k": [[0.5]]})
    assert_stays(proto, PASS)


def test_one_that_others_read_stays() -> None:
    nodes = [node("Relu", ["x"], ["b"]), node("Clip", ["b", "", "six"], ["y"]), node("Neg", ["b"], ["z"])]
    assert_stays(model(nodes, X, ["y", "z"], W), PASS, "the Relu before it has 2 consumers")
    handed = model([nodes[0], nodes[1]], X, ["b", "y"], W)
    assert_stays(handed, PASS, "the Relu before it is an output of its graph")


def test_many_join_at_once() -> None:
    """A chain of a hundred thousand is one rewrite, not as many as it has nodes."""
    proto = chain(
        node("Relu", ["a"], ["1"]), node("Clip", ["1", "l", "h2"], ["2"]), node("Min", ["2", "six"], ["3"]),
        node("Relu", ["3"], ["4"]), node("Clip", ["4", "l2", "h"], ["c"]), weights=W,
    )  # fmt: skip
    found = assert_becomes(proto, PASS, ["Identity", "Clip", "Identity"], oracle=Runtime)
    assert bounds(found.proto) == {"min": 0, "max": 1.5}
    assert [event.what for event in found.done.trace.events if event.rule == PASS] == ["Clip and the 4 before it join"]


def test_they_join_up_to_where_another_reads() -> None:
    nodes = [
        node("Relu", ["x"], ["1"]), node("Clip", ["1", "l", "h2"], ["2"]), node("Relu", ["2"], ["3"]),
        node("Clip", ["3", "l2", "h"], ["y"]), node("Neg", ["2"], ["z"]),
    ]  # fmt: skip
    found = assert_becomes(model(nodes, X, ["y", "z"], W), PASS, ["Clip", "Clip", "Neg"], oracle=Runtime, branch=False)
    assert {event.what for event in found.done.trace.events} == {"Relu and Clip join"}


def test_before_opset_12_other_floats_join_to_a_relu_or_not_at_all() -> None:
    nodes = [node("Clip", ["a"], ["1"], max=6.0), node("Relu", ["1"], ["2"]), node("Relu", ["2"], ["c"])]
    found = assert_becomes(chain(*nodes, opset=10, dtype="float16"), PASS, ["Identity", "Clip", "Relu", "Identity"])
    assert len(found.done.trace.events) == 1
