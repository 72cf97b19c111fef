"""Reshapes, Flattens, Squeezes and Unsqueezes join."""

import itertools

import numpy as np
import onnx
import pytest

from rewriting_cases import Runtime, apply, assert_becomes, assert_same, assert_stays, model, node

PASS = "merge-reshapes"
X = {"x": ("batch", 3, 4)}


def chain(*nodes: onnx.NodeProto, weights: dict, inputs: dict = X, opset: int = 21) -> onnx.ModelProto:
    """Relu → the nodes, from a over b to c → Neg."""
    held = [node("Relu", ["x"], ["a"]), *nodes, node("Neg", ["c"], ["y"])]
    return model(held, inputs, ["y"], weights, opset=opset)


FLAT = node("Flatten", ["a"], ["b"])
CASES = {
    "two reshapes": (
        [node("Reshape", ["a", "s"], ["b"]), node("Reshape", ["b", "t"], ["c"])],
        {"s": [0, -1], "t": [0, 2, 6]},
    ),
    "flatten": ([FLAT, node("Reshape", ["b", "t"], ["c"])], {"t": [-1, 6, 2]}),
    "unsqueeze": ([FLAT, node("Unsqueeze", ["b", "t"], ["c"])], {"t": [0, 2]}),
    "squeeze": ([node("Reshape", ["a", "s"], ["b"]), node("Squeeze", ["b", "t"], ["c"])], {"s": [0, 1, 12], "t": [1]}),
    "batch moves": (
        [node("Reshape", ["a", "s"], ["b"]), node("Reshape", ["b", "t"], ["c"])],
        {"s": [3, -1], "t": [4, -1, 3]},
    ),
    "all in one": ([node("Reshape", ["a", "s"], ["b"]), node("Unsqueeze", ["b", "t"], ["c"])], {"s": [-1], "t": [0]}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_become_one_reshape(case: str) -> None:
    """Case 1."""
    nodes, weights = CASES[case]
    assert_becomes(chain(*nodes, weights=weights), PASS, ["Relu", "Reshape", "Neg"])


@pytest.mark.parametrize("opset", [11, 13, 21])
def test_unsqueezes_of_unknown_sizes_join(opset: int) -> None:
    """Case 2; axes are an attribute before opset 13."""
    for first, second in itertools.product([[0], [1], [-1], [0, 2]], [[0], [-1], [1, 3]]):
        one, other = (
            [node("Unsqueeze", ["a", "s"], ["b"]), node("Unsqueeze", ["b", "t"], ["c"])]
            if opset >= 13
            else [node("Unsqueeze", ["a"], ["b"], axes=first), node("Unsqueeze", ["b"], ["c"], axes=second)]
        )
        weights = {"s": first, "t": second} if opset >= 13 else {}
        proto = chain(one, other, weights=weights, inputs={"x": ("n", "m")}, opset=opset)
        found = apply(proto, PASS)
        assert found.operators in (["Relu", "Unsqueeze", "Neg"], ["Relu", "Reshape", "Neg"])
        assert_same(proto, found.proto)


@pytest.mark.parametrize(("ones", "first", "second"), [
    ([0, 1], [0], [0]), ([0, 2], [0], [1]), ([0, 2], [2], [0]), ([1, 2], [-2], [-2]), ([0, 3], [0], [-1]),
])  # fmt: skip
def test_squeezes_of_unknown_sizes_join(ones: list[int], first: list[int], second: list[int]) -> None:
    nodes = [node("Unsqueeze", ["x", "u"], ["w"]), node("Relu", ["w"], ["a"]), node("Squeeze", ["a", "s"], ["b"]),
             node("Squeeze", ["b", "t"], ["c"]), node("Neg", ["c"], ["y"])]  # fmt: skip
    proto = model(nodes, {"x": ("n", "m")}, ["y"], {"u": ones, "s": first, "t": second})
    found = apply(proto, PASS)
    assert found.operators in (["Unsqueeze", "Relu", kind, "Neg"] for kind in ("Squeeze", "Reshape"))
    assert_same(proto, found.proto)


def test_what_comes_back_to_the_shape_before_goes() -> None:
    nodes = [FLAT, node("Unsqueeze", ["b", "t"], ["d"]), node("Flatten", ["d"], ["c"], axis=2)]
    assert_becomes(chain(*nodes, weights={"t": [1]}), PASS, ["Relu", "Flatten", "Neg"])


def test_there_and_back_goes() -> None:
    """Case 3, though others read what is between."""
    nodes = [node("Unsqueeze", ["a", "s"], ["b"]), node("Squeeze", ["b", "s"], ["c"])]
    assert_becomes(chain(*nodes, weights={"s": [1]}, inputs={"x": ("n", "m")}), PASS, ["Relu", "Neg"])
    proto = chain(*nodes, weights={"s": [1]})
    proto.graph.node.append(node("Abs", ["b"], ["z"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["batch", 1, 3, 4]))
    assert_becomes(proto, PASS, ["Relu", "Unsqueeze", "Neg", "Abs"], branch=False)


def test_one_that_others_read_stays() -> None:
    """Case 4."""
    proto = chain(FLAT, node("Reshape", ["b", "t"], ["c"]), weights={"t": [-1, 6, 2]})
    proto.graph.node.append(node("Abs", ["b"], ["z"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["batch", 12]))
    assert_stays(proto, PASS, "the Flatten before it has 2 consumers")


def test_two_unknown_sizes_stay() -> None:
    nodes = [node("Reshape", ["a", "s"], ["b"]), node("Unsqueeze", ["b", "t"], ["c"])]
    proto = chain(*nodes, weights={"s": [0, 0, 2, 2], "t": [0]}, inputs={"x": ("n", "m", 4)})
    assert_stays(proto, PASS, "the joined shape has more than one size that isn't known before a run")


def test_a_shape_that_is_computed_stays() -> None:
    nodes = [FLAT, node("Reshape", ["b", "t"], ["c"])]
    held = [node("Relu", ["x"], ["a"]), *nodes, node("Neg", ["c"], ["y"])]
    proto = model(held, {**X, "t": ("int64", (2,))}, ["y"])
    assert_stays(proto, PASS, "the joined shape has more than one size that isn't known before a run")


def test_an_empty_axis_stays() -> None:
    """A Reshape to 0 copies an axis, so an empty one can't be asked for."""
    proto = chain(node("Reshape", ["a", "s"], ["b"]), node("Unsqueeze", ["b", "t"], ["c"]),
                  weights={"s": [0, 0], "t": [0]},
                  inputs={"x": (0, 4)})  # fmt: skip
    feeds = {"x": np.zeros((0, 4), np.float32)}
    found = assert_stays(proto, PASS, "the joined shape has more than one size that isn't known before a run")
    assert onnx.reference.ReferenceEvaluator(found.proto).run(None, feeds)[0].shape == (1, 0, 4)


def test_the_batch_may_be_empty() -> None:
    proto = chain(FLAT, node("Unsqueeze", ["b", "t"], ["c"]), weights={"t": [1]})
    assert_becomes(proto, PASS, ["Relu", "Reshape", "Neg"], feeds={"x": np.zeros((0, 3, 4), np.float32)},
                   oracle=Runtime, branch=False)  # fmt: skip
